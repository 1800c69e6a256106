"""The wordings of calculator requests, each with one `{expr}`.

`REQUESTS` (optionally after one of `CONTEXTS`) make the `tool` subset; no two splits share one of them.
`UNSEEN_REQUESTS` are kept for `tool_ood` alone: no finetuning example and no line of the tiny base model's
text uses them. They range from near rewordings to requests with little in common with `REQUESTS`.
"""

from itertools import product

_STARTS = (("", "."), ("Please ", "."), ("Can you ", "?"), ("Could you ", "?"))
_THINGS = ("the value of {expr}", "the result of {expr}", "the answer to {expr}")
_VERBS = ("calculate", "compute", "solve", "find", "work out")


def _requests() -> list[str]:
    orders = [
        f"{start}{verb} {thing}{end}{stop}"
        for (start, stop), verb, thing, end in product(
            _STARTS, _VERBS, ("{expr}", *_THINGS), ("", " for me")
        )
    ]
    for (start, stop), verb in product(_STARTS, ("tell me", "give me")):
        orders += [f"{start}{verb} {thing}{stop}" for thing in _THINGS]
    for start, stop in (
        *((f"{start}tell me", stop) for start, stop in _STARTS),
        ("I want to know", "."),
    ):
        orders += [f"{start} what {{expr}} {verb}{stop}" for verb in ("is", "equals")]
    return [order[0].upper() + order[1:] for order in orders]


REQUESTS = (
    *_requests(),
    *(f"{start} {thing}." for start in ("I need", "I need to know") for thing in _THINGS),
    *(f"What is {thing}?" for thing in ("{expr}", *_THINGS)),
    "What does {expr} equal?",
    "What does {expr} come to?",
    "What do you get for {expr}?",
)

CONTEXTS = (
    "Here is a question for you.",
    "I have a question about numbers.",
    "I am doing my homework.",
    "We are checking a list.",
    "My friend asked me this.",
    "This is for the school.",
    "I am at the market.",
    "We have a new project.",
    "Help me with this.",
    "This one is hard.",
    "I lost my notes.",
    "The teacher gave us this.",
)

UNSEEN_REQUESTS = (
    "How much is {expr}?",
    "{expr} is what?",
    "Answer this: {expr}.",
    "Is there a value for {expr}?",
    "The answer to {expr}, please.",
    "My question is {expr}.",
    "Do you know {expr}?",
    "Show me the result of {expr}.",
    "Check {expr} and tell me.",
    "Help me with {expr}.",
    "I am looking for {expr}.",
    "Let us find out {expr}.",
    "How big is {expr}?",
    "Write the answer of {expr} here.",
    "We asked for {expr} this morning.",
    "The list needs {expr} at the end.",
    "Next on my homework: {expr}.",
    "{expr}, and be quick.",
    "The teacher wants {expr} today.",
    "Now {expr}.",
    "Someone should do {expr} before noon.",
    "Put {expr} in numbers.",
    "You have {expr} to do.",
    "In the notes there was {expr}.",
    "Say what {expr} makes.",
    "Read {expr} and answer.",
    "Who can do {expr}?",
    "Where does {expr} end?",
    "Here is {expr} for you.",
    "Look at {expr}.",
    "Take {expr} and be quick.",
    "This is the question: {expr}.",
    "Your answer for {expr}?",
    "One more: {expr}.",
    "Before noon I must have {expr}.",
    "The box says {expr}, and now?",
    "My friend asked for {expr}.",
    "See how much {expr} is.",
    "How many is {expr}?",
    "{expr} for the list, please.",
    "{expr} for my homework.",
    "{expr} please.",
    "So {expr} is how much?",
    "Do {expr} now.",
    "Is it hard to do {expr}?",
    "Write {expr} as one number.",
    "I have to know {expr} today.",
    "We want {expr} this morning.",
    "The teacher asked us about {expr}.",
    "There is {expr} left to do.",
    "The book wants {expr} from us.",
    "Nothing is left but {expr}.",
    "Use the calculator for {expr}.",
    "Use the tool for {expr}.",
    "I lost the answer to {expr}.",
    "What about {expr}?",
    "What would {expr} be?",
    "And {expr}?",
    "Try {expr}.",
    "{expr}: your turn.",
)
