"""A study that is planned before it is run: its questions in order, and the rule by which one is decided (docs/plan.md).

The runs so far may be looked at after every seed from the third on, because the rule keeps its error (`power` simulates it
with studies in which nothing differs). Two p values have to be small, so the larger one counts, corrected by Holm's method
for the number of questions of a family (those that decide, and further ones):

* of the pairs (same seed, task and init state): from an e-value of those with different outcomes, which bounds the error at
  any time of looking (Ville 1939; Robbins 1970);
* of the seeds: Student's test of their differences. Rollouts of one trained policy resemble each other, and a test that
  counts pairs as independent finds differences between policies of one recipe that differ by their seeds only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from scipy import stats

from ..run.errors import LarError
from ..run.registry import Checked
from ..run.settings import Count, Placement, Share
from .schema import Estimate, Number, Word, listed, section
from .statistics import ALPHA, Interval, evidence, holm, over_seeds, points, student_test

HELPS, HURTS, EQUIVALENT, UNDECIDED = "helps", "hurts", "equivalent", "undecided"
FIRST_LOOK = 3  # seeds
EARLY = 0.01  # level of every look before the last, at which it is ALPHA (after Haybittle 1971 and Peto et al. 1976)
DEVIATIONS = "## Deviations"  # what stands below this heading is no part of the plan

Outcomes = tuple[np.ndarray, np.ndarray]  # (S, N) bool of two arms: seeds, and rollouts from the same init states
Question = Annotated[tuple[str, str], Field(strict=False)]  # does the first condition help, beside the second?


class Plan(Checked):
    """What a study was to find out: the lines of `plan` in its file."""

    document: str  # beside the file
    questions: tuple[Question, ...] = Field(min_length=1, strict=False)  # that decide, in order of importance
    further: tuple[Question, ...] = Field((), strict=False)  # a family of its own
    margin: float = Field(0.1, gt=0, lt=1)  # differences of the success rate within it are called equivalent
    sha256: str = ""  # of the document and the file, filled in when the file is read


def sealed(file: Path, lines: dict) -> dict:
    """The lines of a study's file, with the hash of its plan. Raises LarError where there is no such document."""
    if not isinstance(lines.get("plan"), dict) or not isinstance(lines["plan"].get("document"), str):
        return lines
    document = file.parent / lines["plan"]["document"]
    if not document.is_file():
        raise LarError(f"{file} names {lines['plan']['document']} as its plan, but there is no {document}: write the plan "
                       "before the study is run, or take the plan out of the file.")
    text = document.read_text(encoding="utf-8").split(f"\n{DEVIATIONS}")[0] + file.read_text(encoding="utf-8")
    return {**lines, "plan": {**lines["plan"], "sha256": hashlib.sha256(text.encode()).hexdigest()}}


# The rule

@dataclass(frozen=True)
class Look:
    """A question after some of its seeds."""

    seeds: int
    last: bool  # whether no more seeds are planned
    p: float  # the larger one of pairs and seeds
    difference: Interval  # over seeds, at the level of this look
    narrow: Interval  # the same at twice that level: inside the margin, two one-sided tests (Schuirmann 1987) say equivalent

    @classmethod
    def at(cls, seeds: int, planned: int, a: np.ndarray, b: np.ndarray) -> Look:
        """Look at the first `seeds` of the outcomes (S, N), which may be fewer."""
        a, b = a[:seeds], b[:seeds]
        wins, losses = (a & ~b).sum(1).cumsum(), (b & ~a).sum(1).cumsum()
        last, differences = len(a) >= planned, a.mean(1) - b.mean(1)
        level = ALPHA if last else EARLY
        p = max(1 / max(1.0, *map(evidence, wins, losses)), student_test(differences) * ALPHA / level)
        return cls(len(a), last, min(1.0, p), over_seeds(differences, level), over_seeds(differences, 2 * level))

    def verdict(self, p_holm: float, margin: float) -> str:
        """One of the four words at the top."""
        if self.seeds < FIRST_LOOK:
            return UNDECIDED
        if p_holm < ALPHA:
            return HELPS if self.difference.value > 0 else HURTS
        within = self.last and -margin < self.narrow.low and self.narrow.high < margin  # said at the end only
        return EQUIVALENT if within else UNDECIDED


def decide(tables: Mapping[Question, Outcomes], planned: int, margin: float) -> dict[Question, tuple[Look, float, str]]:
    """The look at which each question was decided, its corrected p and the verdict; undecided ones at their last look."""
    found: dict[Question, tuple[Look, float, str]] = {}
    for seeds in range(FIRST_LOOK, max(planned, FIRST_LOOK) + 1):
        looks = {question: Look.at(seeds, planned, *outcomes) for question, outcomes in tables.items()}
        for (question, look), p in zip(looks.items(), holm([look.p for look in looks.values()])):
            if question not in found or found[question][2] == UNDECIDED:
                found[question] = look, p, look.verdict(p, margin)
    return found


# What study.json says of it

PlanSection = section(document=Word, sha256=Word, margin=Share, planned=Count)
Answer = section(
    condition=Word, beside=Word, placement=Placement, seeds=Number, planned=Count, pairs=Number, only_condition=Number,
    only_beside=Number, difference=Estimate, per_seed=listed(float), level=Share, p=Share, p_holm=Share, further=bool,
    verdict=Literal[HELPS, HURTS, EQUIVALENT, UNDECIDED], sentence=Word)


def answers(plan: Plan, tables: Mapping[Question, Outcomes], planned: int, placement: str) -> list[dict]:
    """One entry an asked question that has outcomes, in the plan's order."""
    rows = []
    for further, family in enumerate((plan.questions, plan.further)):
        found = decide({question: tables[question] for question in family if question in tables}, planned, plan.margin)
        rows += [_answer(question, *tables[question], *decided, planned, placement, plan.margin) | {"further": bool(further)}
                 for question, decided in found.items()]
    return rows


def _answer(question: Question, a: np.ndarray, b: np.ndarray, look: Look, p_holm: float, verdict: str, planned: int,
            placement: str, margin: float) -> dict:
    a, b = a[:look.seeds], b[:look.seeds]
    row = {"condition": question[0], "beside": question[1], "placement": placement, "seeds": look.seeds, "planned": planned,
           "pairs": int(a.size), "only_condition": int((a & ~b).sum()), "only_beside": int((b & ~a).sum()),
           "difference": look.difference.written, "per_seed": (a.mean(1) - b.mean(1)).tolist(),
           "level": ALPHA if look.last else EARLY, "p": look.p, "p_holm": p_holm, "verdict": verdict}
    return row | {"sentence": _sentence(row, look, margin)}


def _sentence(row: dict, look: Look, margin: float) -> str:
    does = {HELPS: "helps", HURTS: "hurts", EQUIVALENT: f"is equivalent within {100 * margin:.0f} points",
            UNDECIDED: "is undecided at this power"}[row["verdict"]]
    return (f"{row['condition']} {does}, beside {row['beside']} on {row['placement']} placements: "
            f"{points(look.difference, f'over {look.seeds} seeds ', 100 * (1 - row['level']))}, {row['only_condition']} "
            f"of {row['pairs']} pairs solved by it alone and {row['only_beside']} by the other alone, p = {row['p']:.2g}, "
            f"{row['p_holm']:.2g} after Holm's correction ({look.seeds} of {row['planned']} planned seeds).")


# How often the rule errs, and what it finds

def draw(rng: np.random.Generator, seeds: int, pairs: int, rate: float, difference: float, seed_sd: float,
         shared: float) -> Outcomes:
    """Outcomes (seeds, pairs) of two arms whose success rates are `difference` apart, `rate` between them.

    seed_sd: spread of an arm's rate over its seeds. shared: how much of what decides an episode lies in its init state, the
    same for both arms and all seeds.
    """
    states = np.sqrt(shared) * rng.standard_normal(pairs)

    def arm(rate: float) -> np.ndarray:
        spread = seed_sd / stats.norm.pdf(stats.norm.ppf(rate))
        luck = np.sqrt(1 - shared) * rng.standard_normal((seeds, pairs)) + spread * rng.standard_normal((seeds, 1))
        return states + luck > stats.norm.ppf(1 - rate) * np.sqrt(1 + spread**2)

    return arm(rate + difference / 2), arm(rate - difference / 2)


def power(studies: int, seeds: int, pairs: int, rate: float, difference: float, seed_sd: float, shared: float = 0.3,
          questions: int = 1, margin: float = 0.1) -> dict[str, float]:
    """Shares of simulated studies in which a question ends with each verdict, `questions` being asked at once."""
    rng, counts = np.random.default_rng(0), dict.fromkeys((HELPS, HURTS, EQUIVALENT, UNDECIDED), 0)
    for _ in range(studies):
        tables = {("a", str(number)): draw(rng, seeds, pairs, rate, difference, seed_sd, shared)
                  for number in range(questions)}
        counts[decide(tables, seeds, margin)["a", "0"][2]] += 1
    return {verdict: count / studies for verdict, count in counts.items()}
