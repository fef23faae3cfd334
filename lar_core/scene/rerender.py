"""Demonstrations rendered again, from the simulator states that they hold: in any size and with segmentation, or changed.

Only pictures change; states, actions and proprioception stay as recorded. Cabinet and stove are not part of a state: they
are put where the demonstration's own scene description has them. Changed scenes are rendered as they are put, without any
step: nothing falls.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..data.demos import Episode
from ..run.errors import LarError
from ..run.settings import Profile
from .env import SpatialEnv, environment
from .placements import BOWLS, RELATIONS, X_ADDRESS
from .setup import assets_of

CHANGES = ("as_it_was", "named_gone", "other_gone", "swapped")  # what `changed` makes of a scene
DEEP = 5.0  # metres under the floor: out of every picture


def render_again(env: SpatialEnv, episode: Episode, pictures: bool = True) -> Episode:
    """The same episode with pictures and segmentation as `env` draws them, in its sizes and with its assets.

    pictures: False keeps those that were recorded, which must be of that size and those assets.
    Raises LarError for an episode without simulator states or scene description, and for states of another scene.
    """
    if episode.states is None:
        raise LarError("These demonstrations hold no simulator states to render again from: set render_demos to false, "
                       "and their pictures are resized.")
    env.reset(seed=0, options={"wait_steps": 0})  # only a reset hides the marks between the robot's fingers
    place_fixtures(env, episode.model_file)
    frames = [_draw(env, state) if pictures else _labels(env, state) for state in episode.states]
    drawn = {name: np.stack([frame[name] for frame in frames]) for name in frames[0]}
    return replace(episode, **({"eye_in_hand_rgb": None} if pictures else {}) | drawn, objects=env.objects, target=BOWLS[0],
                   distractor=BOWLS[1])


def _draw(env: SpatialEnv, state: np.ndarray) -> dict[str, np.ndarray]:
    drawn = _labels(env, state) | {"agentview_rgb": env.render_camera("agentview", env.image_size)}
    if env.wrist_size:
        drawn["eye_in_hand_rgb"] = env.render_camera("robot0_eye_in_hand", env.wrist_size)
    return drawn


def _labels(env: SpatialEnv, state: np.ndarray) -> dict[str, np.ndarray]:
    env.set_state(state)
    return {"segmentation": env.segment(env.image_size)}


def place_fixtures(env: SpatialEnv, model_file: str) -> None:
    """Put cabinet and stove where a scene description has them. Raises LarError for one that does not say it."""
    model = env.stock.sim.model
    poses = _body_poses(model_file)
    for name, fixture in env.stock.fixtures_dict.items():
        if fixture.root_body not in poses:
            raise LarError(f"The demonstration's scene description (model_file) does not say where {name} stands: set "
                           "render_demos to false, and its pictures are resized.")
        body = model.body_name2id(fixture.root_body)
        model.body_pos[body], model.body_quat[body] = poses[fixture.root_body]


def _body_poses(model_file: str) -> dict[str, tuple[list[float], list[float]]]:
    """Position (m) and quaternion (w, x, y, z) of every body in MJCF, relative to its parent; {} for what is not XML."""
    try:
        bodies = ET.fromstring(model_file).iter("body")
    except ET.ParseError:
        return {}
    return {body.get("name"): (_numbers(body.get("pos", "0 0 0")), _numbers(body.get("quat", "1 0 0 0")))
            for body in bodies}


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


# Scenes changed by hand: what would the policy do if this were otherwise?

def partners(task: int) -> tuple[str, str] | None:
    """What the two bowls of a task's scene stand on or next to, the named one's first, where both can be moved."""
    (relation, own), (other_relation, other) = RELATIONS[task]
    simple = {relation, other_relation} <= {"on", "next_to"}
    return (own, other) if simple and own != other and {own, other} <= set(X_ADDRESS) else None


def changed(state: np.ndarray, change: str, bowls: Sequence[str], swapped: Sequence[str] = ()) -> np.ndarray:
    """A flattened state (92,) after one of CHANGES.

    bowls: the named one and the other. swapped: their `partners`; each bowl keeps its place beside its own, and the two
    groups change places, so that the sentence names the bowl where the other one stood.
    """
    state = state.copy()
    if change in ("named_gone", "other_gone"):
        state[X_ADDRESS[bowls[change == "other_gone"]] + 2] -= DEEP
    if change == "swapped":
        own, other = (state[X_ADDRESS[name] :][:2].copy() for name in swapped)
        for (bowl, partner), way in zip(zip(bowls, swapped), (other - own, own - other)):
            for name in (bowl, partner):
                state[X_ADDRESS[name] :][:2] += way
    return state


def repaint(profile: Profile, moments: Sequence[tuple[str | int, np.ndarray]]) -> list[dict[str, np.ndarray]]:
    """The pictures of (where cabinet and stove stand, flattened state), as `render_again` draws them; in a worker process.

    Where they stand: a scene description or, of demonstrations recorded here, the seed of the reset. All ten tasks have the
    same objects, so that one scene can be put into any state. Raises LarError as `render_again` does.
    """
    env = environment(profile.tasks[0], profile.image_size, profile.wrist_size, assets_of(profile))
    drawn, standing = [], None
    for fixtures, state in moments:
        if fixtures != standing:
            env.reset(seed=fixtures if isinstance(fixtures, int) else 0, options={"wait_steps": 0})
            if isinstance(fixtures, str):
                place_fixtures(env, fixtures)
            standing = fixtures
        drawn.append(_draw(env, state))
    return drawn
