"""A run beside the kept ones of its settings: what another seed, or another processor, changes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..run.settings import Condition, Profile
from .results import load_results, measured

KEPT = Path(__file__).parents[2] / "results"  # of a checkout; an installed package has none


@dataclass(frozen=True)
class Spread:
    """One number of a run, and the range of the same over kept runs with other seeds."""

    name: str
    value: float
    kept: tuple[float, ...]

    @property
    def within(self) -> bool:
        """Whether it falls into their range."""
        return min(self.kept) <= self.value <= max(self.kept)


def beside_kept(results: dict, folder: Path = KEPT) -> list[Spread]:
    """Every number of `results` that kept runs of the same settings have too; none where fewer than two were kept."""
    stem = f"{results['run']['condition']}-{results['run']['profile']}-s*.json"
    kept = [load_results(path) for path in sorted(folder.glob(stem))]
    own, same = headline_numbers(results), [headline_numbers(one) for one in kept if _same_settings(one, results)]
    return [Spread(name, value, tuple(one[name] for one in same)) for name, value in own.items()
            if len(same) > 1 and all(name in one for one in same)]


def headline_numbers(results: dict) -> dict[str, float]:
    """Success rates at the profile's placements, saliency scores and action error, by name; what was measured of them."""
    placement = results["run"]["config"]["profile"].get("placement")
    numbers: dict[str, float | None] = {
        f"success, {row['policy']}, {row['instruction']} instruction": row["rate"]
        for row in results.get("rollouts") or [] if row["task"] is None and row["placement"] == placement}
    for name, path in (("AOS", ("grounding", "aos")), ("named minus other bowl", ("grounding", "target_minus_distractor")),
                       ("held-out action error", ("action", "l1"))):
        place = (*path, "model", "mean") if path[0] == "grounding" else (*path, "mean")
        numbers[name] = measured(results, place)
    return {name: value for name, value in numbers.items() if value is not None}


def _same_settings(one: dict, other: dict) -> bool:
    """Everything but the seed; a setting that an older file does not have is at its default."""
    defaults = {"condition": Condition().model_dump(mode="json"), "profile": Profile().model_dump(mode="json")}
    return all(usual | one["run"]["config"][part] == usual | other["run"]["config"][part]
               for part, usual in defaults.items())
