"""The full-size smoke test: everything that profile t4 does, at PaliGemma-3B's true size, with random weights.

    build      the true 2.92 B architecture, saved as a sharded checkpoint in bf16
    load       that checkpoint in 8 bit, through the path that real weights take
    saliency   one image and instruction, attention of the last 3 layers captured
    train      one optimiser step, through the trainer, on one sample
    act        one policy step

It says that the code runs and what it needs; with random weights it says nothing about what is learnt.
"""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import torch

from .data.dataset import to_device
from .measure.costs import Reading, meter, noise_dataset
from .model.tiny import build_full_size
from .model.train import Trainer
from .run.config import RunConfig, make_config
from .run.errors import LarError
from .run.files import require_space
from .run.folder import Run
from .run.processes import end_with_parent
from .run.runtime import quiet

CHECKPOINT_BYTES = 6 * 10**9


def smoke(config: RunConfig, data: Path,
          build: Callable[[Path], None] = build_full_size) -> Iterator[tuple[str, Reading]]:
    """Yield (stage, reading) as each stage ends. Raises LarError when the disk has no room for the checkpoint.

    config: see `full_size_config`; build: writes the checkpoint.
    """
    require_space(data, CHECKPOINT_BYTES, "the full-size checkpoint", "free some, or choose another --data-dir")
    data.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="full-size-", dir=data, ignore_cleanup_errors=True) as folder:
        yield "build", _in_a_process(build, Path(folder, "checkpoint"))
        yield from _use(config, Path(folder))


def full_size_config(condition: str = "attention_mask", seed: int = 0, **changes: object) -> RunConfig:
    """Profile t4 for a single step from pixels, on one sample."""
    return make_config(condition, "t4", seed, **{"cache": False, "batch_size": 1, "samples": 100, **changes})


def _use(config: RunConfig, folder: Path) -> Iterator[tuple[str, Reading]]:
    run = Run.open(config.replace(backbone=str(folder / "checkpoint")), folder / "run")
    with meter() as reading:
        trainer = Trainer(run, noise_dataset(run.config), folder)
    yield "load", reading
    policy, (batch, _) = trainer.bare, trainer.batch(0)
    with meter() as reading, torch.no_grad():
        saliency = policy.encode(batch).saliency
    _check(torch.allclose(saliency.sum(dim=1).float().cpu(), torch.ones(len(saliency)), atol=1e-3), "saliency")
    yield "saliency", reading
    policy.train()
    with meter() as reading:
        row = trainer.one_step()
    _check(np.isfinite(row["loss"]), "train")
    yield "train", reading
    policy.eval()
    with meter() as reading:
        actions, _ = policy.act(to_device({name: value[:1] for name, value in batch.items()}, policy.device))
    _check(actions.shape == (1, config.profile.chunk, 7) and bool(torch.isfinite(actions).all()), "act")
    yield "act", reading


def _check(right: bool, stage: str) -> None:
    if not right:
        raise LarError(f"Stage {stage} ran but gave a wrong result: this combination of versions does not work; install "
                       "those in constraints.txt (on Colab requirements-colab.txt).")


def _in_a_process(build: Callable[[Path], None], folder: Path) -> Reading:
    """So that its memory is gone afterwards."""
    try:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            return pool.submit(_build, build, folder).result()
    except BrokenProcessPool as error:
        raise LarError("The process that builds the full-size model was killed, probably for lack of memory (it needs "
                       "8 GB): close other programs and try again.") from error


def _build(build: Callable[[Path], None], folder: Path) -> Reading:
    end_with_parent()
    quiet()
    with meter() as reading:
        build(folder)
    return reading
