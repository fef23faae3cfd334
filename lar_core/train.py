"""Training: demonstrations -> a policy. Killed at any moment and started again it goes on from its last checkpoint.

Everything random is a function of (seed, step), so that a resumed run needs no generator state and, on a CPU, ends at
the bit-identical weights of an uninterrupted one.
"""

from __future__ import annotations

import math
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from .config import RunConfig
from .data.dataset import DemoDataset, FrameSampler, load_split
from .data.demos import Episode
from .data.manifest import load_manifest
from .data.stats import Stats
from .errors import LarError, unknown
from .files import append_jsonl, atomic_path, read_jsonl
from .model.offline import build_tiny
from .model.draws import Draws
from .model.losses import gradient_norm
from .model.policy import Policy, make_policy
from .run import Run

LOG_EVERY = 10  # steps
GRADIENTS_EVERY = 50  # steps; two more backward passes each time
KEEP = 2  # checkpoints


def train(run: Run, demos: list[Path], line: int = 0) -> Policy:
    """Train `run`'s policy on demonstration files and return it; a finished run is only loaded.

    line: where on the terminal the progress bar goes, for trainings that run side by side.

    Raises LarError for bad demonstrations, a damaged checkpoint or a loss that is not finite.
    """
    if run.trained:
        return load_policy(run)[0]
    episodes, _ = load_split(demos, run.config.profile.heldout_fraction, run.config.seed)
    stats = Stats.of(episodes)
    stats.save(run.stats)
    trainer = Trainer(run, make_dataset(episodes, stats, run.config))
    trainer.resume()
    with _interruptible() as interrupted:
        trainer.run_steps(interrupted, line)
    return trainer.policy


def load_policy(run: Run, device: torch.device | str = "cpu") -> tuple[Policy, Stats]:
    """The trained policy of a run, in evaluation mode. Raises LarError when training is not finished."""
    if not run.trained:
        raise LarError(f"{run.path} holds no finished training: run `lar train` with the same settings first.")
    policy = make_policy(run.config, prepare_backbone(run))
    policy.load(run.final_checkpoint / "model.safetensors")
    return policy.to(device).eval(), Stats.load(run.stats)


def make_dataset(episodes: list[Episode], stats: Stats, config: RunConfig) -> DemoDataset:
    """The frames of `episodes` in the sizes that the profile asks for."""
    profile = config.profile
    return DemoDataset(episodes, stats, image_size=profile.image_size, wrist_size=profile.wrist_size,
                       chunk=profile.chunk)


def to_device(batch: dict, device: torch.device) -> dict:
    """Move the tensors of a batch."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in batch.items()}


class Trainer:
    """One training run: policy, optimiser, schedule and how far it has come."""

    def __init__(self, run: Run, dataset: DemoDataset):
        self.run, self.config, self.dataset = run, run.config, dataset
        profile = run.config.profile
        self.sampler = FrameSampler(len(dataset), profile.batch_size, run.config.seed)
        policy = make_policy(run.config, prepare_backbone(run))
        optimiser = torch.optim.AdamW(policy.parameters(), lr=profile.learning_rate, betas=(0.9, 0.95),
                                      weight_decay=profile.weight_decay, fused=True)
        schedule = get_cosine_schedule_with_warmup(optimiser, round(profile.warmup_fraction * run.config.steps),
                                                   run.config.steps)
        self.accelerator = Accelerator()
        self.policy, self.optimiser, self.schedule = self.accelerator.prepare(policy, optimiser, schedule)
        self.step, self.seconds = 0, 0.0

    def run_steps(self, interrupted: list, line: int = 0) -> None:
        """Train from the current step to the last one, logging and saving on the way."""
        self.policy.train()
        total, every = self.config.steps, self.config.profile.checkpoint_every
        label = f"training {self.config.condition.name}"
        with tqdm(total=total, initial=self.step, desc=label, unit="step", position=line) as bar:
            while self.step < total:
                began = time.perf_counter()
                row = self.one_step()
                self.seconds += time.perf_counter() - began
                if self.step % LOG_EVERY == 0 or self.step == total:
                    append_jsonl(self.run.metrics, {**row, "seconds": round(self.seconds, 2)})
                    bar.set_postfix(action=f"{row['action']:.3f}", recon=f"{row['recon']:.3f}")
                if self.step % every == 0 or self.step == total or interrupted:
                    self.save()
                if interrupted:
                    raise KeyboardInterrupt
                bar.update()

    def one_step(self) -> dict[str, float]:
        """One optimiser step; returns the row for metrics.jsonl."""
        batch = to_device(self.dataset.batch(self.sampler.batch_indices(self.step)), self.accelerator.device)
        draws = Draws(self.config.seed * 1_000_003 + self.step)
        losses = self.policy(batch, draws)
        if not math.isfinite(losses["loss"].item()):
            raise LarError(f"The loss became {losses['loss'].item()} at step {self.step}: lower learning_rate, and "
                           f"look at {self.run.metrics} for when it began to grow.")
        row = {name: value.item() for name, value in losses.items()}
        if self.step % GRADIENTS_EVERY == GRADIENTS_EVERY - 1:
            row |= self._gradients(losses)
        self.accelerator.backward(losses["loss"])
        self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.profile.clip_norm)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        self.step += 1
        return {"step": self.step, **row, "lr": self.schedule.get_last_lr()[0]}

    def save(self) -> None:
        """Write a checkpoint folder; it gets its name only when it is complete."""
        final = self.run.path / "checkpoints" / f"step_{self.step:06d}"
        temporary = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        self.accelerator.unwrap_model(self.policy).save(temporary / "model.safetensors")
        self.config.save(temporary / "config.yaml")
        torch.save({"optimiser": self.optimiser.state_dict(), "schedule": self.schedule.state_dict(),
                    "step": self.step, "seconds": self.seconds}, temporary / "trainer.pt")
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        for old in self.run.checkpoints()[:-KEEP]:
            shutil.rmtree(old)

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; metrics logged after it are dropped."""
        checkpoints = self.run.checkpoints()
        if checkpoints:
            state = _load_trainer(checkpoints[-1] / "trainer.pt")
            self.accelerator.unwrap_model(self.policy).load(checkpoints[-1] / "model.safetensors")
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict(state["schedule"])
            self.step, self.seconds = state["step"], state["seconds"]
        self._rewind_metrics()

    def _rewind_metrics(self) -> None:
        rows = [row for row in read_jsonl(self.run.metrics) if row["step"] <= self.step]
        self.run.metrics.unlink(missing_ok=True)
        for row in rows:
            append_jsonl(self.run.metrics, row)

    def _gradients(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """What each loss sends into the backbone: the leakage probe (a decoder that interpolates sends nothing)."""
        policy = self.accelerator.unwrap_model(self.policy)
        weights = list(policy.backbone.vlm.model.parameters())
        row = {"grad_action": gradient_norm(losses["action"], weights)}
        if policy.decoder is not None:
            row["grad_recon"] = gradient_norm(losses["recon"] * self.config.condition.lambda_recon, weights)
        return row


def prepare_backbone(run: Run) -> Path:
    """The folder of the run's untrained backbone: built once ("tiny"), given, or downloaded at its pinned revision.

    Raises LarError for a hub id that data_manifest.yaml does not list, and for a download that fails.
    """
    name = run.config.profile.backbone
    if name == "tiny":
        if not run.backbone.exists():
            with atomic_path(run.backbone) as temporary:
                build_tiny(run.config.profile, temporary, run.config.seed)
        return run.backbone
    return Path(name) if Path(name).is_dir() else _download(name)


def _download(name: str) -> Path:
    listed = {entry.id: entry for entry in load_manifest().values() if entry.kind == "weights"}
    if name not in listed:
        raise unknown("backbone", name, ["tiny", *listed])
    try:
        return Path(snapshot_download(name, revision=listed[name].pinned_revision()))
    except (HfHubHTTPError, OSError) as error:
        raise LarError(f"{name} could not be downloaded ({type(error).__name__}): check the connection; where it is "
                       "gated, accept its licence on its page on the hub and set HF_TOKEN.") from error


def _load_trainer(path: Path) -> dict:
    try:
        return torch.load(path, weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise LarError(f"The checkpoint {path} is damaged ({str(error).splitlines()[0]}): delete the folder "
                       f"{path.parent} to go on from the one before.") from error


@contextmanager
def _interruptible() -> Iterator[list]:
    """Turn Ctrl-C into an entry of the yielded list, so that a step is finished and saved before stopping."""
    interrupted: list[int] = []
    previous = signal.signal(signal.SIGINT, lambda number, _: interrupted.append(number))
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)
