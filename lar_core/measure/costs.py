"""What choices cost when the policy acts: one step with another head, in another precision, without saliency.

Weights do not matter for time, so nothing here needs a trained policy.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

from ..model.policy import Policy, make_policy
from ..model.weights import prepare_backbone
from ..run.folder import Run
from ..run.registry import HEADS
from ..run.runtime import device
from .latency import one_observation, time_acting


def heads() -> dict[str, dict]:
    """Every action head with its usual loss, as changes of a condition."""
    return {f"{name}: {HEADS.about(name).words}": {"head": name, "action_loss": HEADS.about(name).losses[0]}
            for name in HEADS}


def untrained(run: Run, **changes: object) -> Policy:
    """A policy of the run's configuration with single fields changed. Raises LarError for what cannot be."""
    return make_policy(run.config.replace(**changes), prepare_backbone(run), device())


def policy_steps(run: Run, variants: dict[str, dict], repeats: int = 20) -> list[tuple[str, float, float, float]]:
    """(name, p50 in ms, p95 in ms, actions a second) of one policy step, saliency included, for each variant."""
    rows = []
    for name, changes in variants.items():
        times = time_acting(untrained(run, **changes).eval(), repeats)
        rows.append((name, *times.values(), 1000 / times["p50_ms"] * run.config.profile.execute))
    return rows


def precisions() -> dict[str, dict]:
    """The precisions that can be compared on this machine, as changes of a profile."""
    names = ("fp16", "int8", "nf4") if torch.cuda.is_available() else ("fp32", "int8", "nf4")
    return {name: {"precision": name, "tune": "lora_all"} if name in ("int8", "nf4") else {"precision": name}
            for name in names}


def saliency_cost(run: Run, repeats: int = 20) -> tuple[float, float]:
    """Milliseconds of a forward pass with and without reading the saliency."""
    policy = untrained(run).eval()
    batch = one_observation(policy)
    with torch.no_grad():
        return tuple(milliseconds(lambda on=on: policy.encode(batch, saliency=on), repeats) for on in (True, False))


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time that `work` takes, after two runs to warm up."""
    times = []
    for _ in range(2 + repeats):
        began = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[2:])
