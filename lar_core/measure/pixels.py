"""Counterfactual pixels: the scene of a held-out frame is changed and rendered again; does the action follow?

    named_gone   the bowl that the sentence names is not there
    other_gone   the other bowl, its twin, is not there
    swapped      each bowl, with what it stands on or next to, takes the other's place, where the scene has such a thing

The sentence stays as it is. In `swapped` two such bowls stand about where two stood, and what they are named by has changed
places: a policy that acts on what is named now heads for the other place. Frames before the gripper first closes
are asked, while the hand is farther than NEAR from both bowls.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ..data.dataset import DemoDataset, Stats, channels_first, to_device
from ..data.demos import Episode
from ..model.policy import Policy
from ..run.errors import LarError, say_once
from ..run.settings import Profile
from ..scene.env import pool, tasks_by_instruction
from ..scene.placements import BOWLS, X_ADDRESS
from ..scene.rerender import CHANGES, changed, partners, repaint
from .cause import Answer
from .statistics import evenly, over_episodes

SHOWN = 2
NEAR = 0.05  # metres

Moment = tuple[Episode, int]  # and a step of it


def pixels(policy: Policy, stats: Stats, dataset: DemoDataset, episodes: Sequence[Episode],
           profile: Profile) -> tuple[dict | None, np.ndarray | None]:
    """The section `pixels` of results.json, of the held-out `episodes`, whose frames `dataset` holds; and SHOWN of the
    frames in all of CHANGES that their scenes have, (n, 3 or 4, H, W, 3) uint8.

    Both None where these demonstrations hold no states of a scene, or nothing can be rendered here, which is said.
    """
    starts = np.searchsorted(dataset.episode, np.arange(len(episodes)))
    asked = [(number, step) for number, episode in enumerate(episodes) if _fixtures(episode) is not None
             for step in approaching(episode)]
    asked = [asked[i] for i in evenly(len(asked), profile.scene_frames)] if asked else []
    moments = [(episodes[number], step) for number, step in asked]
    try:
        drawn = _drawn(moments, profile) if asked else {}
    except LarError as error:
        say_once(f"What the policy would do in changed scenes is not measured: {error}")
        return None, None
    if not drawn:
        return None, None
    return (_compared(policy, stats, dataset, np.array([starts[number] + step for number, step in asked]), moments, drawn),
            _shown(drawn))


def approaching(episode: Episode) -> list[int]:
    """The steps before the gripper first closes in which the hand is farther than NEAR from both bowls."""
    if episode.states is None:
        return []
    hand, closing = episode.ee_pos[:, None], np.flatnonzero(episode.actions[:, 6] > 0)
    far = (np.linalg.norm(places(episode.states, BOWLS) - hand, axis=-1) > NEAR).all(axis=1)
    return np.flatnonzero(far[: closing[0] if len(closing) else None]).tolist()


def places(states: np.ndarray, names: Iterable[str]) -> np.ndarray:
    """Where objects stand in flattened states (T, 92): metres (T, n, 3)."""
    return np.stack([states[:, X_ADDRESS[name] : X_ADDRESS[name] + 3] for name in names], axis=1)


def _fixtures(episode: Episode) -> str | int | None:
    """What tells where cabinet and stove stand, as `repaint` takes it; None where nothing does."""
    if "<body" in episode.model_file:
        return episode.model_file
    return episode.provenance.get("seed") if "expert_seed" in episode.provenance else None


def _change(moment: Moment, change: str) -> np.ndarray | None:
    """The state of a moment after one of CHANGES; None where its scene does not have that change."""
    episode, step = moment
    task = tasks_by_instruction().get(episode.instruction)
    swapped = partners(task) if task is not None and episode.target == BOWLS[0] else None
    if change == "swapped" and swapped is None:
        return None
    return changed(episode.states[step], change, (episode.target, episode.distractor), swapped or ())


def _drawn(moments: Sequence[Moment], profile: Profile) -> dict[str, dict[str, np.ndarray]]:
    """By change: which of the moments have it, `where` (n,), their `states` (n, 92) and pictures (n, ...)."""
    states = {change: [_change(moment, change) for moment in moments] for change in CHANGES}
    where = {change: [i for i, state in enumerate(those) if state is not None] for change, those in states.items()}
    scenes = [(_fixtures(moments[i][0]), states[change][i]) for change in CHANGES for i in where[change]]
    with pool(1) as executor:
        pictures = iter(executor.submit(repaint, profile, scenes).result())
    rows = {change: [next(pictures) for _ in where[change]] for change in CHANGES if where[change]}
    return {change: {"where": np.array(where[change]), "states": np.stack([states[change][i] for i in where[change]]),
                     **{name: np.stack([row[name] for row in those]) for name in those[0]}}
            for change, those in rows.items()}


@torch.no_grad()
def _compared(policy: Policy, stats: Stats, dataset: DemoDataset, frames: np.ndarray, moments: Sequence[Moment],
              drawn: dict[str, dict[str, np.ndarray]]) -> dict:
    """Each change beside the same frames rendered again as they were."""
    found: dict[str, dict | int | None] = dict.fromkeys(CHANGES[1:])
    hands = np.stack([episode.ee_pos[step] for episode, step in moments])
    for change, scene in list(drawn.items())[1:]:
        where, bowls = scene["where"], [(moments[i][0].target, moments[i][0].distractor) for i in scene["where"]]
        was = {name: values[where] for name, values in drawn[CHANGES[0]].items() if name != "where"}
        answer = Answer(policy, stats, to_device(dataset.batch(frames[where]) | _seen(was, policy), policy.device))
        other = answer.ask(answer.batch | _seen(scene, policy))
        measured = {name: values.cpu().numpy() for name, values in answer.compare(other).items()}
        if change == "swapped":
            measured |= {name: heads_for(answer.motion(said).cpu().numpy(), hands[where], _bowls(there["states"], bowls))
                         for name, said, there in (("followed_before", answer.own, was), ("followed", other, scene))}
        found[change] = {"frames": len(where)} | {name: over_episodes(values, dataset.episode[frames[where]])
                                                  for name, values in measured.items()}
    return found


def _seen(scene: dict[str, np.ndarray], policy: Policy) -> dict[str, torch.Tensor]:
    """The pictures of a scene as a batch has them."""
    cameras = {"agentview_rgb": "images", "eye_in_hand_rgb": "wrist"}
    return {key: channels_first(scene[name]).to(policy.device) for name, key in cameras.items() if name in scene}


def _bowls(states: np.ndarray, names: Sequence[tuple[str, str]]) -> np.ndarray:
    """Where the named bowl and the other one stand, (n, 2, 3)."""
    return np.stack([places(state[None], pair)[0] for state, pair in zip(states, names)])


def heads_for(motion: np.ndarray, hand: np.ndarray, bowls: np.ndarray) -> np.ndarray:
    """Whether a motion (n, 6) points rather to the first of two bowls (n, 2, 3) than to the other one, seen from the hand
    (n, 3) and from above: 1.0 or 0.0, (n,)."""
    way = bowls[:, :, :2] - hand[:, None, :2]
    cosine = np.einsum("ni,nbi->nb", motion[:, :2], way / np.linalg.norm(way, axis=-1, keepdims=True))
    return (cosine[:, 0] > cosine[:, 1]).astype(float)


def _shown(drawn: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """A few of the moments that have every change there is."""
    everywhere = set.intersection(*(set(scene["where"].tolist()) for scene in drawn.values()))
    chosen = [sorted(everywhere)[i] for i in evenly(len(everywhere), SHOWN)]
    return np.stack([[scene["agentview_rgb"][list(scene["where"]).index(i)] for scene in drawn.values()] for i in chosen])
