"""What a condition costs in training, beside `action_only` at the same profile: parameters, operations, time, memory.

Both are measured here and now, one after the other, through the trainer itself on made-up frames: whatever a step of
the condition does (a second pass, a teacher, noise) is in it. The weights do not matter for any of these numbers.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..full_size import noise_dataset
from ..model.train import Trainer
from ..run.config import CONDITIONS, RunConfig
from ..run.files import write_json
from ..run.folder import Run
from ..run.runtime import device, device_name

WARM_UP, STEPS = 2, 8
BASE = "action_only"
ARMS = (BASE, "random_mask", "attention_mask", "joint_mask", "gaze_diffusion", "gaze_diffusion_matched", "teacher_mask",
        "contrastive_attention", "language_mask", "autoregressive_head", "bridge_head", "focus_head")  # one of each


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
    return {name: _cost_or_none(config.replace(condition=CONDITIONS[name], cache=config.profile.cache
                                               and not CONDITIONS[name].sees_again), steps) for name in names}


def _cost_or_none(config: RunConfig, steps: int) -> dict | None:
    try:
        return _cost(config, steps)
    except torch.cuda.OutOfMemoryError:
        return None


def _cost(config: RunConfig, steps: int) -> dict:
    """parameters that learn; flops of one step on one sample; step_ms; peak_bytes, of a GPU only."""
    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(Run.open(config, Path(folder) / "run"), noise_dataset(config), Path(folder))
        trainer.bare.train()
        flops = _flops(trainer) / config.profile.batch_size if _all_counted(config) else None
        return {"parameters": sum(tensor.numel() for tensor in trainer.bare.trained().values()), "flops": flops,
                "step_ms": statistics.median([_step_ms(trainer) for _ in range(WARM_UP + steps)][WARM_UP:]),
                "peak_bytes": torch.cuda.max_memory_allocated() if device().type == "cuda" else None}


def _flops(trainer: Trainer) -> float:
    """Floating-point operations of one training step: two for each multiply-and-add of a matrix product."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # a CPU's fused kernels do not count
        trainer.one_step()
    return float(counter.get_total_flops())


def _all_counted(config: RunConfig) -> bool:
    """The products of 8-bit and 4-bit layers are not among the operators that are counted."""
    return config.profile.cache or config.profile.precision not in ("int8", "nf4")


def _step_ms(trainer: Trainer) -> float:
    began = time.perf_counter()
    trainer.one_step()
    if device().type == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began)
