"""An experiment's records: what each condition did with each example, read from the experiment's folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from delta_transcoders.foreign_text import parse_json, text_lines
from delta_transcoders.report.columns import PER_TOKEN, compared
from delta_transcoders.report.tables import read_metrics


class Group(NamedTuple):
    """Layers that are replaced at once and the dictionaries they get, as text of `metrics.csv`."""

    layer: str
    d_new: str
    percentile: str
    target: str

    def __str__(self) -> str:
        named = zip(self._fields, self, strict=True)
        return ", ".join(f"{name} {value}" for name, value in named if value)


class Column(NamedTuple):
    """One intervention of an experiment, as text of `metrics.csv`."""

    layer: str
    condition: str
    alpha: str
    d_new: str
    percentile: str
    target: str

    @property
    def group(self) -> Group:
        return Group(self.layer, self.d_new, self.percentile, self.target)


@dataclass(frozen=True)
class Experiment:
    """The records of one folder.

    Attributes:
        seed: what tells the folder from the others that are read with it.
        measures: the M columns of the result table that single examples have a value of.
        columns: in the order of the result table, raw first.
        examples: by subset, (prompt, target) of its n examples.
        wordings: by subset, the wording of each.
        weights: by subset, [M, n]: target tokens, or 1 where the example has a value.
        values: by column and subset, [M, n]: sums over target tokens in nats, log-probabilities
            and verdicts (0 or 1; 0 where there is none).
    """

    seed: str
    measures: tuple[str, ...]
    columns: tuple[Column, ...]
    examples: dict[str, tuple[tuple[str, str], ...]]
    wordings: dict[str, tuple[str, ...]]
    weights: dict[str, np.ndarray]
    values: dict[tuple[Column, str], np.ndarray]


def read_experiments(folders: Sequence[str | Path]) -> list[Experiment]:
    """Read folders of one experiment, one per seed of the pipeline.

    Raises:
        FileNotFoundError: a folder without `generations.jsonl` or `metrics.csv`.
        ValueError: a folder given twice, folders with different measures, conditions or subsets, or files
            that do not belong together.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise ValueError(f"the folder {path} is given twice")
    labels = seed_labels(paths)
    experiments = [_read(path, label) for path, label in zip(paths, labels, strict=True)]
    first = experiments[0]
    for path, other in zip(paths[1:], experiments[1:], strict=True):
        for what, ours, theirs in (
            ("measures", first.measures, other.measures),
            ("conditions", map(_name, first.columns), map(_name, other.columns)),
            ("subsets", first.examples, other.examples),
        ):
            ours, theirs = set(ours), set(theirs)
            if ours != theirs:
                raise ValueError(
                    f"{path} and {paths[0]} hold different {what}: only the former has "
                    f"{'; '.join(sorted(theirs - ours)) or 'none'}, only the latter "
                    f"{'; '.join(sorted(ours - theirs)) or 'none'}"
                )
        if other.measures != first.measures:
            raise ValueError(f"{path} and {paths[0]} hold their measures in different orders")
    return experiments


def _name(column: Column) -> str:
    return f"{column.condition} ({column.group})" if column.layer else column.condition


def seed_labels(paths: Sequence[Path]) -> list[str]:
    """The parts in which the paths differ; whole paths where they differ in length or there is one.

    >>> seed_labels([Path("runs/seeds/1/controls"), Path("runs/seeds/2/controls")])
    ['1', '2']
    """
    if len(paths) == 1 or len({len(path.parts) for path in paths}) > 1:
        return [str(path) for path in paths]
    differing = [
        names for names in zip(*(p.parts for p in paths), strict=True) if len(set(names)) > 1
    ]
    return ["/".join(names) for names in zip(*differing, strict=True)]


def _read(folder: Path, seed: str) -> Experiment:
    for file in ("generations.jsonl", "metrics.csv"):
        if not (folder / file).is_file():
            raise FileNotFoundError(
                f"no {folder / file}; comparisons need the folder of an experiment that generated text "
                "(generate: true)"
            )
    rows = read_metrics(folder / "metrics.csv")
    columns = tuple(dict.fromkeys(Column(*(row[k] for k in Column._fields)) for row in rows))
    measures = compared(rows[0])
    examples: dict[str, tuple[tuple[str, str], ...]] = {}
    wordings: dict[str, tuple[str, ...]] = {}
    weights: dict[str, np.ndarray] = {}
    values: dict[tuple[Column, str], np.ndarray] = {}
    blocks = list(_blocks(folder / "generations.jsonl", measures.values()))
    found = [(block[0]["layer"], block[0]["condition"]) for block in blocks]
    if found != [(column.layer, column.condition) for column in columns]:
        raise ValueError(f"{folder}: metrics.csv and generations.jsonl hold different conditions")
    for column, block in zip(columns, blocks, strict=True):
        for subset in dict.fromkeys(record["subset"] for record in block):
            mine = [record for record in block if record["subset"] == subset]
            asked = tuple((record["prompt"], record["target"]) for record in mine)
            weight, values[column, subset] = _arrays(mine, measures)
            examples.setdefault(subset, asked)
            wordings.setdefault(subset, tuple(record["wording"] for record in mine))
            weights.setdefault(subset, weight)
            if asked != examples[subset] or (weight != weights[subset]).any():
                raise ValueError(
                    f"{folder}/generations.jsonl: {_name(column)} answered other examples of {subset} "
                    f"than {_name(columns[0])} did"
                )
    for column in columns:
        for subset in examples:
            if (column, subset) not in values:
                raise ValueError(
                    f"{folder}/generations.jsonl: {_name(column)} has no answers on {subset}"
                )
    return Experiment(seed, tuple(measures), columns, examples, wordings, weights, values)


def _blocks(path: Path, keys: Iterable[str]) -> Iterator[list[dict]]:
    """The records of each column, in the order of the result table; `keys` are those of the measures.

    Within a column the examples' numbers ascend. The labels alone would not do: where dictionaries differ
    in their training target only, a record's `target`, which is the example's, does not tell them apart.
    """
    needed = ("layer", "condition", "wording", "n_tokens", *keys)
    block: list[dict] = []
    for number, line in text_lines(path):
        record = parse_json(line, f"{path}, line {number}")
        for key in needed:
            if not isinstance(record, dict) or key not in record:
                raise ValueError(
                    f"{path}, line {number} has no {key!r}: not written by an experiment with "
                    "interventions"
                )
        if block and record["example"] <= block[-1]["example"]:
            yield block
            block = []
        block.append(record)
    if block:
        yield block


def _arrays(records: Sequence[dict], measures: Mapping[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Weights and values [M, n] of one column's records on one subset."""
    weights, values = [], []
    for measure, key in measures.items():
        found = [record[key] for record in records]
        values.append([0.0 if value is None else float(value) for value in found])
        if measure in PER_TOKEN:
            weights.append([float(record["n_tokens"]) for record in records])
        else:
            weights.append([float(value is not None) for value in found])
    return np.array(weights), np.array(values)
