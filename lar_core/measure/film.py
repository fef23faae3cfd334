"""What is kept of a rollout to be looked at: a video, and beside it (same name, .npz) the traces of the same steps."""

from __future__ import annotations

from pathlib import Path

import imageio.v2 as imageio
import numpy as np

from ..run.errors import LarError
from ..run.files import atomic_path
from ..show.figures import frame_with_saliency

FPS = 20  # LIBERO's control frequency


class Film:
    """Frames (T, h, w, 3) uint8: image | saliency | wrist; actions (T, 7) as commanded; gripper (T,), the distance of
    the fingers in metres; saliency (T, P). Entry t is what was seen after action t.
    """

    def __init__(self) -> None:
        self.frames: list[np.ndarray] = []
        self.traces: dict[str, list[np.ndarray]] = {"actions": [], "gripper": [], "saliency": []}

    def __len__(self) -> int:
        return len(self.frames)

    def add(self, observation: dict, i: int, action: np.ndarray, saliency: np.ndarray, sentence: str) -> None:
        """Append one step of environment `i` of a batch of observations."""
        wrist = observation["eye_in_hand_rgb"][i] if "eye_in_hand_rgb" in observation else None
        self.frames.append(frame_with_saliency(observation["agentview_rgb"][i], saliency, wrist, sentence))
        fingers = observation["gripper_states"][i]
        for name, value in (("actions", action), ("gripper", fingers[0] - fingers[1]), ("saliency", saliency)):
            self.traces[name].append(np.asarray(value, dtype=np.float32))

    def save(self, path: Path) -> None:
        """Write the video to `path` (.mp4), and the traces beside it first, so that no video is without them."""
        with atomic_path(path.with_suffix(".npz")) as temporary:
            np.savez_compressed(temporary, **{name: np.stack(values) for name, values in self.traces.items()})
        with atomic_path(path) as temporary:
            imageio.mimsave(temporary, self.frames, fps=FPS, macro_block_size=2)

    @classmethod
    def load(cls, path: Path | str) -> Film:
        """Read what `save` wrote. Raises LarError where video or traces are missing or damaged."""
        path, film = Path(path), cls()
        try:
            film.frames = list(imageio.mimread(path, memtest=False))
            with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
                film.traces = {name: list(arrays[name]) for name in film.traces}
        except (OSError, ValueError, KeyError) as error:
            raise LarError(f"{path} cannot be played, because it or its traces are missing or damaged ({error}): "
                           "delete rollouts.jsonl beside its folder and roll out again.") from error
        return film
