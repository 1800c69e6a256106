"""Content hashes of tensors and texts: what a cache or a delta was made from, in 64 hex digits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


NESTED = "._original_component"
"""In a name that TransformerBridge gives to a parameter."""


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over sorted names, dtypes, shapes and bytes, whatever the device or memory layout.

    >>> a = {"w": torch.arange(6.0).view(2, 3)}
    >>> hash_tensors(a) == hash_tensors({"w": a["w"].T.contiguous().T})
    True
    >>> hash_tensors(a) == hash_tensors({"w": a["w"].view(3, 2)})
    False
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name!r} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def hash_texts(texts: Iterable[str]) -> str:
    """sha256 over texts in their order, each preceded by its length, so that boundaries count.

    >>> hash_texts(["ab", "c"]) == hash_texts(["a", "bc"])
    False
    """
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(f"{len(encoded)}:".encode())
        digest.update(encoded)
    return digest.hexdigest()


def check_hash(problem: str, recorded: str, here: str, found: str) -> None:
    """Refuse what was made with something else than what is here.

    Args:
        problem: what was made with what, as in "runs/delta was trained on another model".
        recorded: the hash it was made with.
        here: what is here instead, and `found` its hash.

    Raises:
        ValueError: the hashes differ; gives both, shortened.

    >>> check_hash("the delta is of another base", "a" * 64, "base.npz", "b" * 64)
    Traceback (most recent call last):
    ValueError: the delta is of another base: hash aaaaaaaaaaaa…, base.npz has bbbbbbbbbbbb…
    """
    if recorded != found:
        raise ValueError(f"{problem}: hash {recorded[:12]}…, {here} has {found[:12]}…")


def model_fingerprint(model: nn.Module) -> str:
    """Hash of a model's weights, the same before and after a TransformerBridge has wrapped it.

    A tied weight counts once. Another dtype is another model: its activations differ.
    """
    names = [name for name, _ in model.named_parameters()]
    held = dict(model.named_parameters(remove_duplicate=False))
    if any(NESTED in name for name in names):
        # The bridge nests each module in one more, adds aliases, and splits some weights into copies.
        with torch.device("meta"):
            names = [name for name, _ in type(model)(model.config).named_parameters()]
        held = {name.replace(NESTED, ""): parameter for name, parameter in held.items()}
    return hash_tensors({name: held[name] for name in names})


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Hash of what turns text into ids: vocabulary, rules, special tokens; padding is not in it."""
    rules = _rules(tokenizer)
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    return hash_texts([json.dumps(rules, sort_keys=True), json.dumps(special)])


def read_alike(one: PreTrainedTokenizerFast, other: PreTrainedTokenizerFast) -> bool:
    """Whether two tokenizers make the same ids of a text: by vocabulary, rules and added tokens.

    Which token pads or ends a text does not count: chat models often name others than their base.
    """
    ours, theirs = (_rules(tokenizer) for tokenizer in (one, other))
    for token in (*ours["added_tokens"], *theirs["added_tokens"]):
        token.pop("special")  # is left out when ids are decoded
    return ours == theirs


def _rules(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    for state in ("padding", "truncation"):  # left behind by the latest call
        rules.pop(state)
    return rules
