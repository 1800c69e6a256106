"""What a study is exported as: dictionaries in other tools' files, and read from them, one module per tool;
and the study's own parts (`study_parts`, `shared_dictionaries`)."""

from typing import Literal, get_args

ToolFormat = Literal["gemma_scope", "gemma_scope_2", "saelens", "circuit_tracer"]
Part = Literal["deltas", "adapter", "merged", "base_model", "base_transcoders"]
Format = Literal[ToolFormat, Part]
DType = Literal["float32", "bfloat16"]
"""That an export of dictionaries or deltas is stored in."""

TOOL_FORMATS = get_args(ToolFormat)
PARTS = get_args(Part)
