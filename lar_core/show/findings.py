"""From numbers to plain words: what a run detected, what it did not, and what its numbers cannot say.

Pure functions on results.json (`results`) and on the rows of rollouts.jsonl (`rollouts`). A claim is made only where
an interval or a paired test supports it; everything else reads "not detected", with n and interval, never "no effect".
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..measure import statistics
from ..measure.results import AUDIT, CONTROLS, audited, control_of, outcomes
from ..run.config import CONDITIONS, PROFILES
from ..run.registry import REGULARISERS
from ..run.settings import MINIATURES, PAIRED
from ..scene.episode import kinds_of
from ..scene.placements import OTHER_SENTENCE
from .questions import QUESTIONS, ZERO
from .rates import CHANGES, by_task, changes, estimate, first_touched, placements, pooled, rate, rows_of, sample, tasks_of

DETECTED, OPPOSITE, NOT_DETECTED = "detected", "opposite detected", "not detected"
DESCRIBED, NOT_RUN = "no interval", "not run"

@dataclass(frozen=True)
class Finding:
    """One question to a run: `topic` is the claim in a few words, `verdict` one of the constants above."""

    topic: str
    verdict: str
    sentence: str


MAPS = (  # (metric, claim, what is measured, also to be beaten)
    ("aos", "saliency overlaps the named object more than maps that do not look",
     "Overlap of the top 25 % with the named object (AOS)", {}),
    ("target_minus_distractor", "saliency prefers the named object to the other bowl",
     "Saliency on the named object minus saliency on the other bowl", {"zero": ZERO}),
)
_BASELINES = {"uniform": "a uniform map", "centre": "the image's centre",
              "mean_map": "where the object was in training on average"}


def findings(results: dict, rollouts: Iterable[dict] = ()) -> list[Finding]:
    """All questions in the order of the report; every one is answered, if only by the command that would answer it."""
    rollouts, found = list(rollouts), []
    sees, decoder = results["run"]["condition"] not in CONTROLS, reconstructor(results)
    hears = not results["run"]["config"]["condition"].get("deaf")
    for placement in placements(results):
        found += [_seeing(results, rollouts, placement)] if sees else []
        found += [_obedience(results, placement) if change == "other_bowl" else
                  _language(results, rollouts, placement, change) for change in changes(results, placement) if hears]
        found += _following(results, placement) if hears else []
    if audited(results):
        return found
    found += [_grounding(results, *about) for about in MAPS]
    asked = {"action": True, "shortcut": sees, "denoising": decoder == "diffusion", "cause": sees} | {
        part: sees and bool(_at(results, part)) for part in ("cause.pixels", "cause.pixels.swapped")}
    found += [_interval(results, section) for section in QUESTIONS if asked[section]]
    return found + ([_reconstruction(results)] if decoder not in ("none", "diffusion") else [])


def headline(results: dict, found: Iterable[Finding]) -> list[str]:
    """Two to five sentences: success first, then what was detected, what was not, and what has not run."""
    found = list(found)
    sentences = [_success(results, placement) for placement in placements(results)]
    for verdict, words in ((DETECTED, "Detected"), (OPPOSITE, "Detected, against expectation"),
                           (NOT_DETECTED, "Not detected"), (NOT_RUN, "Not measured")):
        topics = [finding.topic for finding in found if finding.verdict == verdict]
        sentences += [f"{words}: {'; '.join(topics)}."] if topics else []
    return [sentence for sentence in sentences if sentence]


def reconstructor(results: dict) -> str:
    """The condition's decoder: none, mae or diffusion."""
    return results["run"]["config"]["condition"].get("reconstructor", "none")


# The commands that would answer

def missing(results: dict, section: str, placement: str | None = None) -> str:
    """What a report says in the place of a section that is null, or of rollouts on a placement."""
    steps = {"training": "reproduce", "rollouts": "rollout", "latency": "latency", "training_cost": "latency"}
    return f"Not run yet: {command(results, steps.get(section, 'saliency'), placement)} fills this in."


def command(results: dict, step: str = "reproduce", placement: str | None = None) -> str:
    """The command line that runs one step, or all, of the same condition, profile, seed and changed settings."""
    run = results["run"]
    if audited(results):
        on = "" if placement is None else f" --on {placement}"
        return f"lar audit --server ws://HOST:PORT --run-dir DIR --tasks {' '.join(map(str, tasks_of(results)))}{on}"
    options = f" --instructions {' '.join(kinds_of(tasks_of(results)))}" if step == "rollout" else ""
    if placement not in (None, run["config"]["profile"].get("placement", "official")):
        options += f" --on {placement}"
    changed = [shlex.quote(f"{name}={json.dumps(value).strip(chr(34))}") for name, value in _changes(run["config"])]
    return (f"lar {step} --condition {run['condition']} --profile {run['profile']} --seed {run['seed']}"
            f"{options}{' --set ' if changed else ''}{' '.join(changed)}")


def _changes(config: dict) -> list[tuple[str, object]]:
    """Settings that differ from the presets of the same names."""
    changes = []
    for values, presets in ((config["condition"], CONDITIONS), (config["profile"], PROFILES)):
        if values.get("name") in presets:
            preset = presets[values["name"]].model_dump(mode="json")
            off = {name: 0.0 for name in preset if name in REGULARISERS}
            values = off | json.loads(json.dumps(values))  # tuples as lists, as in a file
            changes += [(name, value) for name, value in values.items()
                        if (name in preset or name in REGULARISERS) and value != preset.get(name, 0)]
    return changes


# Success

def _success(results: dict, placement: str) -> str:
    policy = results["run"]["condition"]
    own, blind = (pooled(results, name, "right", placement) for name in (policy, control_of(results)))
    if own is None:
        return ""
    who = "shown grey pictures it" if audited(results) else "the control that cannot see"
    control = f"; {who} solved {rate(*blind)}" if blind and policy not in CONTROLS else ""
    touched = first_touched(results, policy, "right", placement)
    first = f" and first touched the named bowl in {touched['named']}/{touched.total()}" if touched else ""
    return f"{policy} solved {rate(*own)} on {placement} placements{first}{control}."


class _Rolled(NamedTuple):
    """Rollouts of one kind: its name in sentences, (successes, episodes), and success by what pairs two episodes."""

    name: str
    counts: tuple[int, int] | None
    outcomes: dict[tuple, bool]


def _rolled(results: dict, rollouts: list[dict], placement: str, name: str, policy: str, instruction: str = "right",
            tasks: Collection[int | None] | None = None) -> _Rolled:
    """tasks: on these alone; None, or among them None: on all."""
    single = outcomes(rollouts, policy, instruction, placement).items()
    return _Rolled(name, pooled(results, policy, instruction, placement, tasks=tasks),
                   {key: success for key, success in single if tasks is None or key[1] in tasks or None in tasks})


def _seeing(results: dict, rollouts: list[dict], placement: str) -> Finding:
    topic = f"seeing raises success ({placement} placements)"
    own = _rolled(results, rollouts, placement, "the policy", results["run"]["condition"])
    control = "the same policy shown grey pictures" if audited(results) else "its blind control"
    blind = _rolled(results, rollouts, placement, control, control_of(results))
    if own.counts is None:
        return Finding(topic, NOT_RUN, missing(results, "rollouts", placement))
    if blind.counts is None:
        return Finding(topic, NOT_RUN, f"It solved {rate(*own.counts)}, but without {control} this says nothing "
                       f"about seeing: " + (f"{command(results)} adds that." if audited(results) else
                                            f"{command(results)} trains it, and {command(results, 'rollout', placement)} "
                                            "adds it."))
    return _judged(topic, *_difference(own, blind), (
        "The images help it to succeed here.", "The images hurt here.",
        "These rollouts do not show that the policy needs to see."))


def _language(results: dict, rollouts: list[dict], placement: str, change: str) -> Finding:
    topic, policy = f"{CHANGES[change]} lowers success ({placement} placements)", results["run"]["condition"]
    rows = rows_of(results, policy, change, placement)
    tasks = [row["task"] for row in rows]
    right = _rolled(results, rollouts, placement, "the right instruction", policy, tasks=tasks)
    changed = _rolled(results, rollouts, placement, CHANGES[change], policy, change)
    if right.counts is None or changed.counts is None:
        return Finding(topic, NOT_RUN, missing(results, "rollouts", placement))
    verdict, sentence = _difference(right, changed)
    return _judged(topic, verdict, f"{sentence}{_single(results, rows)}", (
        "What the policy does depends on the sentence; that it understands it is not shown by this.",
        "The right sentence hurts here.", "These rollouts do not show that the policy listens."))


def _obedience(results: dict, placement: str) -> Finding:
    """Which of the two bowls is brought when the other one's sentence is told; each episode ends with the first."""
    topic = f"{CHANGES['other_bowl']} brings the other bowl ({placement} placements)"
    rows = rows_of(results, results["run"]["condition"], "other_bowl", placement)
    if not rows:
        return Finding(topic, NOT_RUN, missing(results, "rollouts", placement))
    n, ignored = sum(row["episodes"] for row in rows), sum(row["did_not_listen"] for row in rows)
    known = all(row["successes"] is not None for row in rows)
    other = sum(row["episodes"] - row["did_not_listen"] if row["successes"] is None else row["successes"] for row in rows)
    p = statistics.sign_test(other, ignored)
    verdict = NOT_DETECTED if p >= statistics.ALPHA else DETECTED if other > ignored else OPPOSITE
    if not known and verdict == DETECTED:  # `other` is only the most that it can be
        verdict = NOT_DETECTED
    brought = str(other) if known else f"at most {other} (this older result did not watch it)"
    return _judged(topic, verdict, f"Told of the other bowl, it brought that one to the plate in {brought} and the scene's "
                   f"own in {ignored} of {n} rollouts (exact sign test p = {p:.2g}).{_single(results, rows)}"
                   f"{_unheard(results, rows)}", (
                       "It acts on which bowl the sentence names.", "It did not listen.",
                       "These rollouts do not show that it acts on which bowl the sentence names."))


def _following(results: dict, placement: str) -> list[Finding]:
    """Which bowl is touched first, where either one is named equally often; nothing where that was not recorded."""
    touched = first_touched(results, results["run"]["condition"], "right", placement)
    if touched is None or placement not in PAIRED:
        return []
    named, other = touched["named"], touched["other"]
    p = statistics.sign_test(named, other)
    verdict = NOT_DETECTED if p >= statistics.ALPHA else DETECTED if named > other else OPPOSITE
    return [_judged(f"the sentence decides which bowl is touched first ({placement} placements)", verdict,
                    f"It first touched the bowl that the sentence names in {rate(named, touched.total())}, the other one in "
                    f"{other}, something else in {touched['else']} and nothing in {touched['none']} (exact sign test "
                    f"p = {p:.2g}). Each scene comes twice, once for either bowl, so that a deaf policy can follow the "
                    "sentence in one half at most.", (
                        "It goes for the bowl that the sentence names.", "It goes for the other bowl.",
                        "These rollouts do not show that it goes for the bowl that the sentence names."))]


def _single(results: dict, rows: Iterable[dict]) -> str:
    tasks = by_task(results, rows)
    return f" {_capital(tasks)}." if tasks else ""


def _unheard(results: dict, rows: Iterable[dict]) -> str:
    """A sentence that is new to the policy asks more of it than one that it was trained on."""
    profile = results["run"]["config"]["profile"]
    new = [str(row["task"]) for row in rows if OTHER_SENTENCE.get(row["task"]) not in (None, *tasks_of(results))]
    if not new or audited(results) or profile.get("placement") in PAIRED:  # there, either bowl is named in training
        return ""
    return f" It was not trained on the sentence told in task {_and(new)}."


def _difference(a: _Rolled, b: _Rolled) -> tuple[str, str]:
    """Verdict and sentence: paired where the init states are the same."""
    if not a.outcomes or a.outcomes.keys() != b.outcomes.keys():
        return _unpaired(a, b)
    first, second = zip(*((a.outcomes[key], b.outcomes[key]) for key in sorted(a.outcomes)))
    sentence = _capital(statistics.describe_difference(a.name, first, b.name, second))
    if statistics.mcnemar(first, second) >= statistics.ALPHA:
        return NOT_DETECTED, sentence
    return (DETECTED if sum(first) > sum(second) else OPPOSITE), sentence


def _unpaired(a: _Rolled, b: _Rolled) -> tuple[str, str]:
    """Newcombe's interval of the difference, for rollouts that do not share their init states."""
    (won_a, n_a), (won_b, n_b) = a.counts, b.counts
    difference = statistics.difference_unpaired(won_a, n_a, won_b, n_b)
    numbers = f"{won_a}/{n_a} against {won_b}/{n_b}, {statistics.points(difference)}, unpaired"
    if difference.low <= 0 <= difference.high:
        least = statistics.detectable_unpaired(difference.n)
        return NOT_DETECTED, statistics.not_detected(a.name, b.name, numbers, least)
    verdict, more = (DETECTED, "more") if difference.value > 0 else (OPPOSITE, "less")
    return verdict, _capital(f"{a.name} is {more} successful than {b.name}: {numbers}.")


# What was measured on held-out frames

def _interval(results: dict, section: str) -> Finding:
    question, measured = QUESTIONS[section], _at(results, section)
    if measured is None:
        return Finding(question.topic, NOT_RUN, missing(results, section))
    high, low = question.higher(measured)
    verdict = DETECTED if above(high, low) else OPPOSITE if above(low, high) else NOT_DETECTED
    return _judged(question.topic, verdict, question.sentence(measured), question.meanings)


def _at(results: dict, section: str) -> dict | None:
    """A section, or the part of it that its name has behind dots."""
    found = results
    for name in section.split("."):
        found = (found or {}).get(name)
    return found


def _grounding(results: dict, metric: str, topic: str, name: str, others: dict[str, dict]) -> Finding:
    """Detected only if the policy's interval lies above that of *every* map that does not look (and above `others`)."""
    grounding = results.get("grounding")
    if grounding is None:
        return Finding(topic, NOT_RUN, missing(results, "grounding"))
    series = grounding.get(metric)
    if not series or not series["model"]:
        return Finding(topic, NOT_RUN, f"{name} could not be measured: no held-out frame shows what it needs.")
    model, rivals = series["model"], {words: series[key] for key, words in _BASELINES.items()} | others
    beaten = [words for words, rival in rivals.items() if above(model, rival)]
    lower = [words for words, rival in rivals.items() if above(rival, model)]
    level = [words for words in rivals if words not in beaten + lower]
    verdict = DETECTED if len(beaten) == len(rivals) else OPPOSITE if len(lower) == len(rivals) else NOT_DETECTED
    parts = [f"{words} {_and(names)}" for words, names in (
        ("above", beaten), ("not told apart from", level), ("below", lower)) if names]
    return Finding(topic, verdict, f"{name} is {estimate(model)} on {sample(grounding)}: {'; '.join(parts)}.")


def _reconstruction(results: dict) -> Finding:
    topic, recon = "reconstruction against simple guesses", results.get("reconstruction")
    if recon is None:
        return Finding(topic, NOT_RUN, missing(results, "reconstruction"))
    beaten = [words for key, words in (("mean_patch", "the mean visible patch"), ("neighbours", "interpolation"))
              if recon["loss"] < recon[key]]
    order = f"lower than {_and(beaten)}" if beaten else "not lower than either guess"
    leak = "" if results["run"]["config"]["condition"].get("mask_input") else (
        " The decoder's visible features come from a pass that saw the whole image, so a low loss may be leakage.")
    return Finding(topic, DESCRIBED, f"The loss on masked patches of {recon['frames']} frames is {recon['loss']:.3g}, "
                   f"{order} (mean visible patch {recon['mean_patch']:.3g}, interpolation between visible neighbours "
                   f"{recon['neighbours']:.3g}); these are averages without an interval.{leak}")


def above(a: dict | None, b: dict | None) -> bool:
    """Whether interval a lies wholly above interval b: stricter than a test of the difference at 5 %."""
    known = all(x is not None and x["low"] is not None and x["high"] is not None for x in (a, b))
    return known and a["low"] > b["high"]


def _judged(topic: str, verdict: str, sentence: str, meanings: Sequence[str]) -> Finding:
    """meanings: as in a `Question`."""
    return Finding(topic, verdict, f"{sentence} {meanings[(DETECTED, OPPOSITE, NOT_DETECTED).index(verdict)]}")


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


# What the numbers cannot say

def caveats(document: dict) -> list[str]:
    """What the numbers of a run (results.json) or of a study (study.json) cannot say."""
    study, made = document.get("study"), document.get("provenance") or {}
    profile = {} if study else document["run"]["config"]["profile"]
    seeds, commit = len(study["seeds"]) if study else 1, made.get("commit", "")
    scenes, served = made.get("scenes") or [], profile.get("name") == AUDIT
    drawn = sorted({f"{scene['gl']['renderer']}, MuJoCo {scene['versions']['mujoco']}" for scene in scenes})
    possible = (
        (any(scene["picture"]["check"] == "other" for scene in scenes), "The reference picture did not come out as expected "
         "on the machine of some rollouts: its renderer, its MuJoCo or its assets differ, and rates do not compare."),
        (len(drawn) > 1, f"The rollouts were not all drawn alike ({'; '.join(drawn)})."),
        ((made.get("assets") or {}).get("name") == "standin", "Stand-in assets: the objects have LIBERO's names, sizes and "
         "tasks but not its look. Numbers are comparable between runs on the same assets, not with the literature."),
        ("official" in (study or {}).get("placements", () if study else placements(document)), "Official placements can be "
         "passed blind: objects move by about a centimetre, so success there shows nothing about seeing. Near and "
         "wide placements can, and counterfactual ones for language."),
        (served, "What the policy was trained on is not known here: pictures, sentences and placements may be new to it. "
         "Grey pictures are, to one that never saw any, so that what they cost can be surprise."),
        (not served and len(profile.get("tasks", ())) == 1 and profile.get("placement") not in PAIRED, "One task means one "
         "sentence: training never asked for language. If a changed sentence lowers success, strange text disturbs it: no "
         "more is shown."),
        (any(row["instruction"] == "other_bowl" and row["placement"] in PAIRED for row in document.get("rollouts") or []),
         "Counterfactual scenes come in pairs, so that rollouts told of the other bowl are those of the twin scenes once "
         "more and no further evidence."),
        (not study, "The intervals cover the choice of init states and episodes, not that of the training seed."),
        (seeds < 3, f"{'One' if seeds == 1 else seeds} training seed{'s' * (seeds > 1)}: a difference between two "
         "conditions needs at least three of each before it is believed."),
        (profile.get("backbone") in (*MINIATURES, "tiny"), "The backbone is a PaliGemma in miniature. What holds for it "
         "need not hold for the pre-trained 3-billion-parameter one."),
        (study and ("," in commit or "+" in commit), f"The runs were not all made by one committed state of the code "
         f"({commit})."),
        (study and not all(row.get("proved") for row in document["comparisons"]), "That both arms of a pair began in the "
         "same state is known by number only: some of these rollouts did not record the state's hash."),
        (study, "Every condition is compared with the reference only: two others may differ from each other undetected."),
        (not study, "Each question is tested at 5 % on its own: with this many, an accidental \"detected\" is not rare."),
    )
    return [sentence for applies, sentence in possible if applies]
