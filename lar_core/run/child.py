"""Children that may crash in the parent's place: what GL or a foreign library does is only told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_RUN = """
import os, sys
try:
    exec(sys.argv[1], {})
except BaseException as error:
    cause = str(error) if type(error).__name__ == "LarError" else f"{type(error).__name__}: {error}"
    sys.exit("\\n" + " ".join(cause.split()))
sys.stdout.flush()
os._exit(0)  # libraries that crash while they are taken down have done their work
"""


class ChildError(Exception):
    """What went wrong in a child process, in a few words: its last message, the signal that ended it, or its silence."""


def in_child(code: str, patience: float = 180, environment: dict[str, str] | None = None) -> str:
    """Run Python `code` in a process of its own and return the last line that it prints.

    environment: variables beside those of this process. Raises ChildError for whatever happens there: exceptions, an
    exit, a crash inside a library, or no end after `patience` seconds.
    """
    variables = os.environ | (environment or {})
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, (variables.get("PYTHONPATH"), str(_ROOT))))
    try:
        done = subprocess.run([sys.executable, "-c", _RUN, code], env=variables, capture_output=True, text=True,
                              errors="replace", stdin=subprocess.DEVNULL, timeout=patience)
    except subprocess.TimeoutExpired:
        raise ChildError(f"it did not answer within {patience:.0f} seconds") from None
    except OSError as error:
        raise ChildError(f"no process could be started: {error}") from error
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise ChildError(_cause(done))
    return lines[-1]


def _cause(done: subprocess.CompletedProcess) -> str:
    if done.returncode < 0:
        return f"the process was ended by {signal.Signals(-done.returncode).name}, inside a library"
    said = done.stderr.strip() or done.stdout.strip() or f"it ended with code {done.returncode}, without a word"
    return said.splitlines()[-1][:600]
