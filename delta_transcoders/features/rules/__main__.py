"""Rules for drawn features and neurons, committed before the texts are opened that they are scored on.

    python -m delta_transcoders.features.rules draw runs/tiny/unit_firing_a rules/tiny
    python -m delta_transcoders.features.rules score rules/tiny runs/tiny/unit_firing_a
    python -m delta_transcoders.features.rules score rules/tiny runs/tiny/unit_firing_{b,a}

`draw` writes what rules are written from, and a file to write them into. `score` tries them on half A as
often as you like; on half B, which is opened for committed rules, it writes `scores.csv` and `summary.csv`:
on all tokens, and where half A is given too on those that are new as well.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders.command import run


def draw(firing: Path, out: Path) -> str:
    """Write `units.json`, `contexts.txt` and an empty `rules.yaml`; returns what to say.

    Raises:
        FileExistsError: there are rules in the folder.
        ValueError: not a table of half A.
    """
    from delta_transcoders.features.rules.contexts import contexts_text
    from delta_transcoders.features.rules.firing import read_firing
    from delta_transcoders.features.rules.language import RULES_NAME, write_template
    from delta_transcoders.features.rules.units import UNITS_NAME, write_units
    from delta_transcoders.files import write_text

    found = read_firing(firing)
    if found.half != "A":
        raise ValueError(f"{firing} is of half B: rules are written from half A alone")
    if (out / RULES_NAME).exists():
        raise FileExistsError(f"{out / RULES_NAME} is there already: give another folder")
    write_template(out, [unit.name for unit in found.units])
    write_units(out, found.units, found.info)
    write_text(out / "contexts.txt", contexts_text(found))
    return (
        f"{out}: contexts of {len(found.units)} units in contexts.txt. Write a rule for each into "
        f"{RULES_NAME}, then commit it with {UNITS_NAME}, which says what they are: leave it closed till then"
    )


def score(out: Path, firing: Path, half_a: Path | None = None) -> str:
    """Score the rules on one half, and write the tables if it is half B; returns a table to print.

    Args:
        half_a: the table that they were written from, beside half B: they are scored also on the tokens that
            no text of it has with the same text before them.

    Raises:
        FileNotFoundError, ValueError: a missing or damaged file; a table of other units; rules that are not
            committed, or others than half B was opened for.
    """
    from delta_transcoders.features.rules.committed import committed, rules_sha256
    from delta_transcoders.features.rules.firing import read_firing
    from delta_transcoders.features.rules.language import read_rules
    from delta_transcoders.features.rules.scores import scored, write_scores
    from delta_transcoders.features.rules.units import read_units

    units, info = read_units(out)
    found = read_firing(firing)
    if (found.units, found.info) != (units, info):
        raise ValueError(f"{firing} is of other units than {out}: were they drawn anew?")
    rules = read_rules(out, [unit.name for unit in units])
    commit = committed(out) if found.half == "B" else ""
    if found.half == "B" and found.opened_for != rules_sha256(out):
        raise ValueError(
            f"the rules in {out} are others than half B was opened for: take those back "
            f"(`git log {out}`), or draw other units for new ones (--model.seed)"
        )
    tables = {"all": found}
    if half_a is not None:
        written_from = read_firing(half_a)
        if (written_from.half, found.half) != ("A", "B") or written_from.units != units:
            raise ValueError(f"{half_a} is not half A of {firing}, a table of half B")
        tables["new"] = found.without_prefixes_of(written_from)
    scores = {name: scored(table, rules) for name, table in tables.items()}
    if commit:
        rows, means = (
            [{"tokens": name} | row for name, tables in scores.items() for row in tables[kind]]
            for kind in (0, 1)
        )
        write_scores(out, rows, means, commit)
    return "\n".join(
        _table(rows, means, found.half, name) for name, (rows, means) in scores.items()
    )


def _table(rows: Sequence[dict], means: Sequence[dict], half: str, tokens: str) -> str:
    def number(row: dict) -> str:
        names = (f"balanced_accuracy{end}" for end in ("", "_ci_low", "_ci_high"))
        value, low, high = (row[name] for name in names)
        return "–".ljust(20) if value != value else f"{value:.3f} [{low:.3f}, {high:.3f}]"

    lines = [f"balanced accuracy on half {half}, {tokens} tokens"]
    for row in rows:
        kinds = f"{row['kind']:8}{row['place']:10}{row['drawn_by']:8}" if half == "B" else ""
        shares = "".join(f"{row[name]:8.3f}" for name in ("recall", "precision", "base_rate"))
        lines.append(f"{row['unit']:5}{kinds}{number(row)}{shares}  {row['says']}")
    if half == "B":
        for row in means:
            others = f", {row['n_unscored']} fire nowhere or everywhere" * bool(row["n_unscored"])
            what = f"{row['what']} by {row['drawn_by']}"
            lines.append(f"{what:28}{number(row)}  mean of {row['n_units']}{others}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m delta_transcoders.features.rules",
        description=__doc__.split("\n\n")[0],
        epilog="docs/LOOKING.md says how to go about it",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    drawing = commands.add_parser("draw", help="write contexts of half A, and a file for the rules")
    drawing.add_argument("firing", type=Path, metavar="HALF_A", help="e.g. runs/tiny/unit_firing_a")
    drawing.add_argument("out", type=Path, metavar="RULES", help="a folder that git keeps")
    scoring = commands.add_parser("score", help="say how well the rules do on one half")
    scoring.add_argument("out", type=Path, metavar="RULES", help="the folder that draw wrote")
    scoring.add_argument("firing", type=Path, metavar="HALF", help="e.g. runs/tiny/unit_firing_b")
    scoring.add_argument(
        "half_a", type=Path, nargs="?", metavar="HALF_A", help="beside half B: score new tokens too"
    )
    args = parser.parse_args()
    print(
        {
            "draw": lambda: draw(args.firing, args.out),
            "score": lambda: score(args.out, args.firing, args.half_a),
        }[args.command]()
    )


if __name__ == "__main__":
    run(main)
