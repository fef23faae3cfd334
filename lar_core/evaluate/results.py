"""results.json: every number of a run, read and written through one schema (fields: docs/results.md).

Only `schema_version` and `run` are always there. Any other section may be missing or null: its step has not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator

from .schema import Document


def rate_contradictions(place: str, row: dict) -> Iterator[tuple[str, str]]:
    """What a schema cannot say of a success rate: counts, rate and interval must agree."""
    if row["successes"] > row["episodes"]:
        yield f"{place}.successes", f"{row['successes']} successes in {row['episodes']} episodes"
    if abs(row["rate"] - row["successes"] / row["episodes"]) > 1e-6:
        yield f"{place}.rate", f"{row['rate']} is not {row['successes']}/{row['episodes']}"
    if not row["low"] - 1e-9 <= row["rate"] <= row["high"] + 1e-9:
        yield place, f"its rate {row['rate']} lies outside its interval {row['low']} to {row['high']}"


def _contradictions(results: dict) -> Iterator[tuple[str, str]]:
    for i, row in enumerate(results.get("rollouts") or []):
        yield from rate_contradictions(f"rollouts[{i}]", row)


RESULTS = Document("results_schema.json", "results", "lar reproduce", _contradictions)
SCHEMA = RESULTS.schema
validate_results, load_results, save_results = RESULTS.validate, RESULTS.load, RESULTS.save
