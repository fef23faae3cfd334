"""Demonstrations whose numbers and pictures show their conventions: a hand that follows its commands, seen by agentview.

The motion is that of robosuite's controller, as measured: a step's displacement is 0.68 of the one before and 4 mm a unit
of the command in force. And the layouts of several copies of LIBERO, to write such demonstrations in.
"""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
from scipy.spatial.transform import Rotation
from test_demos import SENTENCE, make_episode

from lar_core.data.conventions import projected
from lar_core.data.episode import Episode


def moving_episode(steps: int = 60, seed: int = 0, size: int = 32, wrist: int = 16, sentence: str = SENTENCE,
                   closed: bool = False) -> Episode:
    """closed: the gripper is told to close throughout. All numbers fit in float32."""
    rng = np.random.default_rng(seed)
    wanted = np.repeat(rng.uniform(-1, 1, (steps // 5 + 1, 3)), 5, axis=0)[:steps] * 0.7 + rng.uniform(-0.3, 0.3, (steps, 3))
    moved = np.zeros((steps, 3))
    for t in range(1, steps):
        moved[t] = 0.68 * moved[t - 1] + 0.0041 * wanted[t - 1]
    close = np.ones(steps) if closed else np.where((np.arange(steps) // 15) % 2, 1.0, -1.0)
    opening = np.full(steps, 0.0 if closed else 0.04)
    for t in range(1, steps):
        opening[t] = np.clip(opening[t - 1] - 0.02 * close[t - 1], 0, 0.04)
    ori = np.array([np.pi, 0.0, -0.09]) + rng.normal(scale=0.01, size=(steps, 3))
    turn = np.sin(np.linspace(0, 3, steps)) * 0.6  # around the vertical
    ori[:, :2] = np.pi * np.stack([np.cos(turn / 2), np.sin(turn / 2)], axis=-1)
    pos = np.array([-0.1, 0.1, 1.1]) + np.cumsum(moved, axis=0)
    joints = np.cumsum(rng.normal(scale=0.02, size=(steps, 7)), axis=0)
    states = np.hstack([np.arange(steps)[:, None] / 20, joints, rng.normal(size=(steps, 84))])
    arrays = {"actions": np.hstack([wanted, rng.uniform(-0.1, 0.1, (steps, 3)), close[:, None]]), "ee_pos": pos,
              "ee_ori": ori, "gripper_states": opening[:, None] * [1, -1], "joint_states": joints, "states": states}
    arrays = {name: np.float32(array).astype(float) for name, array in arrays.items()}
    seen = {"agentview_rgb": watched(arrays["ee_pos"], size), "eye_in_hand_rgb": watched(arrays["ee_pos"], wrist)}
    return replace(make_episode(), instruction=sentence, **arrays, **seen, segmentation=None, objects=(), target="",
                   distractor="", init_state=arrays["states"][0], model_file="", provenance={})


def watched(places: np.ndarray, size: int) -> np.ndarray:
    """(T, size, size, 3): a bright block where agentview sees the hand, in pictures as an Episode holds them."""
    frames = np.full((len(places), size, size, 3), 30, np.uint8)
    for frame, (column, row) in zip(frames, projected(places)):
        x, y = round((0.5 - column) * size), round((row + 0.5) * size)  # an Episode's pictures are mirrored
        frame[max(0, y - 2) : y + 2, max(0, x - 2) : x + 2] = (250, 200, 150)
        frame[: size // 8, : size // 4] = (0, 90, 0)  # so that no way to turn a picture gives the same one
    return frames


TURNS = {"upright": (1, 1), "rotated": (-1, -1), "flipped": (-1, 1), "mirrored": (1, -1)}
GRIPPERS = {"-1/1": lambda c: c, "1/-1": lambda c: -c, "0/1": lambda c: (c + 1) / 2, "1/0": lambda c: (1 - c) / 2}


def stored(episode: Episode, *, alignment="before", pictures="upright", gripper="-1/1", actions="units") -> dict:
    """An episode's arrays as a copy with these conventions has them; an alignment "after" needs one row more."""
    names = ("ee_pos", "ee_ori", "gripper_states", "joint_states", "agentview_rgb", "eye_in_hand_rgb")
    arrays = {name: getattr(episode, name) for name in ("actions", "states", *names) if getattr(episode, name) is not None}
    if alignment == "after":
        for name in arrays:
            rows = arrays[name]
            arrays[name] = np.concatenate([rows, rows[-1:]] if name in names else [rows[:1], rows])
    rows, columns = TURNS[pictures]
    for name in ("agentview_rgb", "eye_in_hand_rgb"):
        if name in arrays:
            arrays[name] = arrays[name][:, ::rows, ::columns]
    command = arrays["actions"].copy()
    command[:, 6] = GRIPPERS[gripper](command[:, 6])
    command[:, :6] *= [0.05] * 3 + [0.5] * 3 if actions == "metres" else 1
    return arrays | {"actions": command}


ROBOMIMIC = {"agentview_rgb": "agentview_image", "eye_in_hand_rgb": "robot0_eye_in_hand_image", "ee_pos": "robot0_eef_pos",
             "ee_ori": "robot0_eef_quat", "gripper_states": "robot0_gripper_qpos", "joint_states": "robot0_joint_pos"}


def write_hdf5(path, episodes, *, names=None, leave_out=(), sentence: str | None = "", attributes=None, **conventions):
    """LIBERO's layout without what is ours. names: robosuite's in the place of LIBERO's; sentence: None writes none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        data = file.create_group("data")
        if sentence is not None:
            told = sentence or episodes[0].instruction
            data.attrs["problem_info"] = json.dumps({"language_instruction": told})
        data.attrs.update(attributes or {})
        for number, episode in enumerate(episodes):
            demo = data.create_group(f"demo_{number}")
            if episode.model_file:
                demo.attrs["model_file"] = episode.model_file
            for name, array in stored(episode, **conventions).items():
                key = (names or {}).get(name, name)
                if key == "robot0_eef_quat":
                    array = Rotation.from_rotvec(array).as_quat()
                if name not in leave_out:
                    demo[key if name in ("actions", "states") else f"obs/{key}"] = array
    return path
