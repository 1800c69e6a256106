"""Language models by folder or hub id: loading, and losses on given targets.

Shapes: B rows, T positions, N supervised tokens (those with a label other than -100), V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from delta_transcoders.hub import check_hub_id
from delta_transcoders.toolcalls.examples import Example

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORE = -100


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
        ValueError: not a Gemma 2 model; names what it is.
    """
    folder = Path(source)
    if not folder.is_dir():
        check_hub_id(source, "model folder")
        return
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"the model folder {source!r} has no config.json")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise FileNotFoundError(
            f"the model folder {source!r} has no tokenizer (tokenizer.json); save it there with "
            "`tokenizer.save_pretrained`"
        )
    try:
        architecture = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{folder / 'config.json'} is damaged: {error}") from error
    if architecture != "gemma2":
        raise ValueError(
            f"{folder / 'config.json'} has model_type {architecture!r}; hook points and norms are those of "
            "Gemma 2 (gemma2)"
        )


def _unreachable(source: str, error: Exception) -> OSError:
    if Path(source).is_dir():
        return FileNotFoundError(f"the model folder {source!r} cannot be loaded: {error}")
    return ConnectionError(
        f"{source!r} is neither a local folder nor to be had from the Hugging Face hub "
        f"({type(error).__name__}). Where there is a network and, for gated models, an accepted licence: "
        f"`hf download {source} --local-dir models/{source.split('/')[-1]}`, then give that folder "
        "in place of the hub id."
    )


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id, padding on the left."""
    from transformers import AutoTokenizer

    check_model_source(source)
    try:
        return AutoTokenizer.from_pretrained(source, padding_side="left")
    except OSError as error:
        raise _unreachable(source, error) from error


@on_cpu()
def load_model(source: str, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model of a folder or hub id, on the CPU, in evaluation mode with eager attention.

    Args:
        source: folder or hub id.
        dtype: torch's name of the weights' type, `float32` or `bfloat16`.
    """
    from transformers import AutoModelForCausalLM

    check_model_source(source)
    try:
        return AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, dtype), attn_implementation="eager"
        ).eval()
    except (OSError, SafetensorError) as error:
        raise _unreachable(source, error) from error


def encode(
    tokenizer: PreTrainedTokenizerBase, example: Example, bare: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of the prompt (BOS, input, newline; `bare`: the input alone) and of target and EOS.

    The two are encoded apart, so that training, cross-entropy and generation see the same prompt ids.
    """
    text = example.input if bare else example.prompt
    prompt = tokenizer(text, add_special_tokens=not bare).input_ids
    target = tokenizer(example.target, add_special_tokens=False).input_ids
    return prompt, [*target, tokenizer.eos_token_id]


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
    hidden_BTD = model.model(
        input_ids=input_ids_BT,
        attention_mask=attention_mask_BT,
        position_ids=position_ids(attention_mask_BT),
        use_cache=False,
    ).last_hidden_state
    supervised = labels_BT[:, 1:] != IGNORE
    logits_NV = model.get_output_embeddings()(hidden_BTD[:, :-1][supervised]).float()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    if softcap is not None:
        logits_NV = torch.tanh(logits_NV / softcap) * softcap
    return logits_NV, labels_BT[:, 1:][supervised]


def token_nll(
    model: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor, labels_BT: Tensor
) -> Tensor:
    """Negative log-likelihood [N] in nats of the supervised labels."""
    logits_NV, labels_N = supervised_logits(model, input_ids_BT, attention_mask_BT, labels_BT)
    return F.cross_entropy(logits_NV, labels_N, reduction="none")


def target_batch(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], bare: bool = False
) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask`, `labels` [B, T]; only target and EOS are supervised.

    Args:
        bare: without BOS and newline, see `encode`.
    """
    pairs = [encode(tokenizer, example, bare) for example in examples]
    input_ids = pad([p + t for p, t in pairs], tokenizer.pad_token_id, "right")
    labels = pad([[IGNORE] * len(p) + t for p, t in pairs], IGNORE, "right")
    mask = pad([[1] * (len(p) + len(t)) for p, t in pairs], 0, "right")
    return {"input_ids": input_ids, "attention_mask": mask, "labels": labels}


def check_context(
    tokenizer: PreTrainedTokenizerBase, examples: Sequence[Example], context: int, new_tokens: int
) -> None:
    """Refuse examples that would not fit the model's context.

    Raises:
        ValueError: names the first such example and its length.
    """
    for example in examples:
        prompt, target = encode(tokenizer, example)
        length = len(prompt) + max(len(target), new_tokens)
        if length > context:
            raise ValueError(
                f"an example takes {length} tokens, the model's context holds {context}: "
                f"{example.input[:60]!r}"
            )
