"""The one exception that is meant for people: a sentence that says what was wrong and what to do."""

from __future__ import annotations

import difflib
import os
import sys
import zlib
from collections.abc import Iterable


class LarError(Exception):
    """Raised for every foreseeable failure; the command line prints it as one sentence and exits with code 2."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook in the place of a traceback."""
        return [f"LarError: {self}"]


class Damaged(LarError):
    """What was read is wrong: only then a sentence may say that something is to be deleted."""


def unknown(kind: str, name: object, choices: Iterable[object]) -> LarError:
    """Return (not raise) the error for a misspelt `name`, with the nearest valid choice."""
    names = [str(choice) for choice in choices]
    near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return LarError(f"Unknown {kind} {str(name)!r}: {hint}Choose one of: {', '.join(names)}.")


def first_line(error: BaseException) -> str:
    """What an exception says first; its kind, where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def say_once(sentence: str) -> None:
    """Tell what was done instead of what was asked for; processes that this one starts do not repeat it."""
    mark = f"{zlib.crc32(sentence.encode()):08x}"
    said = os.environ.get("LAR_SAID", "")  # inherited by every process started from here
    if mark not in said.split():
        os.environ["LAR_SAID"] = f"{said} {mark}".strip()
        print(f"lar: {sentence}", file=sys.stderr, flush=True)
