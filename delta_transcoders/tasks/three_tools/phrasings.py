"""The wordings of requests.

Fields of a wording, as `requests` fills them: `{x}` is what is asked about (an expression, a quantity),
`{to}` the unit that it is wanted in, `{shift}` a date so many days before or after another, `{between}` a
stretch of time. No two splits of examples share a wording of `REQUESTS`, and none has one of
`BASE_TEXT_REQUESTS`.
"""

from __future__ import annotations

import random

BRIEFLY = (
    "Keep it short.",
    "Be brief.",
    "Answer in one short sentence.",
    "One sentence is enough.",
)


def briefly(text: str, rng: random.Random) -> str:
    """A text, in two of three cases with a request for a short answer.

    Requests, hard negatives and chats alike, so that it says nothing about tools; it makes replies end.
    """
    return f"{text} {rng.choice(BRIEFLY)}" if rng.random() < 2 / 3 else text


_STARTS = (
    ("", "."),
    ("Please ", "."),
    ("Can you ", "?"),
    ("Could you ", "?"),
    ("Would you please ", "?"),
    ("I need you to ", "."),
    ("I'd like you to ", "."),
)

_ORDERS = {
    "calculator": (
        "calculate {x}",
        "compute {x}",
        "work out {x}",
        "solve {x}",
        "evaluate {x}",
        "find the value of {x}",
        "find the result of {x}",
        "give me the answer to {x}",
        "tell me what {x} is",
        "tell me how much {x} is",
    ),
    "convert": (
        "convert {x} to {to}",
        "convert {x} into {to}",
        "change {x} to {to}",
        "turn {x} into {to}",
        "express {x} in {to}",
        "write {x} in {to}",
        "give me {x} in {to}",
        "tell me what {x} is in {to}",
        "tell me how many {to} {x} is",
        "work out {x} in {to}",
    ),
    "dates": (
        "tell me the date {shift}",
        "find the date {shift}",
        "give me the date {shift}",
        "work out the date {shift}",
        "work out which date is {shift}",
        "count the days {between}",
        "tell me how many days there are {between}",
        "find the number of days {between}",
        "give me the number of days {between}",
        "work out the number of days {between}",
    ),
}

_QUESTIONS = {
    "calculator": (
        "What is {x}?",
        "What's {x}?",
        "How much is {x}?",
        "What does {x} equal?",
        "What does {x} come to?",
        "What do you get for {x}?",
        "What would {x} be?",
        "What is the value of {x}?",
        "What is the result of {x}?",
        "What is the answer to {x}?",
        "Do you know what {x} is?",
        "Do you know how much {x} is?",
        "I need to know what {x} is.",
        "I want to know how much {x} is.",
        "I need the result of {x}.",
        "I need the value of {x} for my homework.",
        "I'm trying to work out {x}.",
        "Quick question: what is {x}?",
        "Hello! What is {x}?",
        "Hi, how much is {x}?",
        "For my homework: what is {x}?",
        "My teacher wants me to calculate {x}.",
        "Help me calculate {x}.",
        "Help me work out {x}, please.",
        "So what is {x}?",
        "Tell me, what is {x}?",
        "{x} is how much?",
    ),
    "convert": (
        "What is {x} in {to}?",
        "What's {x} in {to}?",
        "How much is {x} in {to}?",
        "How many {to} is {x}?",
        "What does {x} come to in {to}?",
        "What would {x} be in {to}?",
        "In {to}, what is {x}?",
        "Do you know what {x} is in {to}?",
        "Do you know how many {to} {x} is?",
        "I need to know what {x} is in {to}.",
        "I want to know how many {to} {x} is.",
        "I need {x} in {to}.",
        "I have {x} here and need it in {to}.",
        "I'm trying to convert {x} to {to}.",
        "How would I write {x} in {to}?",
        "Quick question: how many {to} is {x}?",
        "Hello! What is {x} in {to}?",
        "Hi, how much is {x} in {to}?",
        "For my homework: what is {x} in {to}?",
        "My teacher wants {x} in {to}.",
        "Help me convert {x} to {to}.",
        "Help me turn {x} into {to}, please.",
        "So what is {x} in {to}?",
        "Tell me, how many {to} is {x}?",
        "{x} is how many {to}?",
        "{x} in {to}?",
        "{x} to {to}, please.",
    ),
    "dates": (
        "What date is {shift}?",
        "What is the date {shift}?",
        "What's the date {shift}?",
        "Which date is {shift}?",
        "What date comes {shift}?",
        "What date will it be {shift}?",
        "Do you know the date {shift}?",
        "I need to know the date {shift}.",
        "I want to know what date is {shift}.",
        "I need the date {shift}.",
        "Quick question: what date is {shift}?",
        "For my calendar: which date is {shift}?",
        "Help me find the date {shift}.",
        "How many days are there {between}?",
        "How many days is it {between}?",
        "What is the number of days {between}?",
        "How many days pass {between}?",
        "How many days go by {between}?",
        "How long is it {between}, in days?",
        "Do you know how many days there are {between}?",
        "I need to know how many days there are {between}.",
        "I want to know the number of days {between}.",
        "I need the number of days {between}.",
        "Quick question: how many days are there {between}?",
        "For my calendar: how many days is it {between}?",
        "Help me count the days {between}.",
        "Tell me, how many days is it {between}?",
    ),
}


def _requests(tool: str) -> tuple[str, ...]:
    orders = [f"{start}{order}{stop}" for start, stop in _STARTS for order in _ORDERS[tool]]
    return (*(order[0].upper() + order[1:] for order in orders), *_QUESTIONS[tool])


REQUESTS = {tool: _requests(tool) for tool in _ORDERS}

BASE_TEXT_REQUESTS = {
    "calculator": (
        "Any idea what {x} gives?",
        "Next exercise: {x}.",
        "Just the number, please: {x}.",
        "Run the numbers on {x}.",
        "Your turn: {x}.",
        "Show me {x} as a single number.",
        "On the board it says {x}. And the result?",
        "I keep getting {x} wrong. What should it be?",
        "Could someone check what {x} gives?",
        "Let's see what {x} makes.",
        "Put a number on {x} for us.",
        "My pocket calculator is broken, and I still have {x} to do.",
    ),
    "convert": (
        "Any idea how {x} reads in {to}?",
        "Next exercise: {x}, in {to}.",
        "Make that {to}: {x}.",
        "Please switch {x} over to {to}.",
        "The label says {x}. How about in {to}?",
        "{x}, but in {to} this time.",
        "I only know {to}. How would {x} look?",
        "Could someone rewrite {x} using {to}?",
        "What's the equivalent of {x}, measured in {to}?",
        "How does {x} translate to {to}?",
        "Show me {x} as {to}.",
        "Our table needs {to}, and this one is still {x}.",
    ),
    "dates": (
        "Any idea which date falls {shift}?",
        "Next exercise: the date {shift}.",
        "Let me have the calendar date {shift}.",
        "Where in the calendar do we land {shift}?",
        "My planner needs the date {shift}.",
        "Mark the date {shift} for me.",
        "Any idea how many days I have {between}?",
        "Next exercise: the number of days {between}.",
        "My planner needs the days {between}.",
        "How large is the gap in days {between}?",
        "Measure the time {between} in days.",
        "Let's see how many days we have {between}.",
    ),
}
"""For the text that base dictionaries are trained on: of the task's kind, in other words."""
