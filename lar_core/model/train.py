"""Training: demonstrations -> a policy. Killed at any moment and started again it goes on from its last checkpoint.

Everything random is a function of (seed, step), so that a resumed run needs no generator state and, on a CPU, ends at
the bit-identical weights of an uninterrupted one.
"""

from __future__ import annotations

import math
import shutil
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..data.dataset import DemoDataset, FrameSampler, Stats, load_split, make_dataset, shift_images, source_needs, to_device
from ..data.demos import Episode
from ..data.features import BlindFeatures, FeatureCache
from ..run.errors import LarError, say_once
from ..run.files import append_jsonl, atomic_path, read_jsonl, write_json, write_jsonl
from ..run.folder import DATA, Run
from ..run.processes import Stopped, on_stop
from ..run.registry import REGULARISERS
from ..run.runtime import Draws, device, float_dtype, give_back_memory, group, mixed_precision
from ..run.settings import Profile
from ..scene.demonstrations import other_sentence
from .losses import gradient_norm
from .paligemma import activation_ranges, too_large
from .policy import Policy, Teacher, make_policy
from .tiny import prepare_backbone, prepare_vae
from .weights import reading

LOG_EVERY = 10  # steps
GRADIENTS_EVERY = 50  # steps; two more backward passes each time
KEEP = 2  # checkpoints
SKIPS = 30  # times in a row that fp16's loss scale may be halved: from 65,536 that is far below any gradient of use
HEAD_FRAMES = 32  # training frames on which the heads that localise are chosen


def train(run: Run, demos: list[Path], data: Path = DATA, line: int = 0) -> None:
    """Train `run`'s policy on demonstration files; a finished run is left as it is.

    data: the folder that holds the feature cache, where the profile asks for one. line: where on the terminal the
    progress bar goes, for trainings that run side by side. Under `accelerate launch` every process calls this.

    Raises LarError for bad demonstrations, a damaged checkpoint or a loss that is not finite.
    """
    if run.trained:
        return
    dataset = _dataset(run, demos)
    give_back_memory()
    Trainer(run, dataset, data).finish(line)


def _dataset(run: Run, demos: list[Path]) -> DemoDataset:
    """What is trained on. A function of its own, so that the episodes, which are as large, are let go before training."""
    episodes, _ = load_split(demos, run.config.profile.heldout_fraction, run.config.seed)
    _say_other_look(run.config.profile, episodes)
    stats = Stats.of(episodes)
    if group().is_main_process:
        stats.save(run.stats)
    dataset = make_dataset(episodes, stats, run.config, other_sentence)
    if dataset.others is not None and not any(dataset.others):
        asking = next(name for name in run.config.condition.regularisers if REGULARISERS.about(name).needs == "others")
        raise LarError(f"No sentence names the other bowl of these demonstrations' scenes, which {asking} compares with: "
                       f"choose tasks from 1 to 9 and demonstrations that say their task, or set {asking}=0.")
    return dataset


def _say_other_look(profile: Profile, episodes: list[Episode]) -> None:
    """`tabletop` has seen the stand-in objects alone: say so where demonstrations show others."""
    shown = {episode.provenance.get("assets", {}).get("name", "recorded elsewhere") for episode in episodes
             if episode.provenance} - {"standin"}
    if profile.backbone == "tabletop" and shown:
        say_once(f"The backbone tabletop was pre-trained on the stand-in objects, but these demonstrations show others "
                 f"({', '.join(sorted(shown))}): it may not find them. `lar pretrain` with the same assets makes one that "
                 "does: --set backbone=RUN_DIR/pretrained.")


def rate(step: int, warm_up: int, steps: int) -> float:
    """Share of the learning rate: linear warm-up, then a cosine to 0, as transformers' schedule of that name has it.

    Written out, because importing that takes three seconds at every start.
    """
    if step < warm_up:
        return step / max(1, warm_up)
    return 0.5 * (1 + math.cos(math.pi * ((step - warm_up) / max(1, steps - warm_up))))


def make_optimiser(policy: Policy, profile: Profile) -> torch.optim.Optimizer:
    """AdamW of all that is trained; with `muon` the matrices inside the layers are Muon's (Jordan et al. 2024).

    The vision tower and the language model have rates of their own.
    """
    rates = {"backbone.vlm.model.vision_tower": profile.vision_rate, "backbone.vlm": profile.language_rate}
    rates = {"backbone.vlm.model.multi_modal_projector": profile.vision_rate} | rates
    groups: dict[tuple[bool, float], list[Tensor]] = {}
    for name, weight in policy.trained().items():
        share = next((rate for part, rate in rates.items() if name.startswith(part)), 1.0)
        muon = profile.optimiser == "muon" and ".layers." in name and weight.ndim == 2
        groups.setdefault((muon, share), []).append(weight)
    kinds = (partial(torch.optim.AdamW, betas=(0.9, 0.95), fused=True),
             partial(torch.optim.Muon, adjust_lr_fn="match_rms_adamw"))
    parts = [kind([{"params": weights, "lr": share * profile.learning_rate}
                   for (muon, share), weights in groups.items() if muon == number], weight_decay=profile.weight_decay)
             for number, kind in enumerate(kinds) if any(muon == number for muon, _ in groups)]
    return parts[0] if len(parts) == 1 else Together(*parts)


class Together(torch.optim.Optimizer):
    """Several optimisers in the face of one."""

    def __init__(self, *parts: torch.optim.Optimizer):
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.param_groups = [group for part in parts for group in part.param_groups]  # the very same, for the schedule

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each."""
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Of each, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `state_dict` gave."""
        for part, own in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(own)
        self.param_groups[:] = [group for part in self.parts for group in part.param_groups]


class Trainer:
    """One training run: policy, optimiser, schedule and how far it has come; in every process that shares it."""

    kind: type[Policy] = Policy  # what is trained; subclasses train it on other data

    def __init__(self, run: Run, dataset: DemoDataset, data: Path = DATA):
        self.run, self.config, self.dataset = run, run.config, dataset
        profile = run.config.profile
        group()
        self.accelerator = Accelerator(mixed_precision=mixed_precision(profile.precision, device()))
        self.rank, self.ranks = self.accelerator.process_index, self.accelerator.num_processes
        if profile.batch_size % self.ranks:
            raise LarError(f"batch_size is {profile.batch_size}, which {self.ranks} processes cannot share equally: choose "
                           f"a multiple of {self.ranks}.")
        self.sampler = FrameSampler(len(dataset), profile.batch_size, run.config.seed)
        with self.accelerator.main_process_first():
            folder, vae = prepare_backbone(run), prepare_vae(run.config)
        policy = make_policy(run.config, folder, self.accelerator.device, vae, self.kind)
        self.cache: FeatureCache | BlindFeatures | None = None
        if profile.cache:
            self.cache = self._features(policy, data)
            policy.backbone.drop_lower()
        if source_needs(run.config.condition) == "teacher":
            policy.teacher = Teacher(policy)
        optimiser = make_optimiser(policy, profile)
        warm_up = round(profile.warmup_fraction * run.config.steps)
        self.schedule = LambdaLR(optimiser, partial(rate, warm_up=warm_up, steps=run.config.steps))
        self.bare = policy  # without what accelerate puts around it
        self.policy, self.optimiser = self.accelerator.prepare(policy, optimiser)
        self.step, self.seconds = 0, 0.0
        self.skipped = 0  # optimiser steps that fp16's loss scaling has left out; each was tried again

    def finish(self, line: int = 0) -> None:
        """Train from the newest checkpoint, or the beginning, to the end. line: as in `train`.

        Ctrl-C, and the signals of a scheduler or a closed terminal, save first.
        Raises LarError while another process trains in the same folder.
        """
        with self.run.alone() if self.accelerator.is_main_process else nullcontext():
            self.resume()
            self.choose_heads()
            interrupted: list[int] = []  # so that a step is finished and saved before stopping
            with on_stop(interrupted.append):
                self.run_steps(interrupted, line)

    def run_steps(self, interrupted: list, line: int = 0) -> None:
        """Train from the current step to the last one, logging and saving on the way."""
        self.policy.train()
        total, every, main = self.config.steps, self.config.profile.checkpoint_every, self.accelerator.is_main_process
        label = f"training {self.config.condition.name}"
        with tqdm(total=total, initial=self.step, desc=label, unit="step", position=line, disable=not main) as bar:
            while self.step < total:
                began = time.perf_counter()
                row = self.one_step()
                self.seconds += time.perf_counter() - began
                if main and (self.step % LOG_EVERY == 0 or self.step == total):
                    append_jsonl(self.run.metrics, {**row, "seconds": round(self.seconds, 2)})
                    bar.set_postfix({name: f"{row[name]:.3f}" for name in self.bare.weights})
                if interrupted:
                    self.accelerator.set_trigger()
                stopping = self.accelerator.check_trigger()  # in any process: all must leave at the same step
                if self.step % every == 0 or self.step == total or stopping:
                    self.save()
                if stopping:
                    raise Stopped(*interrupted[:1])
                bar.update()
        if interrupted:  # while the last checkpoint was written
            raise Stopped(*interrupted[:1])

    def one_step(self) -> dict[str, float]:
        """One optimiser step; returns the row for metrics.jsonl.

        Where fp16 gradients overflow, the scaler lowers the loss scale and leaves the step out: it is then tried again on
        the same batch, and neither the schedule nor the teacher nor the step counter goes on before it is done.
        Raises LarError where they overflow at every scale.
        """
        for _ in range(SKIPS):
            row = self._losses_and_gradients()
            if self._optimise():
                break
            self.skipped += 1
        else:
            raise LarError(f"The gradients of step {self.step} are not finite at any loss scale ({SKIPS} were tried): lower "
                           f"learning_rate or choose another precision, and look at {self.run.metrics}"
                           f"{self._ranges_hint()}.")
        if self.bare.teacher is not None:
            self.bare.teacher.follow(self.bare)
        self.schedule.step()
        self.step += 1
        if self.accelerator.scaler is not None:
            row |= {"skipped": self.skipped}
        return {"step": self.step, **row, "lr": self.schedule.get_last_lr()[0]}

    def _losses_and_gradients(self) -> dict[str, float]:
        """Forward and backward on the present step's batch; returns the numbers to log."""
        batch, draws = self.batch(self.step)
        losses = self._losses(batch, draws)
        row = {name: self.accelerator.reduce(value.detach(), "mean").item() for name, value in losses.items()}
        if not math.isfinite(row["loss"]):
            raise LarError(f"The loss became {row['loss']} at step {self.step}: lower learning_rate, and look at "
                           f"{self.run.metrics} for when it began to grow{self._ranges_hint()}.")
        if self.step % GRADIENTS_EVERY == GRADIENTS_EVERY - 1:
            row |= self._gradients(losses)
        self.accelerator.backward(losses["loss"])
        return row

    def _optimise(self) -> bool:
        """Clip and apply the gradients; False where the scaler left the step out.

        Its scale tells: it is lowered then and only then. accelerate's own flag does not see what a fused optimiser skips.
        """
        scaler = self.accelerator.scaler
        before = scaler.get_scale() if scaler else 0.0
        self.accelerator.clip_grad_norm_(self.bare.trained().values(), self.config.profile.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return scaler is None or scaler.get_scale() >= before

    def batch(self, step: int) -> tuple[dict, Draws]:
        """This process's share of batch number `step`, on its device, and the random numbers that go with it."""
        indices = self.sampler.batch_indices(step)
        share = len(indices) // self.ranks
        mine = indices[self.rank * share : (self.rank + 1) * share]
        draws = Draws(self.config.seed * 1_000_003 + step, self.rank, self.ranks)
        batch = self.dataset.batch(mine)
        if self.config.condition.mask_ratio_start:
            batch["mask_ratio"] = self.config.mask_ratio(step)
        if self.config.profile.shift:
            batch = shift_images(batch, self.config.profile.shift, draws)
        if self.cache is not None:
            batch |= self.cache.batch(mine)
        if self.ranks > 1:
            batch["valid"] = self.dataset.valid_steps(indices) / self.ranks
        return to_device(batch, self.accelerator.device), draws

    def save(self) -> None:
        """Write a checkpoint folder, which gets its name only when it is complete; older ones than KEEP go."""
        if self.accelerator.is_main_process:
            folder = self.run.path / "checkpoints"
            with atomic_path(folder / f"step_{self.step:06d}") as temporary:
                temporary.mkdir()
                self.bare.save(temporary / "model.safetensors")
                self.config.save(temporary / "config.yaml")
                torch.save({name: part.state_dict() for name, part in self._parts().items()}
                           | {"step": self.step, "seconds": self.seconds, "skipped": self.skipped}, temporary / "trainer.pt")
            for old in [*self.run.checkpoints()[:-KEEP], *folder.glob(".step_*.tmp")]:  # and what a kill left of one
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def resume(self) -> None:
        """Go on from the newest checkpoint, if there is one; metrics logged after it are dropped."""
        if checkpoints := self.run.checkpoints():
            path = checkpoints[-1] / "trainer.pt"
            state = _load_trainer(path)
            self.bare.load(path.with_name("model.safetensors"))
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.step, self.seconds, self.skipped = state["step"], state["seconds"], state.get("skipped", 0)
        if self.accelerator.is_main_process:
            self._rewind_metrics()

    def _parts(self) -> dict[str, Any]:
        """What beside the policy has a state, by its name in a checkpoint."""
        parts = {"optimiser": self.optimiser, "schedule": self.schedule, "scaler": self.accelerator.scaler,
                 "teacher": self.bare.teacher}
        return {name: part for name, part in parts.items() if part is not None}

    def choose_heads(self) -> None:
        """Before the first step, and only where saliency is read from the heads that localise: choose them."""
        if self.step or self.config.condition.aggregation != "localisation_heads":
            return
        frames = np.linspace(0, len(self.dataset) - 1, HEAD_FRAMES).round().astype(int).tolist()
        batch = self.dataset.batch(frames) | ({} if self.cache is None else self.cache.batch(frames))
        heads = self.bare.choose_heads([to_device(batch, self.accelerator.device)])
        self.bare.backbone.aggregation.choose(heads)

    def _features(self, policy: Policy, data: Path) -> FeatureCache | BlindFeatures:
        """What the frozen layers give, computed once: from disk, or for a blind policy of grey."""
        profile, on = self.config.profile, self.accelerator.device

        @torch.no_grad()
        def look(batch: dict) -> dict[str, Tensor]:
            seen = policy.eval().look(to_device(batch, on))
            return {name: value for name, value in vars(seen).items() if value is not None}

        if self.config.condition.blind:
            return BlindFeatures(self.dataset, look)
        identity = {"weights": policy.backbone.identity, "precision": profile.precision,
                    "floats": str(float_dtype(profile.precision, on)), "layer": policy.backbone.join}
        identity |= {"vision": True} if policy.head.reads_vision else {}
        identity |= {"deaf": True} if self.config.condition.deaf else {}
        kept = torch.float32 if profile.precision == "fp32" else torch.float16
        features = FeatureCache(data / "features", identity, self.dataset, kept)
        with self.accelerator.main_process_first():
            features.fill(look)
        return features

    def _losses(self, batch: dict, draws: Draws) -> dict[str, Tensor]:
        """Losses of a batch; the very first one also tells how large activations get."""
        if self.step or self.config.profile.precision == "fp32":
            return self.policy(batch, draws)
        with activation_ranges(self.bare.backbone) as ranges:
            losses = self.policy(batch, draws)
        if self.accelerator.is_main_process:
            finite = {name: value if math.isfinite(value) else None for name, value in ranges.items()}
            write_json(self.run.path / "activations.json", finite)
            if large := too_large(ranges):
                tqdm.write(f"Activations of {', '.join(large)} come near the end of fp16 (65,504): see activations.json.")
        return losses

    def _ranges_hint(self) -> str:
        path = self.run.path / "activations.json"
        return f"; the first batch's activations are in {path}" if path.exists() else ""

    def _rewind_metrics(self) -> None:
        if self.run.metrics.exists():
            write_jsonl(self.run.metrics, [row for row in read_jsonl(self.run.metrics) if row["step"] <= self.step])

    def _gradients(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """What each loss sends into the backbone: the leakage probe (a decoder that interpolates sends nothing).

        With several processes, of the first one's share of the batch.
        """
        weights = [weight for name, weight in self.bare.trained().items() if name.startswith("backbone.vlm.model.")]
        scale = self.accelerator.scaler.get_scale() if self.accelerator.scaler else 1.0
        return {f"grad_{name}": gradient_norm(losses[name] * weight, weights, scale)
                for name, weight in self.bare.weights.items()}


def _load_trainer(path: Path) -> dict[str, Any]:
    with reading(f"The checkpoint {path}", f"delete the folder {path.parent} to go on from the one before"):
        return torch.load(path, weights_only=True)
