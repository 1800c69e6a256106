"""One prompt under every intervention of a study: `delta-transcoders inspect STUDY PROMPT`."""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from delta_transcoders.command import run
from delta_transcoders.inspector.request import LONGEST_ANSWER, STRONGEST, Request, feature_of

if TYPE_CHECKING:
    from delta_transcoders.inspector.session import Session

WIDTH = 100
WIDEST_TOKEN = 14
TRUST = (
    "Open only studies that you trust: the class of the task that STUDY/study.json names is imported, where "
    "Python does not find it from the folder of the study file named there, and its code runs."
)


def answered(session: Session, request: Request) -> dict[str, Any]:
    """All that is known when the last token is written."""
    found: dict[str, Any] = {"study": session.parts.study}
    for event in session.answer(request):
        found |= {key: event[key] for key in ("prompt", "answers", "tokens") if key in event}
    return found


def report(session: Session, found: Mapping[str, Any]) -> Iterable[str]:
    """Lines for a terminal, of at most `WIDTH` columns where texts are no longer."""
    info = session.info()
    title = f": {info['title']}" if info["title"] else ""
    yield f"{info['study']}{title} (deltas {info['deltas']})"
    prompt = found["prompt"]
    if not isinstance(prompt, str):
        prompt = " / ".join(f"{message['role']}: {message['content']}" for message in prompt)
    yield f"prompt: {visible(prompt)}"
    for name, why in info["absent"].items():
        yield f"left out: {name}: {why}"
    yield ""
    widest = max(len(answer["label"]) for answer in found["answers"])
    opening = info["opening"] and f"p({info['opening_name']})"
    if opening:
        yield f"{'':{widest}}  {opening:>8}"
    for answer in found["answers"]:
        p = f"{100 * answer['opening']:6.1f} %" if opening else ""
        text = visible(answer["text"]) + ("…" if answer["is_cut"] else "")
        tool = "" if answer["tool"] is None else f"   → {visible(answer['tool'])}"
        yield f"{answer['label']:{widest}}  {p}  {text}{tool}".rstrip()
    if opening:
        yield f"\n{opening}: probability of writing {visible(info['opening'])} next"
    yield "\nThe delta's strongest features on each token that the finetuned model reads and writes:"
    yield from _token_lines(found["tokens"])


def _token_lines(tokens: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """As many layers side by side as fit."""
    cells = {
        i: [(layer, f"L{layer}F{f} {a:.1f}") for layer, f, a in token["features"] or ()]
        for i, token in enumerate(tokens)
    }
    cell = 2 + max((len(text) for of_token in cells.values() for _, text in of_token), default=0)
    for i, token in enumerate(tokens):
        by_layer: dict[int, str] = {}
        for layer, text in cells[i]:
            by_layer[layer] = by_layer.get(layer, "") + f"{text:{cell}}"
        groups = [f"{text:{STRONGEST * cell}}" for text in by_layer.values()]
        mark = "→" if token["is_answer"] else " "
        start = f"{mark} {visible(token['text']).replace(' ', '␣'):{WIDEST_TOKEN}} "
        n = max(1, (WIDTH - len(start)) // (STRONGEST * cell))
        for line in range(0, len(groups), n):
            yield (start if line == 0 else " " * len(start)) + "".join(
                groups[line : line + n]
            ).rstrip()


def visible(text: str) -> str:
    """A text as one line that a terminal cannot be led astray by.

    >>> visible("a\\nb\\x1b[2J\\u202e")
    'a⏎b\\\\x1b[2J\\\\u202e'
    """
    shown = (
        letter if letter.isprintable() else "⏎" if letter == "\n" else ascii(letter)[1:-1]
        for letter in text
    )
    return "".join(shown)


def _parsed(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Show what a study's models answer to a prompt: the base model, the finetuned one, and "
        "that one with its MLPs replaced by what the delta corrects, with and without the delta; and which "
        "features of the delta are active on each token.",
        epilog="Prompts get the form that the study's own have: a line break at their end, or the "
        "tokenizer's chat template. `delta-transcoders serve STUDY` shows the same in a browser. "
        f"{TRUST}",
    )
    parser.add_argument("study", metavar="STUDY", help="folder of a study, for example runs/tiny")
    parser.add_argument("prompt", metavar="PROMPT", help="what the models are to answer")
    parser.add_argument(
        "--alpha",
        metavar="A",
        type=float,
        nargs="+",
        default=[],
        help="also with A times the delta, of any sign, for one or more A",
    )
    parser.add_argument(
        "--layers",
        metavar="L",
        type=int,
        nargs="+",
        help="replace MLPs, and show features, at these layers alone (default: all with a delta)",
    )
    parser.add_argument(
        "--drop",
        metavar="L:K",
        nargs="+",
        default=[],
        help="also without feature K of layer L, for one or more (with --alpha, without them there)",
    )
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help=f"longest answer, at most {LONGEST_ANSWER} (default: the study's)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    return parser.parse_args(args)


def main() -> None:
    given = _parsed()
    request = Request(
        prompt=given.prompt,
        alphas=tuple(given.alpha),
        layers=None if given.layers is None else tuple(given.layers),
        drop=tuple(map(feature_of, given.drop)),
        max_new_tokens=given.max_new_tokens,
    )
    session = open_quietly(given.study)
    found = answered(session, request)
    if given.json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        print("\n".join(report(session, found)))


def open_quietly(study: str) -> Session:
    """The study, without what other libraries say while models are loaded."""
    from delta_transcoders.inspector.parts import find_parts

    find_parts(study)  # what is not there is told before the slow imports
    # Nearly all that is made here stays: looking for garbage among it, now and at the end, would take a third
    # of the whole time.
    gc.disable()
    try:
        from transformers.utils.logging import disable_progress_bar, set_verbosity_error

        disable_progress_bar()
        set_verbosity_error()
        from delta_transcoders.inspector.session import Session

        return Session(study)
    finally:
        gc.freeze()
        gc.enable()


if __name__ == "__main__":
    run(main)
