"""What a copy of LIBERO shows about its own conventions, printed; and one of its states drawn beside its stored picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..data import lerobot
from ..data.conventions import Conventions, Verdict, decide, turned
from ..data.demos import made_here, plain, raw_demos
from ..data.episode import hdf5_files
from ..data.raw import Raw
from ..run.conventions import CONVENTIONS
from ..run.errors import LarError
from ..run.files import atomic_path
from .env import SpatialEnv, tasks_by_instruction
from .rerender import place_fixtures

OURS = {"state": "as named", "alignment": "before", "pictures": "rotated", "gripper": "-1/1", "actions": "units"}
MARGIN = 0.05  # by which the right one of four ways to turn a picture must correlate better than the others


def check_demos(path: Path | str, stated: dict[str, str], folder: Path | str = ".") -> None:
    """Print a line for each convention of the demonstrations at `path` (an HDF5 file, a folder of them, a LeRobot data set).

    Where there are simulator states, draw one beside its stored picture, as a PNG in `folder`.
    Raises LarError, at the end, for a convention that is neither shown nor stated.
    """
    raws, ours = _read(Path(path))
    found = _as_recorded() if ours else decide(raws, stated)
    example = next((raw for raw in raws if raw.states is not None), None)
    if example is not None and found["alignment"]:
        found = _beside(found, example, stated, Path(folder), ours)
    print(f"{path}: {len(raws)} demonstrations, {sum(len(raw.actions) for raw in raws)} rows")
    for verdict in found.verdicts:
        print(f"  {verdict.name:<10}{verdict.value or 'UNKNOWN':<24}{verdict.evidence}")
    if example is None:
        print("  no simulator states, so none is drawn")
    found.require(path)


def draw_verdict(path: str, where: str, alignment: str) -> Verdict:
    """How the pictures of the demonstration `where` of an HDF5 file lie, by drawing one of its states."""
    raw = next(raw for raw in raw_demos(path) if raw.where == where)
    return _compared(raw, alignment)[0]


def _read(path: Path) -> tuple[list[Raw], bool]:
    """All demonstrations, and whether they were recorded here."""
    if (path / "meta/info.json").exists():
        return [lerobot.raw_listed(path, listed) for listed in tqdm(lerobot.list_episodes(path), unit="episode")], False
    files = hdf5_files(path) if path.is_dir() else [path]
    if not files:
        raise LarError(f"{path} holds neither HDF5 files nor a LeRobot data set (meta/info.json): name the file, or the "
                       "folder above it.")
    ours = {file: made_here(file) for file in files}
    if len(set(ours.values())) > 1:
        raise LarError(f"{path} holds demonstrations that were recorded here beside other people's: check them one by one.")
    raws = [raw for file in tqdm(files, unit="file", disable=len(files) < 3) for raw in raw_demos(file)]
    return raws, all(ours.values())


def _as_recorded() -> Conventions:
    return Conventions(tuple(Verdict(name, OURS[name], "recorded or converted here: observation_time is before_action")
                             for name in CONVENTIONS))


def _beside(found: Conventions, raw: Raw, stated: dict[str, str], folder: Path, ours: bool) -> Conventions:
    """Draw a state, say where the picture is, and let it decide how pictures lie where nothing else did."""
    try:
        drawn, stored, own = _compared(raw, found["alignment"])
    except LarError as error:
        print(f"  no state was drawn: {error}")
        return found
    path = folder / f"{Path(raw.source).stem}-stored-turned-drawn.png"
    upright = turned(stored[None], found["pictures"] or drawn.value or "upright")[0]
    with atomic_path(path) as temporary:
        Image.fromarray(np.hstack([stored, upright, own])).save(temporary)
    print(f"  picture as stored, turned upright, and its state as drawn here: {path.resolve()}")
    before = next(verdict for verdict in found.verdicts if verdict.name == "pictures")
    value = before.value or ("" if before.evidence.startswith("both") else drawn.value)
    if drawn.value and drawn.value != value and "pictures" not in stated and not ours:
        value = ""
    now = Verdict("pictures", value, f"{before.evidence}; {drawn.evidence}")
    return Conventions(tuple(now if verdict.name == "pictures" else verdict for verdict in found.verdicts))


def _compared(raw: Raw, alignment: str) -> tuple[Verdict, np.ndarray, np.ndarray]:
    """(verdict, a picture as stored, the same state as drawn here), both (H, W, 3)."""
    t = min(len(raw.actions) // 2, len(raw.actions) - 2)  # below, a row after it may be looked up
    frames = raw.pictures(("agentview_rgb",)).get("agentview_rgb")
    if frames is None:
        raise LarError(f"{raw.where} has no picture of the scene.")
    stored, state = frames[t], raw.states[t + (alignment == "after")]
    own = _draw(raw, state, stored.shape[0])
    likeness = {way: _likeness(turned(stored[None], way)[0], own) for way in CONVENTIONS["pictures"]}
    best, second = sorted(likeness, key=likeness.get, reverse=True)[:2]
    clear = likeness[best] - likeness[second] > MARGIN
    shown = "the state as drawn here is like the picture by r = " + ", ".join(
        f"{r:.2f} {way}" for way, r in likeness.items())
    return Verdict("pictures", best if clear else "", shown), stored, own


def _draw(raw: Raw, state: np.ndarray, size: int) -> np.ndarray:
    tasks = tasks_by_instruction()
    if plain(raw.instruction) not in tasks:
        raise LarError(f"{raw.instruction!r} is no sentence of LIBERO-Spatial, whose scenes are known here.")
    env = SpatialEnv(tasks[plain(raw.instruction)], image_size=size, wrist_size=0)
    try:
        env.reset(seed=0, options={"wait_steps": 0})
        if raw.model_file:
            place_fixtures(env, raw.model_file)
        env.set_state(state)
        return env.render()
    finally:
        env.close()


def _likeness(one: np.ndarray, other: np.ndarray) -> float:
    if one.shape != other.shape:
        raise LarError(f"The picture has {one.shape[1]} x {one.shape[0]} pixels, and is drawn here as a square.")
    one, other = (picture.mean(axis=-1).ravel() for picture in (one, other))
    return float(np.corrcoef(one, other)[0, 1]) if one.std() > 0 else 0.0
