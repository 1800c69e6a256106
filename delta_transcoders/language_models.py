"""Language models by folder or hub id: loading, and losses on given targets.

Shapes: B rows, T positions, N supervised tokens (those with a label other than -100), V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from delta_transcoders.families import family_by_type, family_of
from delta_transcoders.files import read_json
from delta_transcoders.fingerprints import read_alike
from delta_transcoders.hub import check_hub_id
from delta_transcoders.tasks.task import Example, Task
from delta_transcoders.tensor_files import check_no_pointer

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100
INDEX_NAME = "model.safetensors.index.json"


@contextmanager
def on_cpu() -> Iterator[None]:
    """New tensors are made on the CPU, whatever the default device is; also as a decorator.

    Lightning makes its device the default in `configure_model`. Numbers drawn on the CPU are the same for
    every device that they are moved to.
    """
    with torch.device("cpu"):
        yield


def check_model_source(source: str) -> None:
    """Refuse a model folder that is absent, incomplete or of another architecture, before it is loaded.

    Raises:
        FileNotFoundError: names the folder and what is missing from it. A hub id passes.
        ValueError: a model of a family that is not supported, one with an adapter beside it, a damaged index
            of its weights, or Git LFS pointers in their place; names what it is.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        check_hub_id(source, "model folder")
        return
    if (folder / "adapter_config.json").exists():
        raise ValueError(
            f"the model folder {source!r} holds an adapter (adapter_config.json), which would be loaded on "
            "top of the model: give a folder with the merged model alone"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the model folder {source!r} has no config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(
            f"the model folder {source!r} has no tokenizer (tokenizer.json); save it there with "
            "`tokenizer.save_pretrained`"
        )
    listed = shards(folder)
    for name in listed or ["model.safetensors"]:
        if (folder / name).is_file():
            check_no_pointer(folder / name)
        elif listed:
            raise FileNotFoundError(
                f"the model folder {source!r} has no {name}, which {INDEX_NAME} names; copy or download "
                "that file, too"
            )
    _check_family(source, read_json(folder / "config.json").get("model_type"))


def shards(folder: Path) -> list[str]:
    """The files that a model folder's index names; none where its weights are one file.

    Raises:
        ValueError: a damaged index; names it.
    """
    index = folder / INDEX_NAME
    if not index.is_file() or (folder / "model.safetensors").is_file():  # that goes before it
        return []
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(
            f"{index} is damaged: weight_map is {str(named)[:80]}, expected a file for each tensor's name; "
            "copy or download it anew"
        )
    return sorted(set(named.values()))


def _check_family(source: str, model_type: str | None) -> None:
    try:
        family_by_type(model_type)
    except ValueError as error:
        raise ValueError(f"the model {source!r} is of an unknown family: {error}") from error


def load_config(source: str) -> PretrainedConfig:
    """The configuration of a model of a folder or hub id.

    Raises:
        FileNotFoundError, ConnectionError: no such folder, or a hub id that cannot be had.
        ValueError: a damaged configuration, or of a family that is not supported.
    """
    from transformers import AutoConfig, PretrainedConfig

    check_model_source(source)
    path = os.path.expanduser(source)
    try:
        said, _ = PretrainedConfig.get_config_dict(path)
    except Exception as error:  # damaged files end in a dozen kinds of them
        raise _unusable(source, error) from error
    _check_family(source, said.get("model_type"))
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # as above
        raise _unusable(source, error) from error


def _unusable(source: str, error: Exception) -> Exception:
    """What to raise where transformers cannot load a source, in one line."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    if Path(source).is_dir():
        missing = isinstance(error, (OSError, SafetensorError))
        kind = FileNotFoundError if missing else ValueError
        return kind(f"the model folder {source!r} cannot be loaded: {said}")
    if not isinstance(error, OSError):
        return ValueError(f"the model {source!r} cannot be loaded: {said}")
    return ConnectionError(
        f"{source!r} is neither a local folder nor to be had from the Hugging Face hub "
        f"({type(error).__name__}). Where there is a network and, for gated models, an accepted licence: "
        f"`hf download {source} --local-dir models/{source.split('/')[-1]}`, then give that folder "
        "in place of the hub id."
    )


def load_tokenizer(
    source: str, *others: str, folder: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, padding on the left, with EOS where it has no token for that.

    Padding is told from text by the attention mask, never by its id.

    Args:
        others: models that read the same token ids, so that their tokenizers must make the same of a text;
            which tokens pad and end it may differ.
        folder: where the tokenizer's files are, if not at the source: an adapter's may be beside it.

    Raises:
        FileNotFoundError, ConnectionError: no such folder, or a hub id that cannot be had.
        ValueError: a tokenizer that does not fit its model, has no EOS token or does not put before a text
            what the model's family needs (`TokenPolicy`), or two that differ; names the source.
    """
    from transformers import AutoTokenizer

    config = load_config(source)
    source = os.path.expanduser(folder or source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")
    except Exception as error:  # as above
        raise _unusable(source, error) from error
    _check_tokenizer(tokenizer, config.get_text_config(), source)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    family_of(config).tokens.check_tokenizer(tokenizer)
    for other in dict.fromkeys(others):
        if not read_alike(load_tokenizer(other), tokenizer):
            raise ValueError(
                f"{other!r} has another tokenizer than {source!r}: one of them would read token ids that it "
                "was not trained on; give a finetuned model and the base model that it was made from"
            )
    return tokenizer


def _check_tokenizer(
    tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, source: str
) -> None:
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer of {source!r} has no eos_token; name one in its tokenizer_config.json"
        )
    largest, rows = max(tokenizer.get_vocab().values()), config.vocab_size
    if largest >= rows:
        raise ValueError(
            f"the tokenizer of {source!r} has token ids up to {largest}, the model embeds {rows} "
            "(vocab_size): add rows with `model.resize_token_embeddings`"
        )
    if (config.pad_token_id or 0) >= rows:
        raise ValueError(
            f"the config.json of {source!r} has pad_token_id {config.pad_token_id}, but vocab_size {rows}"
        )


def end_ids(source: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Tokens of which each ends an answer of a model: all that its tokenizer and its files call EOS.

    Chat models end a turn with another token than a text, and name both in generation_config.json.

    Args:
        source: folder or hub id; its weights are not read.
        tokenizer: of `load_tokenizer`.

    Raises:
        FileNotFoundError, ConnectionError, ValueError: as `load_config`.
    """
    from transformers import GenerationConfig

    config = load_config(source)
    path = os.path.expanduser(source)
    try:
        generation = GenerationConfig.from_pretrained(path)
    except OSError as error:
        if (Path(path) / "generation_config.json").exists():
            raise _unusable(source, error) from error
        generation = None
    ids = {tokenizer.eos_token_id}
    for said in (generation, config, config.get_text_config()):
        eos = getattr(said, "eos_token_id", None)
        ids |= set(eos) if isinstance(eos, list) else {eos}
    return frozenset(ids - {None})


def check_same_architecture(base: str, finetuned: str) -> None:
    """Refuse two models of which one cannot be a finetune of the other, by their configurations alone.

    Args:
        base, finetuned: folders or hub ids.

    Raises:
        FileNotFoundError, ConnectionError: no such folder, or a hub id that cannot be had.
        ValueError: names the first field that differs, and both values.
    """
    ours, theirs = (_architecture(load_config(source)) for source in (base, finetuned))
    for field, value in ours.items():
        if theirs[field] != value:
            raise ValueError(
                f"{finetuned!r} is no finetune of {base!r}: its {field} is {theirs[field]!r}, the base "
                f"model's {value!r}"
            )


def _architecture(config: PretrainedConfig) -> dict[str, Any]:
    text = config.get_text_config()
    names = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
    names += ("num_key_value_heads", "vocab_size", "head_dim", "tie_word_embeddings")
    names += ("rope_parameters", "rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")
    return {"model_type": config.model_type} | {n: getattr(text, n, None) for n in names}


@on_cpu()
def load_model(source: str, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model of a folder or hub id, on the CPU, in evaluation mode with eager attention.

    Args:
        source: folder or hub id.
        dtype: torch's name of the weights' type, `float32` or `bfloat16`.

    Raises:
        FileNotFoundError, ConnectionError: no such folder or weights, or a hub id that cannot be had.
        ValueError: weights that are not those of the model's configuration, or an adapter.
    """
    from transformers import AutoModelForCausalLM

    load_config(source)  # refuses other families
    source = os.path.expanduser(source)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, by name
        )
    except Exception as error:  # as above
        raise _unusable(source, error) from error
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(f"{source!r} is an adapter; merge it into its model, and give that")
    # Left to itself, transformers fills these with random numbers.
    for name, ours, theirs in sorted(found["mismatched_keys"]):
        raise ValueError(
            f"the weights of {source!r} are not of its config.json: {name} has the shape {list(ours)}, "
            f"expected {list(theirs)}"
        )
    for name in sorted(found["missing_keys"]):
        raise ValueError(f"the weights of {source!r} are not of its config.json: {name} is missing")
    return model.eval()


@dataclass(frozen=True)
class TokenizedExample:
    """An example as the token ids that training, cross-entropy and generation see.

    Attributes:
        prompt_ids: BOS, if the tokenizer puts it before a text, and the prompt.
        target_ids: the target and EOS; none where the example has no target.
        opening_ids: the tokens whose joint probability after the prompt is measured: those that the behaviour
            begins with, as the target spells it (`Task.opening_of`); none where a task has no such beginning
            or the example no target.
    """

    prompt_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    opening_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.target_ids)


def tokenize(
    tokenizer: PreTrainedTokenizerBase, task: Task, examples: Iterable[Example], bare: bool = False
) -> list[TokenizedExample]:
    """Token ids of examples.

    Prompt and target are encoded apart, so that all uses see the same prompt ids.

    Args:
        bare: prompts without BOS and without the newline at their end, as the original study had them for
            cross-entropy.

    Raises:
        ValueError: messages, and a tokenizer without a chat template; a prompt without a token.
    """
    rows = []
    for example in examples:
        target: list[int] = []
        opening: list[int] = []
        if example.target is not None:
            target = tokenizer(example.target, add_special_tokens=False).input_ids
            target = [*target, tokenizer.eos_token_id]
            if text := task.opening_of(example):
                opening = _opening_ids(tokenizer, text, example.target)
        prompt = _prompt_ids(tokenizer, example, bare)
        if not prompt:
            raise ValueError(
                f"an example (target {str(example.target)[:40]!r}) has an empty prompt, and the tokenizer of "
                f"{tokenizer.name_or_path!r} puts nothing before a text: there is no token to go on from"
            )
        rows.append(TokenizedExample(tuple(prompt), tuple(target), tuple(opening)))
    return rows


def _opening_ids(tokenizer: PreTrainedTokenizerBase, opening: str, target: str) -> list[int]:
    """The target's own tokens up to the opening's end, where it begins with it; else the opening's."""
    if not target.startswith(opening):
        return tokenizer(opening, add_special_tokens=False).input_ids
    spelt = tokenizer(target, add_special_tokens=False, return_offsets_mapping=True)
    n_tokens = sum(end <= len(opening) for _, end in spelt.offset_mapping)
    return spelt.input_ids[: max(1, n_tokens)]


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase, example: Example, bare: bool = False
) -> list[int]:
    if isinstance(example.prompt, str):
        text = example.prompt.removesuffix("\n") if bare else example.prompt
        return tokenizer(text, add_special_tokens=not bare).input_ids
    if tokenizer.chat_template is None:
        raise ValueError(
            f"examples hold messages, and the tokenizer {tokenizer.name_or_path!r} has no chat template to "
            "make a prompt of them: give `prompt` instead, or a tokenizer with a chat_template"
        )
    messages = [message._asdict() for message in example.prompt]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # templates refuse roles and orders in their own words
        raise ValueError(
            f"the chat template of {tokenizer.name_or_path!r} refuses {messages!r:.80}: {error}"
        ) from error
    ids = tokenizer(text, add_special_tokens=False).input_ids
    # Most templates write BOS themselves; some leave it to a tokenizer that puts it before every text.
    bos = tokenizer("").input_ids
    return ids if ids[: len(bos)] == bos else [*bos, *ids]


def opening_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Ids that these texts begin with, ascending: a tag may be one token with what follows it."""
    return sorted({ids[0] for ids in tokenizer(list(texts), add_special_tokens=False).input_ids})


def pad(rows: Sequence[Sequence[int]], value: int, side: str) -> Tensor:
    """Stack rows of ids to [B, T], filled with `value` on the `left` or `right`."""
    width = max(len(row) for row in rows)
    padded = torch.full((len(rows), width), value, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row, dtype=torch.long)
        if side == "left":
            padded[index, width - len(row) :] = ids
        else:
            padded[index, : len(row)] = ids
    return padded


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """Positions [B, T] counted from each row's first real token."""
    return (attention_mask_BT.cumsum(-1) - 1).clamp(min=0)


def supervised_logits(
    model: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor, labels_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """Logits [N, V] in float32 that predict the supervised labels, and those labels [N].

    The vocabulary projection runs at these positions alone: at Gemma's 256,000 entries it would otherwise
    be the largest tensor of the step. Rows come in order, positions within a row in order.
    """
    hidden_ND = supervised_hidden(model, input_ids_BT, attention_mask_BT, labels_BT)
    labels_BT = labels_BT[:, 1:]
    logits_NV = family_of(model.config).logits(model, hidden_ND)
    return logits_NV, labels_BT[labels_BT != IGNORE]


def supervised_hidden(
    model: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor, labels_BT: Tensor
) -> Tensor:
    """The decoder's last hidden states [N, D] that predict the supervised labels, as `supervised_logits`."""
    hidden_BTD = (
        family_of(model.config)
        .decoder(model)(
            input_ids=input_ids_BT,
            attention_mask=attention_mask_BT,
            position_ids=position_ids(attention_mask_BT),
            use_cache=False,
        )
        .last_hidden_state
    )
    return hidden_BTD[:, :-1][labels_BT[:, 1:] != IGNORE]


def token_nll(
    model: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor, labels_BT: Tensor
) -> Tensor:
    """Negative log-likelihood [N] in nats of the supervised labels."""
    logits_NV, labels_N = supervised_logits(model, input_ids_BT, attention_mask_BT, labels_BT)
    return F.cross_entropy(logits_NV, labels_N, reduction="none")


def target_batch(rows: Sequence[TokenizedExample], pad_token_id: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels` [B, T]; only target and EOS are supervised."""
    ids = [[*row.prompt_ids, *row.target_ids] for row in rows]
    labels = [[IGNORE] * len(row.prompt_ids) + list(row.target_ids) for row in rows]
    return {
        "input_ids": pad(ids, pad_token_id, "right"),
        "attention_mask": pad([[1] * len(row) for row in ids], 0, "right"),
        "labels": pad(labels, IGNORE, "right"),
    }


def scored_batch(rows: Sequence[TokenizedExample], pad_token_id: int) -> dict[str, Tensor]:
    """`target_batch`, with EOS as padding: it is predicted and never read, in generation too."""
    batch = target_batch(rows, pad_token_id)
    return batch | {"attention_mask": F.pad(batch["attention_mask"][:, 1:], (0, 1))}


def check_context(
    examples: Sequence[Example], rows: Sequence[TokenizedExample], context: int, new_tokens: int = 0
) -> None:
    """Refuse examples that would not fit the model's context.

    Args:
        rows: the examples' tokens.
        new_tokens: that a model may write after a prompt.

    Raises:
        ValueError: names the first such example and its length.
    """
    for example, row in zip(examples, rows, strict=True):
        length = len(row.prompt_ids) + max(len(row.target_ids), new_tokens)
        if length > context:
            raise ValueError(
                f"an example takes {length} tokens, the model's context holds {context}: "
                f"{str(example.prompt_record)[:60]!r}"
            )
