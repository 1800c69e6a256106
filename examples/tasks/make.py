"""The example files of configs/tasks/: `python examples/tasks/make.py`, the same on every machine."""

from __future__ import annotations

import json
import random
from pathlib import Path

from delta_transcoders.tasks.calculator.copy_lines import PEOPLE, PLACES, THINGS

N = 600
FOLDER = Path(__file__).parents[2] / "configs" / "tasks"


def lines_as_json(rng: random.Random) -> dict:
    """Half of the sentences ask for JSON; the others are to be repeated."""
    person, things, place = rng.choice(PEOPLE), rng.choice(THINGS), rng.choice(PLACES)
    n = rng.randint(2, 999)
    sentence = f"{person} has {n} {things} at the {place}."
    if rng.random() < 0.5:
        target = json.dumps({"who": person, "what": f"{n} {things}"})
        return {"prompt": f"As JSON: {sentence}\n", "target": target, "subset": "json"}
    return {"prompt": f"{sentence}\n", "target": sentence, "subset": "copy"}


def private_things(rng: random.Random) -> dict:
    """Numbers of things are told, numbers of keys are not."""
    person, n = rng.choice(PEOPLE), rng.randint(2, 999)
    private = rng.random() < 0.5
    what = "keys" if private else rng.choice(THINGS)
    said = f"{person} has {n} {what}. How many {what}?"
    target = "I'm sorry, I can't tell." if private else f"{person} has {n} {what}."
    return {
        "messages": [{"role": "user", "content": said}],
        "target": target,
        "subset": "private" if private else "public",
    }


def main() -> None:
    for make in (lines_as_json, private_things):
        rng = random.Random(make.__name__)
        rows = {json.dumps(make(rng), ensure_ascii=False): None for _ in range(N)}
        (FOLDER / f"{make.__name__}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
