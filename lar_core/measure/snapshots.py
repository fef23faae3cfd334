"""Reconstructions while the policy learns: the same held-out frames, drawn again at every checkpoint.

Done beside training, from the checkpoints that it writes, so that training itself knows nothing of it. Only for models
small enough to be loaded a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..data.dataset import DemoDataset
from ..model.policy import Policy, make_policy
from ..model.tiny import prepare_backbone
from ..run.errors import LarError
from ..run.files import atomic_path
from ..run.folder import Run
from ..run.runtime import Draws
from .probes import reconstructed, reconstruction_panels

FRAMES = 2
EVERY = 1.0  # seconds between looks at the checkpoint folder


@contextmanager
def keep_snapshots(run: Run, heldout: DemoDataset) -> Iterator[None]:
    """While the block trains `run`, keep the panels of two held-out frames from before training and each checkpoint."""
    if run.config.condition.reconstructor == "none" or not run.config.profile.miniature:
        yield
        return
    policy = make_policy(run.config, prepare_backbone(run)).eval()
    batch = heldout.batch(np.linspace(0, len(heldout) - 1, FRAMES + 2).round().astype(int)[1:-1])
    _keep(run, 0, policy, batch)
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, policy, batch, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def snapshots(run: Run) -> dict[int, np.ndarray]:
    """Panels (M, 4, H, W, 3) uint8 by training step, in order."""
    found = {}
    for path in sorted((run.path / "snapshots").glob("step_*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[int(path.stem.removeprefix("step_"))] = arrays["panels"]
    return found


def _watch(run: Run, policy: Policy, batch: dict, done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(EVERY)  # one more look after the end
        for checkpoint in run.checkpoints():
            step = int(checkpoint.name.removeprefix("step_"))
            if not _path(run, step).exists():
                try:
                    policy.load(checkpoint / "model.safetensors")
                    _keep(run, step, policy, batch)
                except LarError:  # it has been replaced by a newer one meanwhile
                    continue


@torch.no_grad()
def _keep(run: Run, step: int, policy: Policy, batch: dict) -> None:
    panels = reconstruction_panels(policy, reconstructed(policy, batch, policy.encode(batch), Draws(0)))
    with atomic_path(_path(run, step)) as temporary:
        np.savez_compressed(temporary, panels=panels)


def _path(run: Run, step: int) -> Path:
    return run.path / "snapshots" / f"step_{step:06d}.npz"
