"""A study: which conditions, with which seeds, are compared, and how big. Read from a small YAML file (docs/study.md).

Every run of a study is an ordinary run (`RunConfig`); the blind control is one run per seed that all conditions share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from ..run.config import CONDITIONS, PROFILES, RunConfig, make_config
from ..run.errors import LarError, unknown
from ..run.folder import Run, blind_twin
from ..run.registry import Checked
from ..run.settings import Count, Instruction, Placement, Share
from . import statistics
from .plan import DEVIATIONS, Answer, Plan, PlanSection, answers, sealed
from .results import (
    CONTROLS,
    OTHER_BENCH,
    Result,
    bench_of,
    episodes_of,
    followed,
    load_results,
    measured,
    modern_rows,
    outcomes,
    scenes,
    summarise,
)
from .schema import Document, Estimate, Number, Provenance, Rollouts, Size, Values, Word, listed, optional, section
from .statistics import ALPHA, Interval

OWN_LINE = ("condition", "seed", "profile", "tasks", "placement")  # of these, `set` may change none


class Study(Checked):
    """What is compared: the lines of the file. Raises LarError, one sentence a mistake, for what cannot be."""

    name: str = Field(pattern=r"^[\w.-]+$")  # a folder is called so
    conditions: tuple[str, ...] = Field(strict=False)  # "all": every one that there is
    reference: str  # the condition that every other one is compared with; by default the first
    seeds: tuple[int, ...] = Field((0,), strict=False)
    profile: str = "tiny"
    tasks: tuple[int, ...] | None = Field(None, strict=False)  # None: the profile's
    placement: tuple[Placement, ...] = Field(("official",), strict=False)  # of demonstrations the first, of rollouts each
    instructions: tuple[Instruction, ...] | None = Field(None, strict=False)  # of rollouts; None: all there are
    plan: Plan | None = None  # of a study that was planned before it was run (docs/plan.md)
    set: dict[str, Any] = {}  # fields of condition or profile, the same in every run

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, lines: dict[str, Any]) -> dict[str, Any]:
        if "conditions" not in lines:
            if close := [line for line in lines if line not in cls.model_fields]:
                raise unknown("line of a study", close[0], cls.model_fields)
            raise LarError("It names no conditions: write, for example, conditions: [action_only, random_mask].")
        if lines["conditions"] == "all":
            lines = {**lines, "conditions": list(CONDITIONS)}
        named = lines["conditions"]
        return {"reference": named[0], **lines} if isinstance(named, list | tuple) and named else lines

    @field_validator("conditions", "seeds", "tasks", "placement", "instructions")
    @classmethod
    def _each_once(cls, values: tuple, info: ValidationInfo) -> tuple:
        if values is not None and (not values or len({*values}) < len(values)):
            raise LarError(f"{info.field_name} is {[*values]}, but must name something, and nothing twice.")
        return values

    @model_validator(mode="after")
    def _refuse_nonsense(self) -> Study:
        for kind, names, choices in (("condition", self.conditions, CONDITIONS), ("profile", [self.profile], PROFILES)):
            for name in names:
                if name not in choices:
                    raise unknown(kind, name, choices)
        if {*self.conditions} <= {*CONTROLS}:
            raise LarError("The blind control is part of every study: name at least one condition besides it.")
        for name in self.set:
            if name in OWN_LINE:
                raise LarError(f"{name} stands under set, but has a line of its own in a study: see docs/study.md.")
        if self.instructions and "right" not in self.instructions:
            raise LarError(f"instructions is {[*self.instructions]}, but arms are compared under the right one: add right.")
        for kind, name in (("reference", self.reference),
                           *(("condition of a planned question", name) for question in self.questions for name in question)):
            if name not in self.arms:
                raise unknown(kind, name, self.arms)
        return self

    @classmethod
    def load(cls, path: Path | str) -> Study:
        """Read a study's YAML. Raises LarError for a file that is none, naming the mistake."""
        return cls(**{"name": Path(path).stem, **sealed(Path(path), _mapping(Path(path)))})

    @property
    def arms(self) -> tuple[str, ...]:
        """The conditions, and their blind control (of deaf ones a deaf one)."""
        return tuple(dict.fromkeys((*self.conditions, *(condition for condition, _ in self.configs()))))

    @property
    def questions(self) -> tuple[tuple[str, str], ...]:
        """That were planned, further ones last."""
        return (*self.plan.questions, *self.plan.further) if self.plan else ()

    @property
    def changes(self) -> dict[str, Any]:
        """What differs from the presets in every run."""
        return {**self.set, **({"tasks": self.tasks} if self.tasks else {})}

    def configs(self) -> dict[tuple[str, int], RunConfig]:
        """The run of every (condition, seed), the blind controls first, because the others need them."""
        changes = {"placement": self.placement[0], **self.changes}
        own = {(condition, seed): make_config(condition, self.profile, seed, **changes)
               for condition in self.conditions for seed in self.seeds}
        twins = sorted(map(blind_twin, own.values()), key=lambda twin: twin.profile.cache)  # of two, the one with a cache
        blind = {(twin.condition.name, twin.seed): twin for twin in twins}
        return blind | {arm: config for arm, config in own.items() if arm not in blind}


def _mapping(path: Path) -> dict[str, Any]:
    try:
        lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise LarError(f"There is no {path}: name a study's YAML file, such as studies/small.yaml.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise LarError(f"{path} is not YAML ({' '.join(str(error).split())[:150]}): see docs/study.md.") from error
    if not isinstance(lines, dict) or not all(isinstance(name, str) for name in lines):
        raise LarError(f"{path} is not a study: it needs lines such as conditions: [action_only, attention_mask].")
    return lines


# Two arms of a study: how different they are, how sure one may be, and what so many rollouts could have missed.

MORE, LESS, NOT_DETECTED = "more successful", "less successful", "not detected"


@dataclass(frozen=True)
class Contrast:
    """Arm `a` against arm `b` before anything is known of other tests; `difference` is rate a - rate b."""

    a: np.ndarray  # (S, N) bool
    b: np.ndarray
    difference: Interval
    p: float  # McNemar's, exact, over the pairs of all seeds

    @classmethod
    def of(cls, a: np.ndarray, b: np.ndarray) -> Contrast:
        """Compare outcomes (S, N) pair by pair. Raises ValueError for unequal shapes."""
        a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
        if a.shape != b.shape:
            raise ValueError(f"Paired outcomes must have equal shapes, not {a.shape} and {b.shape}.")
        return cls(a, b, statistics.clustered_bootstrap(a.astype(float) - b), statistics.mcnemar(a.ravel(), b.ravel()))

    def detectable(self, tests: int) -> float:
        """Smallest difference that so many pairs find four times out of five, at the strictest of `tests` tests.

        The share of pairs that differ is taken at the upper end of its interval; the pairs count as independent, so
        with seeds that disagree the truth is larger.
        """
        differing = statistics.wilson(int((self.a != self.b).sum()), self.a.size).high
        return statistics.detectable_paired(self.a.size, differing, ALPHA / tests)

    def verdict(self, p_holm: float) -> str:
        """Detected only if the corrected test and the interval over seeds both say so."""
        low, high = self.difference.low, self.difference.high
        if p_holm >= ALPHA or low is None or low <= 0 <= high:
            return NOT_DETECTED
        return MORE if self.difference.value > 0 else LESS


def comparison(names: tuple[str, str], placement: str, contrast: Contrast, p_holm: float, tests: int) -> dict:
    """One entry of `comparisons` in study.json."""
    a, b = contrast.a, contrast.b
    row = {"condition": names[0], "reference": names[1], "placement": placement, "seeds": len(a), "pairs": a.size,
               "only_condition": int((a & ~b).sum()), "only_reference": int((b & ~a).sum()),
               "difference": contrast.difference.written,
               "cohens_h": statistics.cohens_h(a.mean(), b.mean()), "p": contrast.p, "p_holm": p_holm,
               "detectable": contrast.detectable(tests), "verdict": contrast.verdict(p_holm)}
    return row | {"sentence": _sentence(row, contrast, tests)}


def _sentence(row: dict, contrast: Contrast, tests: int) -> str:
    name, reference, seeds, where = row["condition"], row["reference"], row["seeds"], f"on {row['placement']} placements"
    over = f"over {f'{seeds} seeds' if seeds > 1 else 'rollouts of one seed'} "
    numbers = (f"{contrast.a.sum()}/{row['pairs']} against {contrast.b.sum()}/{row['pairs']}, "
               f"{statistics.points(contrast.difference, over)}, Cohen's h {row['cohens_h']:+.2f}, exact McNemar "
               f"p = {row['p']:.2g}, {row['p_holm']:.2g} after Holm's correction for {tests} "
               f"{'test' if tests == 1 else 'tests'}")
    if row["verdict"] != NOT_DETECTED:
        return f"{name} is {row['verdict']} than {reference} {where}: {numbers}."
    why = " The rollouts differ, but not alike in every seed." if row["p_holm"] < ALPHA and seeds > 1 else ""
    return (f"A difference between {name} and {reference} was not detected {where}: {numbers}.{why} A study of this "
            f"size can miss differences of up to about {100 * row['detectable']:.0f} points.")


# study.json: what the runs of a study say together, read and written through one schema (fields: docs/study.md).

FILE = "study.json"
SCORES = {"aos": ("grounding", "aos", "model"),  # where results.json has them: intervals, of which the mean is taken
          "target_minus_distractor": ("grounding", "target_minus_distractor", "model"), "action_l1": ("action", "l1"),
          "agreement": ("cause", "agreement", "model"), "energy": ("grounding", "energy", "model"),
          "deletion": ("cause", "curves", "model", "deletion", "area"),
          "position": ("mechanism", "positions", "named", "model"), "pull": ("mechanism", "pull")}
COSTS = {"parameters": ("training_cost", "own", "parameters"), "flops": ("training_cost", "own", "flops"),
         "train_step_ms": ("training_cost", "own", "step_ms"), "peak_bytes": ("training_cost", "own", "peak_bytes"),
         "train_seconds": ("training", "seconds"), "act_ms": ("latency", "p50_ms")}
BASE = "action_only"  # what every run measures beside its own training step, at the same moment

Score = section(mean=float, low=float | None, high=float | None, seeds=listed(float), over_reference=Estimate | None)
Cost = section(mean=Size, ratio=Size | None)
Arm = section(condition=Word, runs=listed(Word), success=listed(Rollouts), **dict.fromkeys(SCORES, optional(Score)),
              costs=section(**dict.fromkeys(COSTS, Cost | None)))
Comparison = section(
    condition=Word, reference=Word, placement=Placement, seeds=Count, pairs=Count, only_condition=Number,
    only_reference=Number, difference=Estimate, cohens_h=float, p=Share, p_holm=Share, detectable=Share,
    verdict=Literal[MORE, LESS, NOT_DETECTED], sentence=Word,
    followed=optional(section(condition=Number, reference=Number, difference=Estimate)), proved=(bool, False))
StudyDocument = section(
    schema_version=Literal[1], provenance=Provenance, arms=listed(Arm), comparisons=list[Comparison],
    plan=optional(PlanSection), answers=(list[Answer], []),
    study=section(name=Word, conditions=listed(Word), reference=Word, seeds=listed(int), profile=Word,
                  placements=listed(Placement), changes=Values))


def _modern(document: dict) -> dict:
    """Older studies by the present names of what the policies were told; the tasks are those that were rolled out."""
    def of(rows: list[dict]) -> list[dict]:
        return modern_rows(rows, [row["task"] for row in rows if row["task"] is not None])
    return document | {"arms": [arm | {"success": of(arm["success"])} for arm in document["arms"]]}


Arms = dict[str, dict[int, Result]]  # of every condition its finished runs, by seed
STUDY = Document(StudyDocument, "study", "lar study", _modern)


def compare_arms(study: Study, runs: dict[tuple[str, int], Run], folder: Path) -> dict:
    """Compare the finished runs of a study, all or those that there are; validates, writes and returns `study.json`.

    Arms are compared over the seeds that both have. Raises LarError for rollouts that cannot be paired, for runs that used
    different assets, and where the reference has no finished run.
    """
    arms: dict[str, dict[int, Result]] = {}
    for (condition, seed), run in runs.items():
        made = Result(run.path.name, load_results(run.results), tuple(episodes_of(run)))
        arms.setdefault(condition, {})[seed] = made
    if study.reference not in arms:
        raise LarError(f"No run of {study.reference}, the reference of the study, is finished in {folder}: there is nothing "
                       "to compare the others with yet.")
    arms = {condition: arms[condition] for condition in study.arms if condition in arms}
    document = {
        "schema_version": 1,
        "study": {"name": study.name, "conditions": list(arms), "reference": study.reference,
                  "seeds": [seed for seed in study.seeds if any(seed in made for made in arms.values())],
                  "profile": study.profile, "placements": list(study.placement),
                  "changes": json.loads(json.dumps(study.changes))},
        "provenance": _provenance(study, arms),
        "arms": [_arm(condition, made, arms[study.reference], study.placement) for condition, made in arms.items()],
        "comparisons": comparisons(study, arms), **_planned(study, arms)}
    STUDY.save(folder / FILE, document)
    return document


def _planned(study: Study, arms: Arms) -> dict:
    """What was planned, and the answers at the first placement so far."""
    if study.plan is None:
        return {}
    where, planned = study.placement[0], len(study.seeds)
    tables = {(a, b): _paired(*_shared(arms[a], arms[b]), where) for a, b in study.questions
              if {a, b} <= {*arms} and {*arms[a]} & {*arms[b]}}
    return {"plan": {**study.plan.model_dump(include={"document", "sha256", "margin"}), "planned": planned},
            "answers": answers(study.plan, tables, planned, where)}


def _shared(a: dict[int, Result], b: dict[int, Result]) -> tuple[list[Result], list[Result]]:
    """The runs of two arms with the same seeds, in order."""
    seeds = [seed for seed in a if seed in b]
    return [a[seed] for seed in seeds], [b[seed] for seed in seeds]


def comparisons(study: Study, arms: Arms) -> list[dict]:
    """Every arm against the reference, at every placement; all p values are corrected together."""
    pairs = {condition: _shared(made, arms[study.reference]) for condition, made in arms.items()
             if condition != study.reference and {*made} & {*arms[study.reference]}}
    contrasts = {(condition, placement): Contrast.of(*_paired(*both, placement))
                 for placement in study.placement for condition, both in pairs.items()}
    corrected = statistics.holm([contrast.p for contrast in contrasts.values()])
    return [comparison((condition, study.reference), placement, contrast, p, len(contrasts))
            | {"followed": _followed(*_paired(*pairs[condition], placement, followed)),
               "proved": all(row.get("begun") for results in pairs[condition] for result in results
                             for row in result.rows if row["placement"] == placement)}
            for ((condition, placement), contrast), p in zip(contrasts.items(), corrected)]


def _followed(a: np.ndarray, b: np.ndarray) -> dict | None:
    """How often two arms followed the sentence, paired as success is, but without a test of its own; None: not recorded.

    a, b: (S, N), True, False or None.
    """
    if None in a or None in b:
        return None
    difference = Contrast.of(a, b).difference
    return {"condition": int(a.sum()), "reference": int(b.sum()), "difference": difference.written}


def _paired(a: Sequence[Result], b: Sequence[Result], placement: str,
            outcome: Callable[[dict], bool | None] = itemgetter("success")) -> tuple[np.ndarray, np.ndarray]:
    """Outcomes (S, N) of two arms, seed by seed, in the same order of init states. Raises LarError if they differ."""
    tables = [[outcomes(result.rows, result.condition, placement=placement, outcome=outcome) for result in arm]
              for arm in (a, b)]
    keys = sorted(tables[0][0])
    for result, table in zip((*a, *b), (*tables[0], *tables[1])):
        other = next((key for key, one in zip(sorted(table), keys) if key[:-1] == one[:-1] and key != one), None)
        if other and len(table) == len(keys):
            raise LarError(f"{result.name} and {a[0].name} began episode {other[2]} of task {other[1]} ({placement} "
                           "placements) in different states, so they are no pairs: delete the rollouts.jsonl of one of "
                           "them, and roll out both on one machine with the same versions and assets.")
        if sorted(table) != keys or not keys:
            raise LarError(f"{result.name} and {a[0].name} were not rolled out on the same {placement} init states: "
                           "run the study again with one setting of tasks and episodes_per_task.")
    return tuple(np.array([[table[key] for key in keys] for table in arm]) for arm in tables)


def _arm(condition: str, seeds: dict[int, Result], reference: dict[int, Result], placements: Sequence[str]) -> dict:
    """One entry of `arms`; success is counted over all seeds."""
    made = [*seeds.values()]
    rows = [row for result in made for row in result.rows if row["placement"] in placements]
    return {"condition": condition, "runs": [result.name for result in made], "success": summarise(rows),
            **{name: _score(seeds, reference, path) for name, path in SCORES.items()},
            "costs": {name: _cost(made, path) for name, path in COSTS.items()}}


def _score(made: dict[int, Result], reference: dict[int, Result], path: Sequence[str]) -> dict | None:
    """Mean over seeds, and mean difference from the same seeds of the reference, with intervals over seeds."""
    values = [measured(result.results, (*path, "mean")) for result in made.values()]
    if None in values:
        return None
    own, beside = ([measured(result.results, (*path, "mean")) for result in arm] for arm in _shared(made, reference))
    gain = None if None in beside or not beside else statistics.bootstrap_mean(np.subtract(own, beside)).written
    return {**statistics.bootstrap_mean(values).written, "seeds": values, "over_reference": gain}


def _cost(made: Sequence[Result], path: Sequence[str]) -> dict | None:
    """Mean over seeds; ratio: how many times that of `action_only`, where each run measured both."""
    values = [measured(result.results, path) for result in made]
    if None in values:
        return None
    beside = [measured(result.results, [BASE if name == "own" else name for name in path]) for result in made]
    ratio = float(np.mean(np.divide(values, beside))) if "own" in path else None
    return {"mean": float(np.mean(values)), "ratio": ratio}


def _provenance(study: Study, arms: Arms) -> dict:
    """That of the first run. Raises LarError where another one is of another bench or plan, or used other assets."""
    results = [result for made in arms.values() for result in made.values()]
    for result in results if study.plan else ():
        if result.results["provenance"].get("plan") != study.plan.sha256:
            raise LarError(f"{result.name} was not made under the plan that {study.plan.document} and the study's file have "
                           f"now: put both back as they were, and write what changed under \"{DEVIATIONS}\", which is no "
                           "part of the plan.")
    if len({bench_of(result.results) for result in results}) > 1:
        raise LarError(f"The runs of this study are of two benches. {OTHER_BENCH} Run all with one, in another --run-dir.")
    made = [result.results["provenance"] for result in results]
    if len({json.dumps(one["assets"], sort_keys=True) for one in made}) > 1:
        raise LarError("The runs of this study used different assets: run all with one set in another --run-dir.")
    return {**made[0], "commit": ", ".join(sorted({one["commit"] for one in made})),
            "scenes": scenes([row for result in results for row in result.rows])}
