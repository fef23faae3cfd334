"""What choices cost, in time and memory: a policy step (another head, another precision, without saliency), a training
step of a condition, a backbone in several precisions. Weights do not matter for time, so little here needs a trained policy.
"""

from __future__ import annotations

import gc
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..data.dataset import DemoDataset, Stats, make_dataset
from ..data.demos import Episode
from ..model.backbone import Backbone, normalise_pixels
from ..model.paligemma import load_backbone, parameter_table
from ..model.policy import Policy, make_policy
from ..model.tiny import prepare_backbone
from ..model.train import Trainer
from ..run.config import CONDITIONS, RunConfig
from ..run.files import write_json
from ..run.folder import Run
from ..run.registry import HEADS
from ..run.runtime import device, device_name

REPEATS = 50  # of a policy step
STEPS = 8  # of training
NOISE_FRAMES = 64  # of the made-up episode that is trained on
BASE = "action_only"  # what every other condition is compared with
ARMS = (BASE, "random_mask", "attention_mask", "joint_mask", "gaze_diffusion", "gaze_diffusion_matched", "teacher_mask",
        "contrastive_attention", "language_mask", "autoregressive_head", "bridge_head", "focus_head")  # one of each
INSTRUCTION = "pick up the black bowl on the ramekin and place it on the plate"


# Time and peak memory of a piece of work

def times(work: Callable[[], object], repeats: int, warm_up: int = 2) -> np.ndarray:
    """Milliseconds that each of `repeats` runs takes, after some to warm up."""
    taken = []
    for _ in range(warm_up + repeats):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(1000 * (time.perf_counter() - began))
    return np.array(taken[warm_up:])


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Their median."""
    return float(np.median(times(work, repeats)))


@dataclass
class Reading:
    """seconds, and bytes at the peak: of memory that belongs to the processes alone, or of the GPU."""

    seconds: float = 0.0
    peak_bytes: int = 0


def own_bytes(children: bool = False) -> int:
    """Memory of this process (and of all that it started) without files that are only mapped, such as a checkpoint."""
    own, total = psutil.Process(), 0
    for process in (own, *(own.children(recursive=True) if children else ())):
        with suppress(psutil.NoSuchProcess):  # it has just ended
            memory = process.memory_info()
            total += memory.rss - getattr(memory, "shared", 0)
    return total


@contextmanager
def meter(children: bool = False) -> Iterator[Reading]:
    """Yield a Reading that is complete when the block ends, also by an error; children: with all that it starts."""
    reading, on_gpu, done = Reading(), torch.cuda.is_available(), threading.Event()

    def look() -> None:
        now = torch.cuda.max_memory_allocated() if on_gpu else own_bytes(children)
        reading.peak_bytes = max(reading.peak_bytes, now)

    def watch() -> None:
        while not done.wait(0.2 if children else 0.02):
            look()

    thread = threading.Thread(target=watch, daemon=True)
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    else:
        look()
        thread.start()
    began = time.perf_counter()
    try:
        yield reading
    finally:
        done.set()
        if on_gpu:
            torch.cuda.synchronize()
        else:
            thread.join()
        reading.seconds = time.perf_counter() - began
        look()


# One policy step: image and instruction in, a chunk of actions out, saliency included

def heads() -> dict[str, dict]:
    """Every action head with its usual loss, as changes of a condition."""
    return {f"{name}: {HEADS.about(name).words}": {"head": name, "action_loss": HEADS.about(name).losses[0]}
            for name in HEADS}


def precisions() -> dict[str, dict]:
    """The precisions that can be compared on this machine, as changes of a profile."""
    return {name: {"precision": name} | ({"tune": "lora_all"} if name in ("int8", "nf4") else {})
            for name in ("fp16" if torch.cuda.is_available() else "fp32", "int8", "nf4")}


def untrained(run: Run, **changes: object) -> Policy:
    """A policy of the run's configuration with single fields changed. Raises LarError for what cannot be.

    The feature cache, which training may read from, is no part of it: it would refuse other ways to tune.
    """
    return make_policy(run.config.replace(**{"cache": False, **changes}), prepare_backbone(run), device())


def policy_steps(run: Run, variants: dict[str, dict], repeats: int = 20) -> list[tuple[str, float, float, float]]:
    """(name, p50 in ms, p95 in ms, actions a second) of one policy step for each variant."""
    taken = {name: time_acting(untrained(run, **changes).eval(), repeats) for name, changes in variants.items()}
    return [(name, *found.values(), 1000 / found["p50_ms"] * run.config.profile.execute) for name, found in taken.items()]


def saliency_cost(run: Run, repeats: int = 20) -> tuple[float, float]:
    """Milliseconds of a forward pass with and without reading the saliency."""
    policy = untrained(run).eval()
    batch = one_observation(policy)
    with torch.no_grad():
        return tuple(milliseconds(lambda on=on: policy.encode(batch, saliency=on), repeats) for on in (True, False))


def measure_latency(run: Run, policy: Policy, repeats: int = REPEATS) -> dict:
    """Time `policy.act` on one observation; writes and returns `latency.json` (milliseconds, per second)."""
    profile, found = run.config.profile, time_acting(policy, repeats)
    result = {"device": device_name(), "dtype": policy.profile.precision, "n": repeats, **found,
              "replans_per_s": 1000 / found["p50_ms"], "actions_per_s": 1000 / found["p50_ms"] * profile.execute,
              "chunk": profile.chunk, "execute": profile.execute}
    write_json(run.path / "latency.json", result)
    return result


def time_acting(policy: Policy, repeats: int = REPEATS) -> dict[str, float]:
    """Median and 95th percentile of one policy step, in milliseconds."""
    batch = one_observation(policy)
    p50, p95 = np.percentile(times(lambda: policy.act(batch), repeats, warm_up=5), [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95)}


def one_observation(policy: Policy) -> dict:
    """A batch of one made-up observation, in the policy's sizes and on its device."""
    profile, device = policy.profile, policy.device
    def noise(size: int) -> torch.Tensor:
        return torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, device=device)
    batch = {"images": noise(policy.backbone.image_size), "proprio": torch.zeros(1, 8, device=device),
             "instructions": [INSTRUCTION]}
    return batch | ({"wrist": noise(profile.wrist_size)} if profile.wrist_size else {})


# One training step, beside `action_only` at the same profile: parameters, operations, time, memory

def measure_training(run: Run, steps: int = STEPS) -> dict:
    """Measure a training step of the run's condition and of `action_only`; writes and returns `training_cost.json`."""
    layers = run.config.condition.saliency_layers  # which action_only does not read, but which the profile must allow
    base = run.config.replace(condition=CONDITIONS[BASE].replace(saliency_layers=layers))
    result = {"device": device_name(), "batch_size": run.config.profile.batch_size, "n": steps,
              "own": _cost(run.config, steps), "action_only": _cost(base, steps)}
    write_json(run.path / "training_cost.json", result)
    return result


def compare_training(config: RunConfig, names: Sequence[str] = ARMS, steps: int = STEPS) -> dict[str, dict | None]:
    """The cost of each of these conditions at the profile of `config`, by name; None where the GPU's memory ran out.

    The feature cache is left to those that can use it.
    """
    costs: dict[str, dict | None] = {}
    for name in names:
        cache = config.profile.cache and not CONDITIONS[name].sees_again
        try:
            costs[name] = _cost(config.replace(condition=CONDITIONS[name], cache=cache), steps)
        except torch.cuda.OutOfMemoryError:
            costs[name] = None
    return costs


def _cost(config: RunConfig, steps: int) -> dict:
    """parameters that learn; flops of one step on one sample; step_ms; peak_bytes, of a GPU only."""
    gc.collect()
    torch.cuda.empty_cache()
    with tempfile.TemporaryDirectory() as folder:
        with meter() as reading:
            trainer = Trainer(Run.open(config, Path(folder) / "run"), noise_dataset(config), Path(folder))
            trainer.bare.train()
            step_ms = milliseconds(trainer.one_step, steps)
        profile = config.profile  # the products of 8-bit and 4-bit layers are not among the operators that are counted
        counted = profile.cache or profile.precision not in ("int8", "nf4")
        return {"parameters": sum(tensor.numel() for tensor in trainer.bare.trained().values()),
                "flops": _flops(trainer) if counted else None, "step_ms": step_ms,
                "peak_bytes": reading.peak_bytes if torch.cuda.is_available() else None}


def _flops(trainer: Trainer) -> float | None:
    """Floating-point operations of one training step on one sample: two for each multiply-and-add of a matrix product.

    They are counted in a step of another kind, since a CPU's fused kernels do not count; None where a GPU has no room
    for it, which says nothing of a step in training.
    """
    try:
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            trainer.one_step()
    except torch.cuda.OutOfMemoryError:
        return None
    return counter.get_total_flops() / trainer.config.profile.batch_size


def noise_dataset(config: RunConfig) -> DemoDataset:
    """One made-up episode in the sizes that the profile asks for."""
    rng, steps, profile = np.random.default_rng(0), NOISE_FRAMES, config.profile
    def pixels(size: int) -> np.ndarray:
        return rng.integers(0, 256, (steps, size, size, 3), dtype=np.uint8)
    episode = Episode(
        instruction=INSTRUCTION, actions=rng.uniform(-1, 1, (steps, 7)), agentview_rgb=pixels(profile.image_size),
        eye_in_hand_rgb=pixels(profile.wrist_size) if profile.wrist_size else None, ee_pos=rng.normal(size=(steps, 3)),
        ee_ori=rng.normal(size=(steps, 3)), gripper_states=rng.normal(size=(steps, 2)), joint_states=None, states=None,
        segmentation=rng.integers(0, 3, (steps, profile.image_size, profile.image_size), dtype=np.uint8),
        objects=("bowl", "other"), target="bowl", distractor="other")
    return make_dataset([episode], Stats.of([episode]), config)


# One backbone in several precisions, one after the other: memory, speed, and whether it still says the same

@dataclass(frozen=True)
class Measured:
    """bytes of all weights; seconds to load; ms of one forward pass; against the first precision of the comparison:
    the relative error of the logits, and how often the most likely next token is the same (0 to 1).
    """

    name: str
    bytes: int
    seconds: float
    ms: float
    error: float
    agreement: float


def load(source: str | Path, precision: str) -> Backbone:
    """The backbone in `precision` on this machine's device, for inference: low-bit layers keep no float copies."""
    tune = "lora_all" if precision in ("int8", "nf4") else "all"
    return load_backbone(source, precision=precision, tune=tune, lora_rank=1, device=device()).eval()


def compare_precisions(source: str | Path, precisions: list[str], image: np.ndarray,
                       sentences: list[str]) -> list[Measured]:
    """Measure each precision on image (H, W, 3) uint8 with several sentences; only one model is in memory at a time."""
    reference, rows = None, []
    for precision in precisions:
        with meter() as loading:
            backbone = load(source, precision)
        found = torch.cat([logits(backbone, image, sentence) for sentence in sentences])
        reference = found if reference is None else reference
        ms = milliseconds(lambda backbone=backbone: logits(backbone, image, sentences[0]), repeats=3)
        rows.append(Measured(precision, sum(row["bytes"] for row in parameter_table(backbone.vlm)), loading.seconds, ms,
                             ((found - reference).norm() / reference.norm()).item(),
                             (found.argmax(-1) == reference.argmax(-1)).float().mean().item()))
        del backbone
        gc.collect()
    return rows


@torch.no_grad()
def logits(backbone: Backbone, image: np.ndarray, sentence: str) -> Tensor:
    """Logits (L, vocabulary) in fp32, on the CPU, at every text position."""
    inputs = _inputs(backbone, image, sentence)
    L = inputs["input_ids"].shape[1] - backbone.patches
    return backbone.vlm(**inputs, logits_to_keep=L).logits[0].float().cpu()


@torch.no_grad()
def saliency(backbone: Backbone, image: np.ndarray, sentence: str) -> np.ndarray:
    """Where the sentence looks, (P,), summing to 1."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].to(backbone.vlm.device)
    return backbone.encode(normalise_pixels(pixels), [sentence]).saliency[0].float().cpu().numpy()


@torch.no_grad()
def answer(backbone: Backbone, image: np.ndarray, prompt: str, tokens: int = 20) -> str:
    """What PaliGemma itself says, e.g. to "caption en" or "detect black bowl"."""
    inputs = _inputs(backbone, image, prompt)
    said = backbone.vlm.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return backbone.processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)


def _inputs(backbone: Backbone, image: np.ndarray, sentence: str) -> dict[str, Tensor]:
    inputs = backbone.processor(images=image, text="<image>" + sentence, return_tensors="pt").to(backbone.vlm.device)
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "token_type_ids", "pixel_values")
            if name in inputs} | {"pixel_values": inputs["pixel_values"].to(backbone.vlm.model.vision_tower.dtype)}
