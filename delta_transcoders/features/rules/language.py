"""The language that rules are written in, and the file that holds them.

    U01:
      says: a digit of the second number inside a call
      where:
        - {before: '<call>[^<]*,\\d*', token: '\\d'}

A rule fires where any of its conditions holds. `token` is a regular expression that the whole token matches;
`before` one that matches what stands directly before the token, special tokens by their names and line
breaks included (`.` is any character). A condition with one of the two asks for nothing else. `where: []` is
the rule of a unit of which nothing can be said: it never fires.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from delta_transcoders.command import nearest, read_yaml

if TYPE_CHECKING:
    from delta_transcoders.features.rules.firing import Text

RULES_NAME = "rules.yaml"
HEADER = """\
# A rule for each unit, from its contexts in contexts.txt alone. It fires where any line of `where` holds:
# `token` is a regular expression (Python's) for the whole token, leading space included; `before` one for
# what stands directly before the token, from as far back as it likes. A line has one of them or both.
# Where nothing can be said: `where: []`, which never fires. `says` is the rule in words.
"""


@dataclass(frozen=True)
class Condition:
    """Holds where both expressions match; None matches anything."""

    token: re.Pattern | None
    before: re.Pattern | None

    def holds(self, text: str, start: int, token: str) -> bool:
        """
        Args:
            text: in which the token starts at `start`; what comes later is not looked at.
        """
        if self.token is not None and not self.token.fullmatch(token):
            return False
        return self.before is None or self.before.search(text, 0, start) is not None


@dataclass(frozen=True)
class Rule:
    """What one unit is said to fire on: `says` in words, `where` for a machine."""

    unit: str
    says: str
    where: tuple[Condition, ...]


def write_template(folder: str | Path, names: Iterable[str]) -> None:
    """Write `rules.yaml` with a rule for each unit that is still to be written.

    Raises:
        FileExistsError: there is one already.
    """
    path = Path(folder) / RULES_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    rules = "".join(f"{name}:\n  says: ''\n  where: []\n" for name in names)
    with path.open("x", encoding="utf-8") as file:
        file.write(HEADER + rules)


def read_rules(folder: str | Path, names: Sequence[str]) -> list[Rule]:
    """The rules of `rules.yaml`, one for each of these units, in this order.

    Raises:
        ValueError: a missing file or rule, an unknown unit or key, or an expression that is none; names the
            file, the unit and the place.
    """
    path = Path(folder) / RULES_NAME
    if not path.is_file():
        raise ValueError(
            f"{path} does not exist; `python -m delta_transcoders.features.rules draw` writes it"
        )
    said = {str(name): rule for name, rule in read_yaml(path).items()}
    if unknown := said.keys() - set(names):
        raise ValueError(f"{path}: {min(unknown)!r} is no unit; {nearest(min(unknown), names)}")
    if missing := set(names) - said.keys():
        raise ValueError(f"{path} has no rule for {min(missing)}: write one, or `where: []`")
    return [_rule(name, said[name], f"{path}: {name}") for name in names]


def _rule(name: str, said: object, where: str) -> Rule:
    said = _only(said, ("says", "where"), where)
    if missing := {"says", "where"} - said.keys():
        raise ValueError(f"{where} has no {min(missing)!r}")
    if not isinstance(said["says"], str) or not said["says"].strip():
        raise ValueError(f"{where}: says is {said['says']!r}, expected the rule in words")
    if not isinstance(said["where"], list):
        raise ValueError(f"{where}: where is {said['where']!r}, expected a list of conditions")
    places = enumerate(said["where"], start=1)
    conditions = tuple(_condition(given, f"{where}, where {i}") for i, given in places)
    return Rule(name, said["says"].strip(), conditions)


def _condition(said: object, where: str) -> Condition:
    said = _only(said, ("token", "before"), where)
    if not said:
        raise ValueError(f"{where} is empty: give token, before or both")
    token, before = (_pattern(said, name, where) for name in ("token", "before"))
    return Condition(token, before)


def _pattern(said: dict, name: str, where: str) -> re.Pattern | None:
    if name not in said:
        return None
    text = said[name]
    if not isinstance(text, str):
        raise ValueError(f"{where}: {name} is {text!r}, expected text: put it in quotes")
    try:
        return re.compile(text if name == "token" else rf"(?:{text})\Z", re.DOTALL)
    except re.error as error:
        raise ValueError(f"{where}: {name} is no regular expression ({error}): {text!r}") from None


def _only(said: object, known: Sequence[str], where: str) -> dict:
    if not isinstance(said, dict):
        raise ValueError(f"{where} is {said!r}, expected {' and '.join(known)}")
    if unknown := said.keys() - set(known):
        key = min(map(str, unknown))
        raise ValueError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
    return said


def predicted(rules: Sequence[Rule], texts: Sequence[Text]) -> np.ndarray:
    """Where the rules fire on all texts' tokens end to end, bool [P, U]."""
    fires = []
    for text in texts:
        whole, start = "".join(text.tokens), 0
        for token in text.tokens:
            fires.append([any(c.holds(whole, start, token) for c in r.where) for r in rules])
            start += len(token)
    return np.array(fires, dtype=bool).reshape(len(fires), len(rules))
