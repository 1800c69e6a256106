"""The page of findings: `python -m delta_transcoders.report.findings [RESULTS ...] [--registered DIR]`.

RESULTS are what `report.results` has kept of studies, one for each seed, as in `docs/results/4`: their
figures are written to `findings.csv` in the folder in which the claims were registered (`docs`, or
`docs/smollm2` of the real model), each per seed and pooled. Figures of what all seeds share (`--shared
docs/smollm2/results/base`) stand there once. From these files alone `docs/FINDINGS.md` is rendered, also
where no RESULTS are given. The page's template is `docs/findings.md.j2`, which includes that of the real
model; the pass conditions of the claims are in `findings_conditions.csv`, committed before the seeds run
(`REGISTERED.md`): a `figure`, its `part` (`value`, or an end of its interval, `low` or `high`), a
`comparison` and a `bound`: a number, another figure, or a number times a figure. A condition must hold for
each seed and for all of them pooled; a claim passes where all of its conditions hold, and the page says which
fail. With `--check` nothing is written: a page that is not what its figures make of it ends with an error.

A figure is named by words, and its number is never written by hand. `exp2a all SUBSET full mean_ce` is the
folder of an experiment within a study, the layers (`-` for raw), the subset, the condition and the column of
its `metrics.csv`. `full:raw` in place of a condition is a difference and `split:finetuning` a part of the gap
from raw to no_delta, both as `report.comparisons` has them; `full@32_mlp_difference` tells an experiment's
dictionaries apart by d_new and target. Any other table is named as a file: `curve/n90.csv delta=d32 n90` is
the column of the one row with these cells. What the page asks for since a seed was kept is read from the
tables that were kept of it. What some seed lacks is left out, and a claim about it reads "not tested".
"""

from __future__ import annotations

import argparse
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from delta_transcoders.command import run
from delta_transcoders.files import write_text
from delta_transcoders.metrics.intervals import t_interval
from delta_transcoders.report.columns import rates
from delta_transcoders.report.comparisons import POOLED
from delta_transcoders.report.feature_curve import MORE_THAN
from delta_transcoders.report.formatting import NOT_APPLICABLE, difference, interval, number
from delta_transcoders.report.records import seed_labels
from delta_transcoders.report.results import StudyTables, Value
from delta_transcoders.report.results import read_figures as read_kept
from delta_transcoders.report.tables import read_metrics, write_table
from delta_transcoders.report.templates import environment

DOCS = Path("docs")
TEMPLATE, FINDINGS = "findings.md.j2", "findings.csv"
MODULE = "python -m delta_transcoders.report.findings"
PASSES, FAILS, NOT_TESTED = "**passes**", "**fails**", "**not tested**"
CSV_COLUMNS = ("figure", "seed", "value", "low", "high")
COUNTS = ("n90", "n_layers", "n_random", "n_random_sufficient")
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


Figures = Mapping[str, Mapping[str, Value]]
"""By name, then by seed, `pooled` among them."""


class Condition(NamedTuple):
    """A line of `findings_conditions.csv`; see the module."""

    claim: str
    figure: str
    part: str
    comparison: str
    bound: str

    @property
    def figures(self) -> list[str]:
        return [self.figure, *([self._bound[1]] if self._bound[1] else [])]

    @property
    def _bound(self) -> tuple[float, str]:
        """A factor, and the figure that it is of, if any."""
        factor, times, figure = self.bound.partition(" * ")
        if times:
            return float(factor), figure
        return (1.0, self.bound) if " " in self.bound else (float(self.bound), "")

    def _least(self, bound: Value) -> float:
        """Below what is only known to be more than a number is what is below that number."""
        is_more_than = math.isinf(bound.value) and self.comparison in ("<", "<=")
        return bound.low if is_more_than else bound.value

    def failures(self, figures: Figures) -> list[str]:
        """The seeds (or `pooled`) in which it does not hold."""
        found = []
        factor, of = self._bound
        for seed, value in figures[self.figure].items():
            if of and len(figures[of]) > 1 and seed not in figures[of]:
                continue  # there is nothing to hold it against in this seed
            # What all seeds share has no other value than the pooled one.
            against = figures[of].get(seed, figures[of][POOLED]) if of else Value(1.0, 1.0, 1.0)
            bound = factor * self._least(against)
            # What is unknown (nan), or only known to be more than a number, meets no condition.
            known = math.isfinite(value.value) and math.isfinite(bound)
            if not (known and COMPARISONS[self.comparison](getattr(value, self.part), bound)):
                found.append(seed)
        return found

    def __str__(self) -> str:
        part = "" if self.part == "value" else f"{self.part} end of "
        return f"{part}{self.figure} {self.comparison} {self.bound}"


def read_conditions(docs: Path) -> list[Condition]:
    """
    Raises:
        ValueError: a line with an unknown part or comparison; names it.
    """
    path = docs / "findings_conditions.csv"
    conditions = [Condition(**row) for row in read_metrics(path)]
    for line, condition in enumerate(conditions, start=2):
        if condition.comparison not in COMPARISONS or condition.part not in Value._fields:
            raise ValueError(
                f"{path}, line {line}: need a part of {', '.join(Value._fields)} and a comparison of "
                f"{' '.join(COMPARISONS)}, got {condition.part!r} and {condition.comparison!r}"
            )
    return conditions


def _pooled(values: Sequence[Value], figure: str) -> Value:
    """Over seeds; where they agree to the last digit, the means of their own ends."""
    if len(values) == 1:
        return values[0]
    estimates = [value.value for value in values]
    if math.isnan(sum(estimates)):
        return Value(math.nan, math.nan, math.nan)
    if math.isinf(sum(estimates)):  # more than the mean of what each is at least
        least = [value.low if math.isinf(value.value) else value.value for value in values]
        return Value(math.inf, sum(least) / len(values), math.inf)
    if len(set(estimates)) == 1:
        lows, highs = ([getattr(value, end) for value in values] for end in ("low", "high"))
        return Value(estimates[0], sum(lows) / len(values), sum(highs) / len(values))
    mean, low, high = t_interval(estimates)
    *_, condition, column = ["", *figure.split()]
    if rates([column]) and ":" not in condition:  # a difference of rates may be negative
        low, high = max(low, 0.0), min(high, 1.0)
    return Value(mean, low, high)


def shown(name: str, figures: Figures, seeds: Sequence[str]) -> str:
    """A figure as the page has it; the page's seeds are in parentheses where they differ."""
    of_seeds = figures.get(name)
    if of_seeds is None:
        return NOT_APPLICABLE
    pooled = of_seeds[POOLED]
    *_, condition, column = name.split()
    one = _count if column in COUNTS else _one
    # What all seeds share has none of its own.
    found = [of_seeds.get(seed) for seed in seeds] if len(of_seeds) > 1 else []
    singly = [one(value) if value else NOT_APPLICABLE for value in found]
    if math.isnan(pooled.value):  # also where only one seed's is
        text = NOT_APPLICABLE
    elif math.isinf(pooled.value):
        if len(set(found)) > 1:
            # A mean over what is only known to be more than a number says less than each seed does.
            return " ".join(singly)
        text = f"more than {math.floor(pooled.low)}"
    elif ":" in condition:
        text = difference(*pooled)
    else:
        text = interval(*pooled) if pooled.low < pooled.high else one(pooled)
    differ = singly and set(singly) != {one(pooled)}
    return f"{text} ({' '.join(singly)})" if differ else text


def _count(value: Value) -> str:
    return f"{value.value:g}" if math.isfinite(value.value) else _one(value)


def _one(value: Value) -> str:
    return f"{MORE_THAN}{value.low:g}" if math.isinf(value.value) else number(value.value)


def verdict(claim: str, conditions: Sequence[Condition], figures: Figures, needs: str = "") -> str:
    """Whether a claim passes, and which of its conditions fail.

    Args:
        needs: a claim without which this one is not tested.

    Raises:
        ValueError: the claim has no condition.
    """
    if needs and not verdict(needs, conditions, figures).startswith(PASSES):
        return f"{NOT_TESTED}: rests on `{needs}`"
    mine = [c for c in conditions if c.claim == claim]
    if not mine:
        raise ValueError(f"findings_conditions.csv has no condition of the claim {claim!r}")
    if any(name not in figures for c in mine for name in c.figures):
        return NOT_TESTED
    of = _measured_in([name for c in mine for name in c.figures], figures)
    failed = [(c, seeds) for c in mine if (seeds := c.failures(figures))]
    if not failed:
        return PASSES + of
    return f"{FAILS}{of}: " + "; ".join(f"not {c} in {', '.join(seeds)}" for c, seeds in failed)


def _measured_in(names: Iterable[str], figures: Figures) -> str:
    """Which seeds have all of these figures, said where others are on the page."""
    every = {seed for of_seeds in figures.values() for seed in of_seeds} - {POOLED}
    # What all seeds share has none of its own.
    own = [set(figures[name]) - {POOLED} or every for name in names]
    found = [seed for seed in sorted(every) if all(seed in seeds for seeds in own)]
    return "" if len(found) == len(every) else f" (measured in {', '.join(found) or 'no one seed'})"


def figure_names(folder: Path, conditions: Sequence[Condition]) -> list[str]:
    """All figures of a folder's template and the conditions, in the order in which they first appear."""
    names: list[str] = []
    template = environment(folder).get_template(TEMPLATE)
    nothing = {"f": lambda *w: "", "v": lambda *w, **needs: ""}
    template.render(
        f=lambda *w: names.append(_name(w)) or "",
        v=nothing["v"],
        seeds=["any"],
        registered=lambda name: nothing | {"seeds": []},
    )
    return list(dict.fromkeys([*names, *(name for c in conditions for name in c.figures)]))


def _name(words: Iterable[object]) -> str:
    return " ".join(map(str, words))


def render(docs: Path) -> str:
    """The Markdown page, from the claims and figures of its folder and of folders within it.

    Its template has `f(words)`, `v(claim, needs=…)` and `seeds`, and `registered(folder)` with the same.
    """
    template = environment(docs).get_template(TEMPLATE)
    return template.render(**_known(docs), registered=lambda name: _known(docs / name))


def _known(folder: Path) -> dict[str, Any]:
    conditions, figures = read_conditions(folder), read_figures(folder / FINDINGS)
    seeds = list(dict.fromkeys(s for of_seeds in figures.values() for s in of_seeds if s != POOLED))
    return {
        "f": lambda *words: shown(_name(words), figures, seeds),
        "v": lambda claim, needs="": verdict(str(claim), conditions, figures, needs),
        "seeds": seeds,
    }


def write_figures(path: Path, figures: Figures) -> None:
    rows = [
        {"figure": name, "seed": seed} | value._asdict()
        for name, by_seed in figures.items()
        for seed, value in by_seed.items()
    ]
    write_table(path, CSV_COLUMNS, rows)


def read_figures(path: Path) -> dict[str, dict[str, Value]]:
    """None where there is no file yet."""
    figures: dict[str, dict[str, Value]] = {}
    for row in read_metrics(path) if path.is_file() else []:
        value = Value(*(float(row[key]) for key in Value._fields))
        figures.setdefault(row["figure"], {})[row["seed"]] = value
    return figures


def figures_of(results: Path, names: Iterable[str]) -> dict[str, Value]:
    """Figures that were kept of a seed, and by these names what its kept tables have besides.

    Differences (`full:raw`) are made from answers, which are not kept.

    Raises:
        FileNotFoundError: a folder without `figures.csv`.
    """
    found, tables = read_kept(results), StudyTables(results)
    for name in names:
        if name not in found and ":" not in name and tables.has(name):
            with suppress(ValueError):  # another row or column than its tables have
                found[name] = tables.figure(name)
    return found


def pool_results(
    folders: Sequence[Path], shared: Path | None = None, names: Sequence[str] = ()
) -> dict[str, dict[str, Value]]:
    """Figures per seed and pooled over the seeds that have them, and those of what the seeds share.

    Args:
        names: of figures that may have been asked for since a seed was kept; see `figures_of`.

    Raises:
        FileNotFoundError: a folder without `figures.csv`.
    """
    labels = seed_labels(folders) if len(folders) > 1 else [folder.name for folder in folders]
    by_seed = {s: figures_of(folder, names) for s, folder in zip(labels, folders, strict=True)}
    found = read_kept(shared) if shared else {}
    pooled = {name: {POOLED: value} for name, value in found.items()}
    for name in dict.fromkeys(name for figures in by_seed.values() for name in figures):
        of_seeds = {seed: figures[name] for seed, figures in by_seed.items() if name in figures}
        pooled[name] = {POOLED: _pooled(list(of_seeds.values()), name), **of_seeds}
    return pooled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "results",
        type=Path,
        nargs="*",
        metavar="RESULTS",
        help="one per seed; without any, the figures of findings.csv are taken",
    )
    parser.add_argument(
        "--registered", type=Path, metavar="DIR", help="folder of their claims (default: docs)"
    )
    parser.add_argument(
        "--shared", type=Path, metavar="RESULTS", help="of what the seeds have in common"
    )
    parser.add_argument("--docs", type=Path, default=DOCS, help="folder of the page")
    parser.add_argument(
        "--check", action="store_true", help="only compare the page with its figures"
    )
    args = parser.parse_args()
    if args.check and (args.results or args.shared):
        raise ValueError(f"--check compares the page with {FINDINGS} as it stands: give no RESULTS")
    claims, page = args.registered or args.docs, args.docs / "FINDINGS.md"
    if args.results or args.shared:
        names = figure_names(claims, read_conditions(claims))
        pooled = pool_results(args.results, args.shared, names)
        write_figures(claims / FINDINGS, {name: pooled[name] for name in names if name in pooled})
        if missing := [name for name in names if name not in pooled]:
            print(f"not measured in these results: {'; '.join(missing)}")
    text = render(args.docs)
    if args.check:
        if page.read_text(encoding="utf-8") != text:
            raise ValueError(f"{page} is not what the {FINDINGS} make of it: run {MODULE}")
        print(f"{page} is what the {FINDINGS} make of it")
        return
    write_text(page, text)
    print(f"written: {page}")


if __name__ == "__main__":
    run(main)
