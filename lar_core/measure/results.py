"""results.json: every number of a run, read and written through one schema (fields: docs/results.md).

Only `schema_version` and `run` are always there. Any other section may be missing or null: its step has not run yet.
"""

from __future__ import annotations

from collections.abc import Iterator

from .schema import Document
from .success import contradictions
from .swapped import modern_rows


def _contradictions(results: dict) -> Iterator[tuple[str, str]]:
    for i, row in enumerate(results.get("rollouts") or []):
        yield from contradictions(f"rollouts[{i}]", row)


def _modern(results: dict) -> dict:
    """Older results by the present names of what the policy was told."""
    profile = results
    for name in ("run", "config", "profile"):
        profile = profile.get(name) if isinstance(profile, dict) else None
    rows = modern_rows(results.get("rollouts"), profile.get("tasks") if isinstance(profile, dict) else None)
    return results | {"rollouts": rows} if rows else results


RESULTS = Document("results_schema.json", "results", "lar reproduce", _contradictions, _modern)
SCHEMA = RESULTS.schema
validate_results, load_results, save_results = RESULTS.validate, RESULTS.load, RESULTS.save
