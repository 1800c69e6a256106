"""Merge an adapter into its base model: `python -m delta_transcoders.own_study.merge --help`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from delta_transcoders.command import run
from delta_transcoders.files import finish_output, new_output, read_json
from delta_transcoders.hub import local_folder

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

KIND = "merged_adapter"
TOKENIZER_FILES = ["tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*"]
ADAPTER_FILES = ["adapter_config.json", "adapter_model.safetensors", *TOKENIZER_FILES]


def adapter_weights(adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of a LoRA adapter, one at a time.

    Raises:
        FileNotFoundError, ConnectionError: no such folder, or no weights in it.
    """
    from safetensors import safe_open

    path = local_folder(adapter, ADAPTER_FILES) / "adapter_model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(
            f"the adapter {adapter!r} has no adapter_model.safetensors; save it with peft's save_pretrained"
        )
    with safe_open(path, "pt") as file:
        for name in file.keys():  # noqa: SIM118, no mapping
            yield name, file.get_tensor(name)


def check_adapter(base_model: str, adapter: str) -> None:
    """Refuse an adapter for another base, before it is merged or anything is made of it.

    Raises:
        ValueError: a weight for a module that the base does not have, of another shape, or of another rank
            than adapter_config.json says; names it.
    """
    from delta_transcoders.weights import StoredWeights

    shapes = StoredWeights(base_model).shapes()
    config = read_json(local_folder(adapter, ADAPTER_FILES) / "adapter_config.json")
    ranks = {config.get("r"), *(config.get("rank_pattern") or {}).values()}
    for name, weight in adapter_weights(adapter):
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        if part not in ("A.weight", "B.weight"):
            continue  # whole modules, which peft compares
        of = f"the adapter {adapter!r} is not for {base_model!r}"
        if f"{module}.weight" not in shapes:
            raise ValueError(f"{of}, which has no {module}: give the base that it was trained on")
        size = weight.shape[1] if part[0] == "A" else weight.shape[0]
        if size not in shapes[f"{module}.weight"]:
            raise ValueError(
                f"{of}: its {module} is {size} wide, the model's {shapes[f'{module}.weight']}; give the base "
                "that it was trained on"
            )
        rank = weight.shape[0] if part[0] == "A" else weight.shape[1]
        if rank not in ranks:
            raise ValueError(
                f"the adapter {adapter!r}: its adapter_config.json says rank {config.get('r')}, {module} has "
                f"{rank}: the two files are of different adapters"
            )


def adapter_tokenizer(base_model: str, adapter: str) -> PreTrainedTokenizerBase:
    """The tokenizer that an adapter was trained with: its own where its folder has one, or the base's.

    Raises:
        FileNotFoundError, ConnectionError: one of them is not to be had.
        ValueError: its own makes other token ids of a text than the base's.
    """
    from delta_transcoders.language_models import load_tokenizer

    folder = local_folder(adapter, ADAPTER_FILES)
    tokenizer = load_tokenizer(base_model)
    template = tokenizer.chat_template
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        tokenizer = load_tokenizer(base_model, base_model, folder=folder)
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    else:
        template = tokenizer.chat_template or template
    tokenizer.chat_template = template
    return tokenizer


def layers_of_adapter(adapter: str, blocks_path: str) -> set[int]:
    """The layers whose MLP an adapter changes: those with a part of it that is not zero.

    Args:
        blocks_path: of the model's family.
    """
    changed, mlp = set(), re.compile(rf"{re.escape(blocks_path)}\.(\d+)\.mlp\.")
    for name, weight in adapter_weights(adapter):
        found = mlp.search(name)
        if found and not name.endswith("lora_A.weight") and weight.any():
            changed.add(int(found[1]))
    return changed


def merge(base_model: str, adapter: str, output: str | Path, dtype: str = "float32") -> None:
    """Write the base model with the adapter's weights added, and the adapter's tokenizer.

    Args:
        base_model, adapter: folders or hub ids.
        dtype: that the sum, of float32 numbers, is written in.

    Raises:
        FileNotFoundError, ConnectionError: one of them is not to be had.
        ValueError: see `check_adapter` and `adapter_tokenizer`; or what peft says of an adapter that it
            cannot read.
    """
    import torch
    from peft import PeftModel

    from delta_transcoders.language_models import load_model

    check_adapter(base_model, adapter)
    # A small change would be rounded away in bfloat16 before it is added.
    model, tokenizer = load_model(base_model), adapter_tokenizer(base_model, adapter)
    try:
        model = PeftModel.from_pretrained(model, str(local_folder(adapter, ADAPTER_FILES)))
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the adapter {adapter!r} cannot be read: {' '.join(str(error).split())[:200]}"
        ) from error
    with new_output(output, KIND) as folder:
        model.merge_and_unload().to(getattr(torch, dtype)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        finish_output(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base_model", required=True, help="folder or hub id")
    parser.add_argument("--adapter", required=True, help="folder or hub id")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of what is written; the sum is one of float32 numbers",
    )
    args = vars(parser.parse_args())
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    merge(**args)
    print(f"written: {args['output']}")


if __name__ == "__main__":
    run(main)
