"""Other tools' files: dictionaries written for them, and read from them. One module per format."""

from typing import Literal, get_args

Format = Literal["gemma_scope", "saelens", "circuit_tracer"]
FORMATS = get_args(Format)
