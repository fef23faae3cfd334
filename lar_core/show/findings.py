"""From numbers to plain words: what a run detected, what it did not, and what its numbers cannot say.

Pure functions on results.json (`results`) and on the rows of rollouts.jsonl (`rollouts`). A claim is made only where
an interval or a paired test supports it; everything else reads "not detected", with n and interval, never "no effect".
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..measure.statistics import (
    describe_difference,
    detectable_unpaired,
    difference_unpaired,
    mcnemar,
    sign_test,
    wilson,
)
from ..run.config import CONDITIONS, PROFILES
from ..run.registry import REGULARISERS
from ..scene.episode import kinds_of
from ..scene.placements import OTHER_SENTENCE
from .rates import CHANGES, by_task, changes, pooled, rows_of, tasks_of

DETECTED, OPPOSITE, NOT_DETECTED = "detected", "opposite detected", "not detected"
DESCRIBED, NOT_RUN = "no interval", "not run"
BLIND = "blind"  # the condition that is trained without images

_STEPS = {"training": "reproduce", "action": "saliency", "shortcut": "saliency", "reconstruction": "saliency",
          "denoising": "saliency", "grounding": "saliency",
          "rollouts": "rollout", "latency": "latency", "training_cost": "latency"}
_BASELINES = {"uniform": "a uniform map", "centre": "the image's centre",
              "mean_map": "where the object was in training on average"}


@dataclass(frozen=True)
class Finding:
    """One question to a run: `topic` is the claim in a few words, `verdict` one of the constants above."""

    topic: str
    verdict: str
    sentence: str


def findings(results: dict, rollouts: Iterable[dict] = ()) -> list[Finding]:
    """All questions in the order of the report; every one is answered, if only by the command that would answer it."""
    rollouts, found = list(rollouts), []
    policy = results["run"]["condition"]
    for placement in placements(results):
        if policy != BLIND:
            found.append(_seeing(results, rollouts, placement))
        found += [_obedience(results, placement) if change == "other_bowl" else
                  _language(results, rollouts, placement, change) for change in changes(results, placement)]
    found += [_overlap(results), _preference(results), _action(results)]
    found += [_shortcut(results)] if policy != BLIND else []
    found += [_reconstruction(results)] if reconstructor(results) not in ("none", "diffusion") else []
    return found + ([_denoising(results)] if reconstructor(results) == "diffusion" else [])


def headline(results: dict, found: Iterable[Finding]) -> list[str]:
    """Two to five sentences: success first, then what was detected, what was not, and what has not run."""
    found = list(found)
    sentences = [_success(results, placement) for placement in placements(results)]
    for verdict, words in ((DETECTED, "Detected"), (OPPOSITE, "Detected, against expectation"),
                           (NOT_DETECTED, "Not detected"), (NOT_RUN, "Not measured")):
        topics = [finding.topic for finding in found if finding.verdict == verdict]
        if topics:
            sentences.append(f"{words}: {'; '.join(topics)}.")
    return [sentence for sentence in sentences if sentence]


def command(results: dict, step: str = "reproduce") -> str:
    """The command line that runs one step, or all, of the same condition, profile, seed and changed settings."""
    run = results["run"]
    changed = [shlex.quote(f"{name}={_yaml(value)}") for name, value in _changes(run["config"])]
    return (f"lar {step} --condition {run['condition']} --profile {run['profile']} --seed {run['seed']}"
            f"{_options(results, step)}{' --set ' if changed else ''}{' '.join(changed)}")


def _options(results: dict, step: str) -> str:
    return f" --instructions {' '.join(kinds_of(tasks_of(results)))}" if step == "rollout" else ""


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


def _yaml(value: object) -> str:
    """As `--set` reads it; YAML takes 1e-05 for a word."""
    return np.format_float_positional(value, trim="0") if isinstance(value, float) else json.dumps(value).strip('"')


def missing(results: dict, section: str) -> str:
    """What a report says in the place of a section that is null."""
    return f"Not run yet: {command(results, _STEPS[section])} fills this in."


def reconstructor(results: dict) -> str:
    """The condition's decoder: none, mae or diffusion."""
    return results["run"]["config"]["condition"].get("reconstructor", "none")


def placements(results: dict) -> list[str]:
    """The placements that were rolled out, else the one that the profile asks for."""
    seen = list(dict.fromkeys(row["placement"] for row in results.get("rollouts") or []))
    return seen or [results["run"]["config"]["profile"].get("placement", "official")]


def rate(successes: int, n: int) -> str:
    """`14 of 20 rollouts (70 %, 95 % interval 48 to 85 %)`, Wilson."""
    interval = wilson(successes, n)
    return (f"{successes} of {n} rollouts ({100 * interval.value:.0f} %, 95 % interval {100 * interval.low:.0f} to "
            f"{100 * interval.high:.0f} %)")


def estimate(interval: dict | None) -> str:
    """`0.11 (0.09 to 0.13)`."""
    if interval is None:
        return "not measurable"
    return f"{interval['mean']:.3g} ({bounds(interval)})"


def bounds(interval: dict | None) -> str:
    """`0.09 to 0.13`."""
    if interval is None or interval["low"] is None or interval["high"] is None:
        return "no interval"
    return f"{interval['low']:.3g} to {interval['high']:.3g}"


def sample(measured: dict) -> str:
    """`12 held-out frames of 1 episode`: what a score was measured on."""
    frames, episodes = measured["frames"], measured["episodes"]
    return f"{frames} held-out frame{'s' * (frames != 1)} of {episodes} episode{'s' * (episodes != 1)}"


def above(a: dict | None, b: dict | None) -> bool:
    """Whether interval a lies wholly above interval b: stricter than a test of the difference at 5 %."""
    known = all(x is not None and x["low"] is not None and x["high"] is not None for x in (a, b))
    return known and a["low"] > b["high"]


def _success(results: dict, placement: str) -> str:
    policy = results["run"]["condition"]
    own, blind = pooled(results, policy, "right", placement), pooled(results, BLIND, "right", placement)
    if own is None:
        return ""
    control = f"; the control that cannot see solved {rate(*blind)}" if blind and policy != BLIND else ""
    return f"{policy} solved {rate(*own)} on {placement} placements{control}."


def _seeing(results: dict, rollouts: list[dict], placement: str) -> Finding:
    topic = f"seeing raises success ({placement} placements)"
    policy = results["run"]["condition"]
    own, blind = pooled(results, policy, "right", placement), pooled(results, BLIND, "right", placement)
    if own is None:
        return Finding(topic, NOT_RUN, missing(results, "rollouts"))
    if blind is None:
        return Finding(topic, NOT_RUN, f"It solved {rate(*own)}, but without the blind control this says nothing "
                       f"about seeing: {command(results)} adds it.")
    verdict, sentence = _difference(("the policy", own, outcomes(rollouts, policy, "right", placement)),
                                    ("its blind control", blind, outcomes(rollouts, BLIND, "right", placement)))
    meaning = {DETECTED: "The images help it to succeed here.", OPPOSITE: "The images hurt here.",
               NOT_DETECTED: "These rollouts do not show that the policy needs to see."}
    return Finding(topic, verdict, f"{sentence} {meaning[verdict]}")


def _language(results: dict, rollouts: list[dict], placement: str, change: str) -> Finding:
    topic = f"{CHANGES[change]} lowers success ({placement} placements)"
    policy, rows = results["run"]["condition"], rows_of(results, results["run"]["condition"], change, placement)
    tasks = [row["task"] for row in rows]
    right, changed = (pooled(results, policy, kind, placement, tasks=tasks) for kind in ("right", change))
    if right is None or changed is None:
        return Finding(topic, NOT_RUN, missing(results, "rollouts"))
    paired = {key: success for key, success in outcomes(rollouts, policy, "right", placement).items()
              if key[0] in tasks or None in tasks}
    verdict, sentence = _difference(("the right instruction", right, paired),
                                    (CHANGES[change], changed, outcomes(rollouts, policy, change, placement)))
    meaning = {DETECTED: "What the policy does depends on the sentence; that it understands it is not shown by this.",
               OPPOSITE: "The right sentence hurts here.",
               NOT_DETECTED: "These rollouts do not show that the policy listens."}
    single = f" {_capital(by_task(results, rows))}." if by_task(results, rows) else ""
    return Finding(topic, verdict, f"{sentence}{single} {meaning[verdict]}")


def _obedience(results: dict, placement: str) -> Finding:
    """Which of the two bowls is brought when the other one's sentence is told; each episode ends with the first."""
    topic = f"{CHANGES['other_bowl']} brings the other bowl ({placement} placements)"
    rows = rows_of(results, results["run"]["condition"], "other_bowl", placement)
    if not rows:
        return Finding(topic, NOT_RUN, missing(results, "rollouts"))
    n, ignored = sum(row["episodes"] for row in rows), sum(row["did_not_listen"] for row in rows)
    known = all(row["successes"] is not None for row in rows)
    other = sum(row["episodes"] - row["did_not_listen"] if row["successes"] is None else row["successes"] for row in rows)
    p = sign_test(other, ignored)
    verdict = NOT_DETECTED if p >= 0.05 else DETECTED if other > ignored else OPPOSITE
    if not known and verdict == DETECTED:  # `other` is only the most that it can be
        verdict = NOT_DETECTED
    meaning = {DETECTED: "It acts on which bowl the sentence names.", OPPOSITE: "It did not listen.",
               NOT_DETECTED: "These rollouts do not show that it acts on which bowl the sentence names."}
    brought = f"that one to the plate in {other}" if known else (
        f"that one to the plate in at most {other} (this older result did not watch it)")
    single = f" {_capital(by_task(results, rows))}." if by_task(results, rows) else ""
    return Finding(topic, verdict, f"Told of the other bowl, it brought {brought} and the scene's own in {ignored} of {n} "
                   f"rollouts (exact sign test p = {p:.2g}).{single}{_unheard(results, rows)} {meaning[verdict]}")


def _unheard(results: dict, rows: Iterable[dict]) -> str:
    """A sentence that is new to the policy asks more of it than one that it was trained on."""
    profile = results["run"]["config"]["profile"]
    new = [str(row["task"]) for row in rows if OTHER_SENTENCE.get(row["task"]) not in (None, *tasks_of(results))]
    if not new or profile.get("placement") == "counterfactual":  # there, either bowl is named in training
        return ""
    return f" It was not trained on the sentence told in task {_and(new)}."


def outcomes(rollouts: Iterable[dict], policy: str, instruction: str, placement: str) -> dict[tuple, bool]:
    """Success of every episode, by task, episode and init state."""
    return {(row["task"], row["episode"], row["init_seed"]): row["success"] for row in rollouts
            if (row["policy"], row["instruction"], row["placement"]) == (policy, instruction, placement)}


def _difference(a: tuple[str, tuple[int, int], dict], b: tuple[str, tuple[int, int], dict]) -> tuple[str, str]:
    """Verdict and sentence on (name, (successes, episodes), outcomes): paired where the init states are the same."""
    (name_a, counts_a, paired_a), (name_b, counts_b, paired_b) = a, b
    if not paired_a or paired_a.keys() != paired_b.keys():
        return _unpaired(name_a, counts_a, name_b, counts_b)
    first, second = zip(*((paired_a[key], paired_b[key]) for key in sorted(paired_a)))
    sentence = describe_difference(name_a, first, name_b, second)
    if mcnemar(first, second) >= 0.05:
        return NOT_DETECTED, _capital(sentence)
    return (DETECTED if sum(first) > sum(second) else OPPOSITE), _capital(sentence)


def _unpaired(name_a: str, a: tuple[int, int], name_b: str, b: tuple[int, int]) -> tuple[str, str]:
    """Newcombe's interval of the difference, for rollouts that do not share their init states."""
    difference = difference_unpaired(*a, *b)
    numbers = (f"{a[0]}/{a[1]} against {b[0]}/{b[1]}, {100 * difference.value:+.0f} points, 95 % interval "
               f"{100 * difference.low:+.0f} to {100 * difference.high:+.0f} points, unpaired")
    if difference.low <= 0 <= difference.high:
        least = detectable_unpaired(difference.n)
        return NOT_DETECTED, (f"A difference between {name_a} and {name_b} was not detected: {numbers}. "
                              f"So few rollouts can miss differences of up to about {100 * least:.0f} points.")
    more = difference.value > 0
    return (DETECTED if more else OPPOSITE), _capital(f"{name_a} is {'more' if more else 'less'} successful than "
                                                      f"{name_b}: {numbers}.")


def _overlap(results: dict) -> Finding:
    return _grounding(results, "aos", "saliency overlaps the named object more than maps that do not look",
                      "Overlap of the top 25 % with the named object (AOS)", chance=None)


def _preference(results: dict) -> Finding:
    return _grounding(results, "target_minus_distractor", "saliency prefers the named object to the other bowl",
                      "Saliency on the named object minus saliency on the other bowl", chance=0.0)


def _grounding(results: dict, metric: str, topic: str, name: str, chance: float | None) -> Finding:
    """Detected only if the policy's interval lies above that of *every* map that does not look (and above `chance`)."""
    grounding = results.get("grounding")
    if grounding is None:
        return Finding(topic, NOT_RUN, missing(results, "grounding"))
    series = grounding.get(metric)
    if not series or not series["model"]:
        return Finding(topic, NOT_RUN, f"{name} could not be measured: no held-out frame shows what it needs.")
    model, rivals = series["model"], {words: series[key] for key, words in _BASELINES.items()}
    if chance is not None:
        rivals["zero"] = {"mean": chance, "low": chance, "high": chance}
    beaten = [words for words, rival in rivals.items() if above(model, rival)]
    lower = [words for words, rival in rivals.items() if above(rival, model)]
    level = [words for words in rivals if words not in beaten + lower]
    verdict = DETECTED if len(beaten) == len(rivals) else OPPOSITE if len(lower) == len(rivals) else NOT_DETECTED
    parts = [f"{words} {_and(names)}" for words, names in (
        ("above", beaten), ("not told apart from", level), ("below", lower)) if names]
    return Finding(topic, verdict, f"{name} is {estimate(model)} on {sample(grounding)}: "
                   f"{'; '.join(parts)}.")


def _action(results: dict) -> Finding:
    topic = "actions are better than the mean action"
    action = results.get("action")
    if action is None:
        return Finding(topic, NOT_RUN, missing(results, "action"))
    ours, mean = action["l1"], action["l1_mean_action"]
    verdict = DETECTED if above(mean, ours) else OPPOSITE if above(ours, mean) else NOT_DETECTED
    meaning = {DETECTED: "It has learned something about acting.",
               OPPOSITE: "It acts worse than a constant: nothing else in this report is about a policy that works.",
               NOT_DETECTED: "Until it beats a constant, nothing else in this report is about a policy that works."}
    return Finding(topic, verdict, f"The error on held-out demonstrations is {estimate(ours)}, that of always "
                   f"predicting the mean action {estimate(mean)} ({sample(action)}). "
                   f"{meaning[verdict]}")


def _shortcut(results: dict) -> Finding:
    topic = "another frame's images make the actions worse"
    probe = results.get("shortcut")
    if probe is None:
        return Finding(topic, NOT_RUN, missing(results, "shortcut"))
    changed, zero = probe["whole"]["shuffled"]["increase"], {"mean": 0.0, "low": 0.0, "high": 0.0}
    verdict = DETECTED if above(changed, zero) else OPPOSITE if above(zero, changed) else NOT_DETECTED
    alone = "" if probe["head"] is None else (
        f", and by {estimate(probe['head']['shuffled']['increase'])} where only the head's own policy is shown them")
    meaning = {DETECTED: "The actions depend on the images.", OPPOSITE: "The right images mislead it.",
               NOT_DETECTED: "These frames do not show that the actions need the images."}
    return Finding(topic, verdict, f"With another held-out frame's images the action loss of "
                   f"{estimate(probe['right']['loss'])} {probe['unit']} grows by {estimate(changed)}{alone} "
                   f"({sample(probe)}). {meaning[verdict]}")


def _reconstruction(results: dict) -> Finding:
    topic = "reconstruction against simple guesses"
    recon = results.get("reconstruction")
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


def _denoising(results: dict) -> Finding:
    topic = "the denoiser needs the backbone's states"
    probe = results.get("denoising")
    if probe is None:
        return Finding(topic, NOT_RUN, missing(results, "denoising"))
    zero = {"mean": 0.0, "low": 0.0, "high": 0.0}
    verdict = DETECTED if above(probe["increase"], zero) else OPPOSITE if above(zero, probe["increase"]) else NOT_DETECTED
    meaning = {DETECTED: "What it reconstructs, it reads from the backbone.", OPPOSITE: "The right states mislead it.",
               NOT_DETECTED: "These frames do not show that the region is reconstructed from the backbone's states, without "
               "which the loss cannot teach the backbone anything."}
    return Finding(topic, verdict, f"Told by another frame's states the loss of {estimate(probe['loss'])} grows by "
                   f"{estimate(probe['increase'])} ({sample(probe)}; a denoiser "
                   f"that says nothing has loss 1). {meaning[verdict]}")


def caveats(results: dict) -> list[str]:
    """What the numbers of this run cannot say."""
    profile = results["run"]["config"]["profile"]
    assets = ((results.get("provenance") or {}).get("assets") or {}).get("name")
    scenes = (results.get("provenance") or {}).get("scenes") or []
    drawn = sorted({f"{scene['gl']['renderer']}, MuJoCo {scene['versions']['mujoco']}" for scene in scenes})
    tasks = profile.get("tasks", ())
    possible = (
        (any(scene["picture"]["check"] == "other" for scene in scenes), "The reference picture did not come out as expected "
         "on the machine of some rollouts: its renderer, its MuJoCo or its assets differ, and rates do not compare."),
        (len(drawn) > 1, f"The rollouts were not all drawn alike ({'; '.join(drawn)})."),
        (assets == "standin", "Stand-in assets: the objects have LIBERO's names, sizes and tasks but not its look. "
         "Numbers are comparable between runs on the same assets, not with the literature."),
        ("official" in placements(results), "Official placements can be passed blind: objects move by about a "
         "centimetre, so success there shows nothing about seeing. Wide and counterfactual placements can."),
        (len(tasks) == 1 and profile.get("placement") != "counterfactual", "One task means one sentence: training "
         "never asked for language. If a changed sentence lowers success, strange text disturbs it: no more is shown."),
        (True, "One training seed: the intervals cover the choice of init states and episodes, not that of the seed. "
         "A difference between two conditions needs at least three seeds of each."),
        (profile.get("backbone") == "tiny", "The backbone is a small PaliGemma trained here from scratch. What holds "
         "for it need not hold for the pre-trained 3-billion-parameter one."),
        (True, "Each question is tested at 5 % on its own: with this many, an accidental \"detected\" is not rare."),
    )
    return [sentence for applies, sentence in possible if applies]


def _and(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
