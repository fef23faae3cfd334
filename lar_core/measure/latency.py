"""Latency: how long one policy step takes (image and instruction in, a chunk of actions out), saliency included.

Neither this method nor its rivals reconstruct anything at inference: the decoder is a cost of training alone, and no
speed-up of control follows from replacing a diffusion decoder by a single-pass one.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from ..model.policy import Policy
from ..run.files import write_json
from ..run.folder import Run
from ..run.runtime import device_name

WARM_UP = 5
REPEATS = 50


def measure_latency(run: Run, policy: Policy, repeats: int = REPEATS) -> dict:
    """Time `policy.act` on one observation; writes and returns `latency.json` (milliseconds, per second)."""
    profile = run.config.profile
    times = time_acting(policy, repeats)
    result = {"device": device_name(), "dtype": policy.profile.precision, "n": repeats, **times,
              "replans_per_s": 1000 / times["p50_ms"], "actions_per_s": 1000 / times["p50_ms"] * profile.execute,
              "chunk": profile.chunk, "execute": profile.execute}
    write_json(run.path / "latency.json", result)
    return result


def time_acting(policy: Policy, repeats: int = REPEATS) -> dict[str, float]:
    """Median and 95th percentile of one policy step, in milliseconds."""
    batch = one_observation(policy)
    times = []
    for _ in range(WARM_UP + repeats):
        began = time.perf_counter()
        policy.act(batch)
        if policy.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(1000 * (time.perf_counter() - began))
    p50, p95 = np.percentile(times[WARM_UP:], [50, 95])
    return {"p50_ms": float(p50), "p95_ms": float(p95)}


def one_observation(policy: Policy) -> dict:
    """A batch of one made-up observation, in the policy's sizes and on its device."""
    profile, device = policy.profile, policy.device
    def noise(size: int) -> torch.Tensor:
        return torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, device=device)
    batch = {"images": noise(policy.backbone.image_size), "proprio": torch.zeros(1, 8, device=device),
             "instructions": ["pick up the black bowl on the ramekin and place it on the plate"]}
    return batch | ({"wrist": noise(profile.wrist_size)} if profile.wrist_size else {})
