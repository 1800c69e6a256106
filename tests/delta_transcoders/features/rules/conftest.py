"""Two planted units of each kind: on a half of the wordings, random words with a call at their end."""

import subprocess
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest

from delta_transcoders.features.rules.firing import Text, write_firing
from delta_transcoders.features.rules.units import Unit
from delta_transcoders.tasks.wordings import half_of

NAMES = ("U1", "U2", "U3", "U4")
WORDS = (" cat", " dog", " sun", " 12", "\n")
INFO = {"delta": "runs/x/delta", "model_fingerprint": "f" * 64, "delta_fingerprints": {"0": "d"}}
RULES = """\
U1:
  says: an animal
  where: [{token: ' (cat|dog)'}]
U2:
  says: what comes after a line break, or a sun after a cat
  where:
    - {before: '\\n'}
    - {before: ' cat', token: ' sun'}
U3:
  says: a number after a call's beginning
  where: [{before: '<call>.*', token: ' \\d+'}]
U4:
  says: nothing can be said
  where: []
"""


def words_of(half: str, n: int) -> list[str]:
    return list(islice((f"wording {i}" for i in count() if half_of(f"wording {i}") == half), n))


def planted_margins(tokens: tuple[str, ...], rng: np.random.Generator) -> np.ndarray:
    """Of the first token nothing is read; U4 fires at random."""
    margins_TU = np.full((len(tokens), 4), -1.0, dtype=np.float32)
    for t, token in enumerate(tokens):
        last = tokens[t - 1] if t else ""
        fires = (
            token in (" cat", " dog"),
            last == "\n" or (last == " cat" and token == " sun"),
            token == " 12" and "<call>" in tokens[:t],
            rng.random() < 0.2,
        )
        margins_TU[t] = np.where(fires, 1 + rng.random(4), -1)
    margins_TU[0] = np.nan
    return margins_TU


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """`planted("A")`: the folder of that half, 3 texts of each of 20 wordings."""
    folder = tmp_path_factory.mktemp("planted")
    kinds = [("feature", "effect"), ("feature", "seed"), ("neuron", "effect"), ("neuron", "seed")]
    units = [
        Unit(name, kind, way, pair=i % 2, layer=i, number=7, attribution=0.5, rate=0.2)
        for i, (name, (kind, way)) in enumerate(zip(NAMES, kinds, strict=True))
    ]
    units[2] = replace(units[2], sign=-1, threshold=0.25)

    def make(half: str, opened_for: str | None = None):
        rng = np.random.default_rng(ord(half))
        texts = []
        for example, wording in enumerate(3 * words_of(half, 20)):
            words = rng.choice(np.array(WORDS, dtype=object), 30).tolist()
            words[20] = "<call>"
            texts.append(Text(example, "ask", wording, ("<s>", *words)))
        margins_PU = np.concatenate([planted_margins(text.tokens, rng) for text in texts])
        write_firing(folder / half, units, texts, margins_PU, opened_for, INFO)
        return folder / half

    return make


@pytest.fixture(scope="session")
def names():
    """Of the planted units."""
    return NAMES


@pytest.fixture(scope="session")
def rules_text():
    """What is true of them."""
    return RULES


@pytest.fixture
def git(tmp_path, monkeypatch):
    """`git("add", ".")` in an empty repository, which is the working directory."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> str:
        identity = ("-c", "user.name=A", "-c", "user.email=a@b.c")
        command = ["git", *identity, *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    run("init", "--quiet")
    return run
