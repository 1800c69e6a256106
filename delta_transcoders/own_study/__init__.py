"""A study of a model that somebody brings: from their file of ten lines to the stages of an ordinary study.

`file` reads and checks the file, `sizes` chooses what it leaves open, `stages` makes the configurations.
`split` and `merge` are stages of their own: `python -m delta_transcoders.own_study.split --help`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def expand(content: dict[str, Any], file: Path, study: Path, seed: int) -> dict[str, Any]:
    """An ordinary study file's content for one that names a finetuned model; writes nothing.

    The configuration of each stage is an ordinary YAML, `STUDY/configs/STAGE.yaml`, beside a
    `defaults.yaml` with what they share: `python evaluate.py --config STUDY/configs/exp1.yaml` runs one.

    Args:
        content: what the study file holds.
        file: its path, for messages.
        study: folder of the study, over the file's own.
        seed: over the file's own.

    Returns:
        `study`, `seed`, `stages` and `shows` as in a study file; `files`, the text of every configuration by
        its path, to be written before a stage runs; and `notes`, lines to be shown before the plan: what was
        chosen, and what is left out.

    Raises:
        FileNotFoundError, ConnectionError: a model, dictionaries or a file that is not to be had.
        ValueError: a key, value or model that cannot be used; names the file, the key and what to do.
    """
    # Not above: `python -m` of a stage must find its own module not imported yet.
    from delta_transcoders.own_study.file import read_own_study
    from delta_transcoders.own_study.stages import study_file

    return study_file(read_own_study(content, file, study, seed))
