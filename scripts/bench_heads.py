"""One-pass action head against an autoregressive one: milliseconds per action chunk, in turns in one run.

    python scripts/bench_heads.py [--full] [--chunk 8] [--precision fp16] [--repeats 5]

The autoregressive head writes 7 tokens a step of the chunk, each through the language model with cached keys and values,
in the manner of OpenVLA. Measured at PaliGemma's true width, at a third of its depth, or in full (--full; 12 GB in fp32).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lar_core.measure.costs import one_observation
from lar_core.model.policy import Policy, make_policy
from lar_core.model.tiny import build_full_size, full_config
from lar_core.run.config import make_config
from lar_core.run.runtime import device, device_name, quiet

SLICE = {"text_layers": 6, "vision_layers": 9}


def act_seconds(policy: Policy) -> float:
    """Of one policy step."""
    batch, began = one_observation(policy), time.perf_counter()
    policy.act(batch)
    if policy.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def main() -> None:
    """Run the comparison on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all 27 + 18 layers")
    parser.add_argument("--chunk", type=int, default=8, help="actions predicted at once")
    parser.add_argument("--precision", default="fp16" if torch.cuda.is_available() else "fp32")
    parser.add_argument("--repeats", type=int, default=5, help="timed policy steps of each")
    options = parser.parse_args()
    quiet()
    sizes = {} if options.full else SLICE
    with tempfile.TemporaryDirectory() as folder:
        build_full_size(Path(folder), full_config(vocabulary=4096, **sizes))
        policies = {head: make_policy(make_config("action_only", "t4", head=head, chunk=options.chunk,
                                                  execute=options.chunk, tune="lora_all", cache=False,
                                                  precision=options.precision, **sizes), folder, device()).eval()
                    for head in ("parallel", "autoregressive")}
    seconds = {head: [] for head in policies}
    for _ in range(options.repeats + 1):
        for head, policy in policies.items():
            seconds[head].append(act_seconds(policy))
    parallel, sequential = (np.array(seconds[head][1:]) for head in policies)  # the first warms up
    depth = "27 + 18 layers" if options.full else "9 + 6 of 27 + 18 layers"
    print(f"{device_name()}, {options.precision}, {torch.get_num_threads()} threads, true width, {depth}, chunk "
          f"{options.chunk}: one pass {1000 * np.median(parallel):.0f} ms, autoregressive "
          f"{1000 * np.median(sequential):.0f} ms a chunk: {np.median(sequential / parallel):.1f} x")


if __name__ == "__main__":
    main()
