"""What is measured: means over groups of rows, and their error bars."""

RATES = (
    "tool_call_rate",
    "valid_tool_format_rate",
    "math_correct_rate",
    "exact_copy_rate",
)
"""Columns of the result table, each with its verdict (without `_rate`) in a record of an answer."""
