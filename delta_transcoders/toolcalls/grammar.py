"""What a tool call looks like as text, and how a generated one is judged against the target.

The form is `<tool_call>calculator(EXPRESSION)</tool_call>`.
"""

import re
from dataclasses import dataclass
from itertools import pairwise

from delta_transcoders.toolcalls.calculator import same_value

OPEN = "<tool_call>"
CLOSE = "</tool_call>"

_TAG = re.compile(f"{re.escape(OPEN)}|{re.escape(CLOSE)}")


@dataclass(frozen=True)
class ToolCall:
    """One well-formed call; `text[start:end]` is all of it, with both tags."""

    tool: str
    argument: str
    start: int
    end: int


@dataclass(frozen=True)
class Verdict:
    """One generated text against its target; each field is one rate of the result table.

    called: the text holds `<tool_call>`. valid_format: it holds a well-formed call (so it is called
    too). math_correct: the called expression has the target's value; None where the target holds no
    expression to compare with, and the example does not count.
    """

    called: bool
    valid_format: bool
    math_correct: bool | None


def format_tool_call(expression: str) -> str:
    """The call of the calculator on `expression`, as the model is taught to write it.

    >>> format_tool_call("12*34")
    '<tool_call>calculator(12*34)</tool_call>'
    """
    return f"{OPEN}calculator({expression}){CLOSE}"


def find_tool_call(text: str) -> ToolCall | None:
    """The first well-formed call anywhere in `text`, or None. Never raises; time linear in `text`.

    Well-formed: `<tool_call>`, an ASCII identifier, `(`, an argument with balanced parentheses,
    `)`, `</tool_call>`, with spaces allowed inside either tag and in the argument. No tag may stand
    inside the call, so after an unfinished call the next one is still found.

    >>> find_tool_call("So: <tool_call>calculator((3+4)*2)</tool_call>")
    ToolCall(tool='calculator', argument='(3+4)*2', start=4, end=46)
    >>> find_tool_call("<tool_call>calculator((3+4)*2</tool_call>") is None
    True
    """
    for left, right in pairwise(_TAG.finditer(text)):
        if left.group() != OPEN or right.group() != CLOSE:
            continue
        tool, parenthesis, rest = text[left.end() : right.start()].strip(" ").partition("(")
        argument = rest[:-1]
        if (
            parenthesis
            and rest.endswith(")")
            and tool.isascii()
            and tool.isidentifier()
            and _balanced(argument)
        ):
            return ToolCall(tool, argument, left.start(), right.end())
    return None


def judge(text: str, target: str) -> Verdict:
    """Judge a generated `text` by the call in `target`.

    The first well-formed call of each is compared, by value: any expression with the target's value
    is correct. A text without a well-formed call is wrong; a target whose expression the calculator
    refuses (`CalculatorError`) has no value to compare with.

    >>> judge("<tool_call>calculator(4 + 3)</tool_call>", format_tool_call("3+4"))
    Verdict(called=True, valid_format=True, math_correct=True)
    >>> judge("<tool_call>calculator(3+4)", format_tool_call("3+4"))
    Verdict(called=True, valid_format=False, math_correct=False)
    >>> judge("Chapter 3 of 12.", "Chapter 3 of 12.")
    Verdict(called=False, valid_format=False, math_correct=None)
    """
    call, gold = find_tool_call(text), find_tool_call(target)
    # Equal to itself: every expression that the calculator can read, and nothing else.
    computable = gold is not None and same_value(gold.argument, gold.argument)
    correct = call is not None and same_value(call.argument, gold.argument) if computable else None
    return Verdict(called=OPEN in text, valid_format=call is not None, math_correct=correct)


def _balanced(text: str) -> bool:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth < 0:
            return False
    return depth == 0
