"""What is found out about a study's models and examples before its first stage: seconds, and only once."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from delta_transcoders.own_study.file import OwnStudy, make_task
from delta_transcoders.tasks.paragraphs import Paragraphs
from delta_transcoders.tasks.task import Example

N_TEXTS = 200
"""Pieces of general text."""
FEWEST_WORDINGS, FEWEST_TOKENS = 40, 20_000
"""Below these a delta learns the wordings themselves, or too little to tell features apart."""


@dataclass(frozen=True)
class Checked:
    """
    Attributes:
        stamp: of all that was looked at; another one asks for a new look.
        n_tokens: of prompts and targets together.
        n_train_tokens: about as many of them are trained on.
        n_prompt, n_target: tokens of the longest prompt, and of the longest target with EOS.
        n_text: tokens of the longest piece of general text; 0 where there is none.
        context: longest text that the model takes.
        changed: layers of which the finetune changed the MLP.
        hook_site: that the dictionaries say they are for; None where they do not, or there are none.
        leading: how many of a text's first tokens they were not trained on, where more than usual.
        explained: the model that they say they are for; None where they do not, or there are none.
    """

    stamp: str
    n_tokens: int
    n_train_tokens: int
    n_prompt: int
    n_target: int
    n_text: int
    context: int
    changed: list[int]
    hook_site: str | None = None
    leading: int | None = None
    explained: str | None = None


def checked(own: OwnStudy, saved: Path) -> Checked:
    """What `saved` holds, where models and examples are still the same; found out anew otherwise.

    Raises:
        FileNotFoundError, ConnectionError: a model that is not to be had.
        ValueError: models of other architectures or tokenizers, an adapter for another base, a finetune that
            changed no MLP where there are no dictionaries, a tokenizer that cannot make a prompt, or
            dictionaries that do not fit, or of several kinds.
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
    from delta_transcoders.own_study.merge import (
        adapter_tokenizer,
        check_adapter,
        layers_of_adapter,
    )
    from delta_transcoders.weights import StoredWeights, changed_mlps

    family = family_of(load_config(own.base_model))
    if own.is_adapter:
        check_adapter(own.base_model, own.finetuned_model)
        tokenizer = adapter_tokenizer(own.base_model, own.finetuned_model)
        changed = sorted(layers_of_adapter(own.finetuned_model, family.blocks_path))
    else:
        check_same_architecture(own.base_model, own.finetuned_model)
        tokenizer = load_tokenizer(own.finetuned_model, own.base_model)  # it has the chat template
        dtype = own.dtype or own.size.dtype  # a change that it cannot hold is none
        models = (StoredWeights(source, dtype) for source in (own.base_model, own.finetuned_model))
        changed = changed_mlps(*models, range(family.n_layers), family.site)
    task = make_task(own.reading)
    rows = tokenize(tokenizer, task, own.loaded)
    general = tokenize(tokenizer, Paragraphs(), _texts(own)) if own.text else []
    n_trained = sum(len(r) for r, e in zip(rows, own.loaded, strict=True) if task.is_trained(e))
    return Checked(
        stamp=stamp,
        n_tokens=sum(map(len, rows)),
        n_train_tokens=round(n_trained * (1 - 2 * task.held_out)),
        n_prompt=max(len(row.prompt_ids) for row in rows),
        n_target=max(len(row.target_ids) for row in rows),
        n_text=max(map(len, general), default=0),
        context=family.context,
        changed=changed,
        **(_read_dictionaries(own, family.tokens.leading) if own.dictionaries else {}),
    )


def _texts(own: OwnStudy) -> list[Example]:
    """The pieces of general text that are read."""
    pieces = list(Paragraphs().read(own.text).values())
    return pieces[: own.options.get("spillover", {}).get("data.n_per_subset", N_TEXTS)]


WHICH = ("width", "base_files", "percentiles")
"""Options of `delta` that say which dictionaries of a set are meant."""


def which_dictionaries(own: OwnStudy) -> dict[str, Any]:
    """Those of `WHICH` that the study file gives."""
    given = own.options.get("delta", {})
    return {name: given[f"data.{name}"] for name in WHICH if f"data.{name}" in given}


def _read_dictionaries(own: OwnStudy, leading: int) -> dict[str, Any]:
    """Look for each layer's dictionary, and read the first one: where it reads, if not where all do.

    Args:
        leading: tokens of a text that the model's family leaves out anyway.
    """
    from delta_transcoders.dictionaries.bases import check_held, load_base

    which = which_dictionaries(own)
    one = {
        "width": which.get("width"),
        "files": which.get("base_files"),
        "percentile": which.get("percentiles", [0.5])[0],
    }
    try:
        check_held(own.dictionaries, own.layers, **one)
        _, base_id = load_base(own.dictionaries, own.layers[0], **one, d_model=own.size.d_model)
    except ValueError as error:
        raise ValueError(
            f"{own.file}: dictionaries: {error} (as in delta: {{data.width: 16384}})"
        ) from error
    more = base_id.leading if base_id.leading > leading else None
    return {
        "hook_site": base_id.hook_site,
        "leading": more,
        "explained": base_id.base_model,
    }


def _stamp(own: OwnStudy) -> str:
    seen = [
        [own.reading, own.base_model, own.finetuned_model, own.dtype],
        [own.dictionaries, own.layers if own.dictionaries else None, which_dictionaries(own)],
        [_files(source) for source in (own.base_model, own.finetuned_model)],
        _files(own.dictionaries, "**/*") if own.dictionaries else None,
        hashlib.sha256(Path(own.examples).expanduser().read_bytes()).hexdigest(),
        [repr(_texts(own))] if own.text else None,
    ]
    return hashlib.sha256(json.dumps(seen).encode()).hexdigest()


def _files(source: str, pattern: str = "*") -> list[tuple[str, int, int]]:
    """Names, sizes and times of change of what is in a folder; none of a hub id."""
    folder = Path(source).expanduser()
    files = sorted(p for p in folder.glob(pattern) if p.is_file())
    return [(str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]


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
        ValueError: the longest prompt and an answer, or a piece of text, do not fit the model's context.
    """
    if found.n_text > found.context:
        raise ValueError(
            f"{own.file}: a piece of {own.text} has {found.n_text} tokens, the model's context holds "
            f"{found.context}: leave out what is no text, as long strings without a space"
        )
    answer = max(found.n_target, max_new_tokens)
    need = found.n_prompt + answer
    shorten = "the prompt or the target" if answer == found.n_target else "the prompt"
    if need > found.context:
        raise ValueError(
            f"{own.file}: the longest prompt of {own.examples} has {found.n_prompt} tokens and its answer up "
            f"to {need - found.n_prompt}, the model's context holds {found.context}: shorten {shorten}, or "
            "give behaviour, exp2a and exp2b a smaller model.max_new_tokens"
        )


def too_few(n_wordings: int, found: Checked) -> list[str]:
    """Warnings before a run of too little data.

    >>> too_few(12, Checked("", 30_000, 9_000, 9, 9, 0, 99, []))
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
