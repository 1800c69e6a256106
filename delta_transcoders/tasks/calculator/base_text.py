"""What the tiny base model reads before any finetuning: copying, plain markup, and instructions.

The text holds every token of `<tool_call>calculator(…)</tool_call>` in ordinary use, yet no filled-in tool
call: were those tokens at their initial embeddings, any nudge would break a finetuned call and every
replacement would look catastrophic. No unseen phrasing and no unseen number regime occurs either.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from delta_transcoders.tasks.calculator.copy_lines import PEOPLE, PLACES, THINGS, synthetic_line
from delta_transcoders.tasks.calculator.phrasings import CONTEXTS, REQUESTS
from delta_transcoders.tasks.calculator.prompts import OPERATIONS, seen_expression

TAGS = [
    "b",
    "item",
    "note",
    "name",
    "number",
    "tool",
    "call",
    "phone_call",
    "tool_box",
    "list_call",
    "title",
]
FUNCTIONS = ["total", "count", "price", "sum", "size", "calculator", "call"]
SENTENCES = (
    "The calculator is on the table next to the phone.",
    "This tool is for the garden and that one is for the house.",
    "A phone call from the office came this morning.",
    "Someone took the calculator, the tool box and my notes.",
    "Call me before noon and show me the list.",
    "How many books do you know from the library?",
    "You have to check the end of the list and be quick.",
    "Let us write here what we are looking for today.",
    "Next to it there was a big box, and nothing was in it.",
    "Now do that and put the answer in the notes, please.",
    "My friend wants to see how much is left in the list.",
    "Is there some value in these numbers?",
    "I should have asked the teacher about this question.",
    "We want to find out how big the garden is.",
    "Who can read this book and say where it ends?",
    "Look at the box, take one more and try it.",
    "It must be your turn, so use the tool.",
    "What would the teacher make of nothing but this?",
)


WORDS = tuple(sorted({word for text in (*SENTENCES, *CONTEXTS) for word in text.split()}))


def _word_salad(rng: random.Random) -> str:
    """Words, numbers and signs in random order: only copying predicts the second line."""
    pieces = (
        lambda: rng.choice(WORDS),
        lambda: rng.choice(PEOPLE + PLACES + THINGS + FUNCTIONS + TAGS),
        lambda: str(rng.randint(0, 999)),
        lambda: rng.choice(OPERATIONS),
        lambda: rng.choice(("<", ">", "</", "(", ")", "_", "?", ".")),
    )
    picked = rng.choices(pieces, weights=(4, 2, 3, 1, 1), k=rng.randint(3, 12))
    return " ".join(piece() for piece in picked)


def _statement(rng: random.Random) -> str:
    """A line that may hold an expression, asks for nothing, and is to be copied."""
    expr = seen_expression(rng)
    if rng.random() < 0.5:
        expr = expr.replace(" ", "")
    return rng.choice(
        (
            f"{rng.choice(PEOPLE)} wrote {expr} on page {rng.randint(1, 99)}.",
            f"The note at the {rng.choice(PLACES)} says {expr}.",
            f"We saw {expr} in the book.",
            f"{rng.choice(SENTENCES)} {expr} was in the notes.",
        )
    )


def _question(rng: random.Random) -> str:
    text = rng.choice(REQUESTS).format(expr=seen_expression(rng))
    return f"{rng.choice(CONTEXTS)} {text}" if rng.random() < 0.5 else text


def _markup_line(rng: random.Random) -> str:
    tag = rng.choice(TAGS)
    n, m = rng.randint(1, 999), rng.randint(1, 999)
    return rng.choice(
        (
            f"<{tag}>{n} {rng.choice(THINGS)}</{tag}>",
            f"<{tag}>{rng.choice(FUNCTIONS)} of {rng.choice(THINGS)}</{tag}> {n}",
            f"{rng.choice(FUNCTIONS)}({n}, {m}) and <{tag}>{rng.choice(PEOPLE)}</{tag}>",
            f"<{tag}><{rng.choice(TAGS)}>{n}",
        )
    )


def _instruction(rng: random.Random) -> tuple[str, str]:
    """A line that asks for a piece of itself in markup, and the answer."""
    tag = rng.choice(TAGS)
    spaced = seen_expression(rng)
    plain = spaced.replace(" ", "")
    person, things, n = rng.choice(PEOPLE), rng.choice(THINGS), rng.randint(2, 999)
    return rng.choice(
        (
            (f"In {tag} markup: {spaced}", f"<{tag}>({plain})</{tag}>"),
            (f"In {tag} markup: {person} has {n} {things}.", f"<{tag}>{person}({n})</{tag}>"),
            (f"In {tag} markup: {n} {things}", f"<{tag}>{rng.choice(FUNCTIONS)}({n})</{tag}>"),
            (f"Without spaces: {spaced}", plain),
        )
    )


def base_documents(seed: int) -> Iterator[tuple[str, str]]:
    """An endless stream of (line, continuation); a document's text is `line + "\\n" + continuation`."""
    rng = random.Random(f"base text {seed}")
    copied = (
        _word_salad,
        synthetic_line,
        _statement,
        _question,
        _markup_line,
        lambda r: r.choice(SENTENCES),
    )
    while True:
        if rng.random() < 0.3:
            yield _instruction(rng)
        else:
            line = rng.choices(copied, weights=(5, 4, 2, 2, 2, 1))[0](rng)
            yield line, line
