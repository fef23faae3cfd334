"""`lar` and `python -m lar_core`: the command line, and a sentence where a package that it needs cannot be imported."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """Run the command line; `lar doctor` runs even where that cannot be imported."""
    if sys.argv[1:2] == ["look"]:  # numba would compile robosuite's functions, which takes longer than one scene without
        os.environ.setdefault("NUMBA_DISABLE_JIT", "1")
    try:
        from .cli import main as command_line
    except ImportError as error:
        if sys.argv[1:2] == ["doctor"]:
            from .doctor import examine
            examine()
        print(f"lar: {error}: run `make setup`, or install what `lar doctor` names.", file=sys.stderr)
        return 2
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
