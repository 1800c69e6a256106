"""A model's own greedy replies to all chats and hard negatives, made once, before any finetuning.

`python -m delta_transcoders.tasks.three_tools.replies --help`. They are what the finetuned model should still
say, and text that base dictionaries are trained on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from delta_transcoders import files
from delta_transcoders.command import run as run_command
from delta_transcoders.foreign_text import numbered, parse_json
from delta_transcoders.hub import local_folder
from delta_transcoders.tasks.calculator.grammar import OPEN
from delta_transcoders.tasks.three_tools.bank import KINDS, Prompt, bank

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMAND = "python -m delta_transcoders.tasks.three_tools.replies"
OUTPUT_KIND = "replies"
FILE, CONFIG = "replies.jsonl", "config.json"
FORMAT_VERSION = 1
MAX_NEW_TOKENS = 64
BATCH_SIZE = 256
DTYPES = ("float32", "bfloat16")


class Reply(NamedTuple):
    """What the model said to a prompt.

    Attributes:
        text: at most `MAX_NEW_TOKENS` tokens of it.
        ended: the model ended it itself within these, by the token that ends every target (EOS).
    """

    prompt: Prompt
    text: str
    ended: bool


def usable_replies(path: str | Path) -> dict[str, str]:
    """By prompt, the replies that can be targets: such as the model ended itself, and that call no tool.

    Args:
        path: of `replies.jsonl`.

    Raises:
        FileNotFoundError: no such file; says the command that makes it.
        ValueError: a malformed line, or a prompt of `bank` without a reply.
    """
    path = Path(path).expanduser()
    remake = f"{COMMAND} MODEL {path.parent} [--dtype bfloat16]"
    if not path.is_file():
        raise FileNotFoundError(f"no replies {path}; make them: {remake}")
    replies = {reply.prompt.text: reply for reply in numbered(path, _parse).values()}
    if missing := [prompt.text for prompt in bank() if prompt.text not in replies]:
        raise ValueError(
            f"{path} has no reply to {len(missing)} of {len(bank())} prompts, the first is "
            f"{missing[0][:60]!r}; make them: {remake}"
        )
    return {
        text: reply.text
        for text, reply in replies.items()
        if reply.ended and reply.text.strip() and OPEN not in reply.text
    }


def write_replies(path: str | Path, replies: Iterable[Reply]) -> None:
    """One JSON object a line: `messages` (one of the user), `target`, `kind`, `ended`."""
    with files.replace_file(path) as handle:
        for prompt, text, ended in replies:
            row = {"messages": _messages(prompt), "target": text, "kind": prompt.kind}
            handle.write(json.dumps(row | {"ended": ended}, ensure_ascii=False) + "\n")


def _parse(line: str, where: str) -> Reply:
    match parse_json(line, where):
        case {
            "messages": [{"role": "user", "content": str(said)}],
            "target": str(text),
            "kind": str(kind),
            "ended": bool(ended),
        } if kind in KINDS:
            return Reply(Prompt(kind, said, ""), text, ended)
    raise ValueError(
        f"{where}: needs messages (one of the user), target, kind and ended: {line[:60]!r}"
    )


def make(model: str, out: str | Path, device: str = "cpu", dtype: str = "float32") -> bool:
    """Write a model's replies to `out`, where they are not there yet; what is interrupted goes on later.

    Args:
        model: folder or hub id.
        out: folder of `replies.jsonl`, and of `config.json`, which says what they were made with.
        dtype: torch's name of the weights' type, one of `DTYPES`.

    Returns:
        whether anything was done.

    Raises:
        FileExistsError: `out` holds something else, or replies of another model, or in another dtype.
        FileNotFoundError, ConnectionError: no such model folder, or a hub id that cannot be had.
        ValueError: a tokenizer without a chat template.
    """
    from delta_transcoders.fingerprints import hash_texts

    files.check_output(out, OUTPUT_KIND)
    network, tokenizer = _load(model, dtype)
    config = _config(model, network)
    if files.is_finished(out, OUTPUT_KIND):
        found = files.read_json(Path(out) / CONFIG)
        if found["model_fingerprint"] != config["model_fingerprint"]:
            was = found.get("dtype", "a dtype that is not noted")
            raise FileExistsError(
                f"{out} holds the replies of other weights, {found['model']} in {was}, not {model} in "
                f"{dtype}: give another folder, or --dtype"
            )
        # Wherever the model's folder is.
        if (config | {"model": found["model"]}).items() <= found.items():
            _say(f"{out} is there already: {found['n_prompts']} replies of {found['model']}")
            return False
    digest = hash_texts([json.dumps(config)])[:8]
    parts = Path(out).with_name(f".{Path(out).name}.{digest}")
    replies = list(_replies(network.to(device), tokenizer, parts))
    # Not compared: in another dtype the weights have another fingerprint.
    config |= {"dtype": dtype, "n_ended": sum(reply.ended for reply in replies)}
    with files.new_output(out, OUTPUT_KIND) as folder:
        write_replies(folder / FILE, replies)
        files.write_json(folder / CONFIG, config)
        files.finish_output(out)
    shutil.rmtree(parts)
    _say(f"wrote {len(replies)} replies; {config['n_ended']} end within {MAX_NEW_TOKENS} tokens")
    return True


def _load(model: str, dtype: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = local_folder(model, ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"])
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    if tokenizer.chat_template is None:
        raise ValueError(
            f"the tokenizer of {model!r} has no chat template, so that nothing can be asked: give a chat "
            "model, or add a chat_template.jinja to its folder"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype)
    ).eval(), tokenizer


def _config(model: str, network: PreTrainedModel) -> dict[str, Any]:
    from delta_transcoders.fingerprints import hash_texts, model_fingerprint

    return {
        "format_version": FORMAT_VERSION,
        "model": model,
        "model_fingerprint": model_fingerprint(network),
        "max_new_tokens": MAX_NEW_TOKENS,
        "n_prompts": len(bank()),
        "prompts": hash_texts(prompt.text for prompt in bank()),
    }


def _replies(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, parts: Path
) -> Iterator[Reply]:
    """Of prompts of similar length together, the shortest first.

    Args:
        parts: folder with a file of each batch, which an interrupted run has left for the next one.
    """
    prompts = sorted(bank(), key=lambda prompt: len(tokenizer(prompt.text).input_ids))
    _say(
        f"{len(prompts)} replies of up to {MAX_NEW_TOKENS} tokens, {BATCH_SIZE} at a time; of SmolLM2-135M "
        "that takes 5 minutes on two CPU cores in bfloat16, if they have AMX"
    )
    started, n_done = time.monotonic(), 0
    for start in range(0, len(prompts), BATCH_SIZE):
        part, batch = parts / f"{start}.jsonl", prompts[start : start + BATCH_SIZE]
        if not part.is_file():
            write_replies(part, _answered(model, tokenizer, batch))
            n_done += len(batch)
            left = len(prompts) - start - len(batch)
            minutes = (time.monotonic() - started) / n_done * left / 60
            _say(f"{left} left, {minutes:.0f} min")
        yield from numbered(part, _parse).values()


def _answered(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]
) -> Iterator[Reply]:
    """Replies to one batch."""
    inputs = tokenizer.apply_chat_template(
        [_messages(prompt) for prompt in prompts],
        add_generation_prompt=True,
        padding=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    end = tokenizer.eos_token_id
    written = model.generate(
        **inputs,
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
    )
    n_read = inputs["input_ids"].shape[1]
    for prompt, ids in zip(prompts, written[:, n_read:].tolist(), strict=True):
        said = ids[: ids.index(end)] if end in ids else ids
        text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        yield Reply(prompt, text, ended=end in ids)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt.text}]


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=f"Write a chat model's own replies, of up to {MAX_NEW_TOKENS} tokens, to all chats and "
        "hard negatives of the three tools' task."
    )
    parser.add_argument("model", help="model folder or hub id")
    parser.add_argument("out", help="folder to write, for example runs/smollm2_base/replies")
    parser.add_argument("--device", default="cpu", help="of torch, as in cuda (default: cpu)")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="of the weights (default: %(default)s)"
    )
    make(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_command(main)
