"""One line for each thing that is looked at: ✓ or ✗, what it is, what was found, seconds."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from delta_transcoders.command import FOREIGN_ERRORS, USER_ERRORS
from delta_transcoders.console import StudyWarning


class Lines:
    """
    Attributes:
        n_failed: lines that begin with ✗.
    """

    def __init__(self) -> None:
        self.n_failed = 0

    def part(self, name: str) -> None:
        print(f"\n{name}", flush=True)

    @contextmanager
    def look(self, what: str) -> Iterator[Callable[[str], None]]:
        """Yield what adds to the line. An error of what the user gave fails the line and goes no further.

        Warnings of ours stand on the line too.
        """
        started, said = time.perf_counter(), []
        mark = "✓"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield said.append
            except Exception as error:
                theirs = FOREIGN_ERRORS.get(type(error).__name__)
                if not (theirs or isinstance(error, USER_ERRORS)):
                    raise
                self.n_failed, mark = self.n_failed + 1, "✗"
                said.append(theirs.format(error) if theirs else str(error))
        said += [
            f"note: {found.message}" for found in caught if issubclass(found.category, StudyWarning)
        ]
        seconds = time.perf_counter() - started
        text = f"{what}: {'; '.join(said)}" if said else what
        print(f"  {mark} {text}  ({seconds:.1f} s)", flush=True)
