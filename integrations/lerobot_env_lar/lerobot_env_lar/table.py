"""What a policy did, from the lines that `--env.outcomes` wrote: `python -m lerobot_env_lar.table FILE ...`."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from lar_core.measure.statistics import wilson
from lar_core.run.errors import LarError
from lar_core.run.files import read_jsonl
from lar_core.scene.watch import HAPPENED

HEAD = ("policy", "placement", "instruction", "image", "solved", "rate", "95 % interval", "other bowl instead",
        *(f"first touched: {word}" for word in HAPPENED["first_touched"]))


def table(paths: list[Path]) -> list[tuple[str, ...]]:
    """HEAD, and a row for each policy (a file), placement, instruction and kind of image. Of two lines on one episode the
    later one counts. Raises LarError for a file that is not there or holds no episodes."""
    groups: dict[tuple, dict[tuple, dict]] = {}
    for path in paths:
        for row in _rows(path):
            kind = path.stem, row["placement"], row["instruction"], "grey" if row["blank_image"] else "seen"
            groups.setdefault(kind, {})[row["task"], row["episode"]] = row
    return [HEAD, *((*kind, *_counts(list(rows.values()))) for kind, rows in groups.items())]


def _rows(path: Path) -> list[dict]:
    rows = read_jsonl(path) if path.exists() else []
    if not rows:
        raise LarError(f"{path} holds no episodes: let lerobot-eval write it with --env.outcomes={path}.")
    return rows


def _counts(rows: list[dict]) -> tuple[str, ...]:
    solved = sum(row["success"] for row in rows)
    rate, touched = wilson(solved, len(rows)), Counter(row["first_touched"] for row in rows)
    instead = sum(row["on_plate"] == "other" for row in rows)
    return (f"{solved}/{len(rows)}", f"{rate.value:.2f}", f"{rate.low:.2f} to {rate.high:.2f}", str(instead),
            *(str(touched[word]) for word in HAPPENED["first_touched"]))


def main(names: list[str]) -> int:
    """Print the table."""
    try:
        rows = table([Path(name) for name in names])
    except LarError as error:
        print(error, file=sys.stderr)
        return 2
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
