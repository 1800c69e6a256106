"""What is found out about a study's models and examples before its first stage: seconds, and only once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from delta_transcoders.own_study.file import OwnStudy, make_task

FEWEST_WORDINGS, FEWEST_TOKENS = 40, 20_000
"""Below these a delta learns the wordings themselves, or too little to tell features apart."""


@dataclass(frozen=True)
class Checked:
    """
    Attributes:
        stamp: of all that was looked at; another one asks for a new look.
        n_tokens: of prompts and targets together.
        n_prompt, n_target: tokens of the longest prompt, and of the longest target with EOS.
        context: longest text that the model takes.
        changed: layers of which the finetune changed the MLP.
    """

    stamp: str
    n_tokens: int
    n_prompt: int
    n_target: int
    context: int
    changed: list[int]


def checked(own: OwnStudy, saved: Path) -> Checked:
    """What `saved` holds, where models and examples are still the same; found out anew otherwise.

    Raises:
        FileNotFoundError, ConnectionError: a model that is not to be had.
        ValueError: models of other architectures or tokenizers, an adapter for another base, a finetune that
            changed no MLP where there are no dictionaries, or a tokenizer that cannot make a prompt.
    """
    stamp = _stamp(own)
    if saved.is_file():
        try:
            known = Checked(**json.loads(saved.read_text(encoding="utf-8")))
        except (ValueError, TypeError):  # of another version
            known = None
        if known and known.stamp == stamp and _is_sound(known):
            return known
    return _look(own, stamp)


def _is_sound(found: Checked) -> bool:
    """Whether every value is of its field's type."""
    for field in fields(found):
        value, kinds = getattr(found, field.name), field.type.partition("[")[0].split(" | ")
        if ("None" if value is None else type(value).__name__) not in kinds:
            return False
    return True


def _look(own: OwnStudy, stamp: str) -> Checked:
    from delta_transcoders.families import family_of
    from delta_transcoders.language_models import (
        check_same_architecture,
        load_config,
        load_tokenizer,
        tokenize,
    )
    from delta_transcoders.own_study.merge import check_adapter, layers_of_adapter
    from delta_transcoders.weights import StoredWeights, changed_mlps

    family = family_of(load_config(own.base_model))
    if own.is_adapter:
        tokenizer = load_tokenizer(own.base_model)
        check_adapter(own.base_model, own.finetuned_model)
        changed = sorted(layers_of_adapter(own.finetuned_model, family.blocks_path))
    else:
        check_same_architecture(own.base_model, own.finetuned_model)
        tokenizer = load_tokenizer(own.finetuned_model, own.base_model)  # it has the chat template
        models = (StoredWeights(source) for source in (own.base_model, own.finetuned_model))
        changed = changed_mlps(*models, range(family.n_layers), family.site)
    rows = tokenize(tokenizer, make_task(own.task), own.loaded)
    return Checked(
        stamp=stamp,
        n_tokens=sum(map(len, rows)),
        n_prompt=max(len(row.prompt_ids) for row in rows),
        n_target=max(len(row.target_ids) for row in rows),
        context=family.context,
        changed=changed,
    )


def _stamp(own: OwnStudy) -> str:
    seen = [
        [own.task, own.base_model, own.finetuned_model],
        [_files(source) for source in (own.base_model, own.finetuned_model)],
        hashlib.sha256(Path(own.examples).expanduser().read_bytes()).hexdigest(),
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _files(source: str) -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of what is in a folder; none of a hub id."""
    files = sorted(p for p in Path(source).expanduser().glob("*") if p.is_file())
    return [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]


def studied_layers(own: OwnStudy, found: Checked) -> tuple[int, ...]:
    """Those of the layers asked for that a delta can be trained on.

    Raises:
        ValueError: there are no dictionaries, and the finetune changed the MLP of none of them.
    """
    if own.dictionaries:
        return own.layers
    layers = tuple(layer for layer in own.layers if layer in found.changed)
    if not layers:
        where = "any layer" if not found.changed else f"the layers {list(own.layers)}"
        raise ValueError(
            f"{own.file}: the finetune changed no MLP: {own.finetuned_model!r} has those of "
            f"{own.base_model!r} in {where}. Without dictionaries that change is what a delta learns: give "
            "the finetuned model, the layers that it changed, or dictionaries"
        )
    return layers


def check_context(own: OwnStudy, found: Checked, max_new_tokens: int) -> None:
    """
    Raises:
        ValueError: the longest prompt and an answer do not fit the model's context.
    """
    need = found.n_prompt + max(found.n_target, max_new_tokens)
    if need > found.context:
        raise ValueError(
            f"{own.file}: the longest prompt of {own.examples} has {found.n_prompt} tokens and its answer up "
            f"to {need - found.n_prompt}, the model's context holds {found.context}: shorten the prompt, or "
            "give behaviour, exp2a and exp2b a smaller model.max_new_tokens"
        )


def too_few(n_wordings: int, found: Checked) -> list[str]:
    """Warnings before a run of too little data.

    >>> too_few(12, Checked("", 30_000, 9, 9, 99, []))
    ['12 wordings, fewer than 40: what is found may hold for these alone']
    """
    warnings = []
    if n_wordings < FEWEST_WORDINGS:
        what = "what is found may hold for these alone"
        warnings.append(f"{n_wordings} wordings, fewer than {FEWEST_WORDINGS}: {what}")
    if found.n_tokens < FEWEST_TOKENS:
        what = "a delta may not learn all that there is"
        warnings.append(f"{found.n_tokens:,} tokens, fewer than {FEWEST_TOKENS:,}: {what}")
    return warnings


def as_json(found: Checked) -> str:
    return json.dumps(asdict(found), indent=1) + "\n"
