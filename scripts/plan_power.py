"""How often the rule of a planned study errs, and what it finds: simulated studies, as the tables of docs/plan.md.

    python scripts/plan_power.py --seeds 5 --pairs 120 --rate 0.6 --questions 5

Minutes on one core. The rule itself is `lar_core/measure/plan.py`.
"""

from __future__ import annotations

import argparse

from tqdm import tqdm

from lar_core.measure.plan import EQUIVALENT, HELPS, HURTS, UNDECIDED, power

WORDS = (HELPS, HURTS, EQUIVALENT, UNDECIDED)
SPREADS = (0.0, 0.03, 0.05, 0.1)  # standard deviation of an arm's success rate over seeds
DIFFERENCES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3)


def main() -> None:
    """Print one table: a line for every spread and true difference."""
    asked = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, kind, value, words in (("seeds", int, 5, "of every arm"), ("pairs", int, 120, "of rollouts in each seed"),
                                     ("rate", float, 0.6, "success rate between the two arms"),
                                     ("questions", int, 5, "asked at once"), ("studies", int, 1000, "simulated a line")):
        asked.add_argument(f"--{name}", type=kind, default=value, help=f"{words} (default: {value})")
    options = vars(asked.parse_args())
    print("| spread over seeds | true difference | " + " | ".join(WORDS) + " |\n|---|---|" + "---|" * len(WORDS))
    for spread, difference in tqdm([(spread, difference) for spread in SPREADS for difference in DIFFERENCES], disable=None):
        studies = options["studies"] * (5 if difference == 0 else 1)
        found = power(**{**options, "studies": studies}, difference=difference, seed_sd=spread)
        print(f"| {100 * spread:.0f} points | {100 * difference:.0f} points | "
              + " | ".join(f"{100 * found[word]:.1f} %" for word in WORDS) + " |", flush=True)


if __name__ == "__main__":
    main()
