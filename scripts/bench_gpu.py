"""Every way to tune PaliGemma-3B under a memory cap: time and peak memory of a training step; then policy steps.

    python scripts/bench_gpu.py [--cap 15] [--batches 1 2 4 8] [--out results/gpu.json]

For a GPU. The true size with random weights is built once; each combination runs in turn, and one that does not fit is
written down as such. --cap: GB that PyTorch may use (`torch.cuda.set_per_process_memory_fraction`), so that a large card
answers for a 15 GB one; its speed stays its own.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from lar_core.estimate import plan, this_machine
from lar_core.full_size import full_size_config
from lar_core.measure.costs import meter, noise_dataset, time_acting
from lar_core.model.policy import make_policy
from lar_core.model.tiny import build_full_size
from lar_core.model.train import Trainer
from lar_core.run.config import RunConfig, make_config
from lar_core.run.errors import LarError
from lar_core.run.files import write_json
from lar_core.run.folder import Run, provenance
from lar_core.run.runtime import device, device_name, quiet

TUNES = [{"tune": "lora_top"}, {"tune": "lora_top", "cache": True}, {"tune": "full_top"},
         {"tune": "full_top", "cache": True}, {"tune": "lora_all"}, {"tune": "lora_all", "checkpointing": True}]


def training_step(config: RunConfig, folder: Path) -> dict:
    """Seconds and peak GB of the second training step, beside what was planned."""
    machine = this_machine(config)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        trainer = Trainer(Run.open(config, Path(place) / "run"), noise_dataset(config), folder)
        trainer.policy.train()
        trainer.one_step()
        with meter() as reading:
            trainer.one_step()
    planned = plan(config, machine)
    return {"seconds": reading.seconds, "peak_gb": reading.peak_bytes / 1e9,
            "planned_seconds": planned.step_seconds, "planned_gb": planned.peak / 1e9}


def policy_step(config: RunConfig, backbone: str) -> dict:
    """Milliseconds of one policy step."""
    policy = make_policy(config, backbone, device()).eval()
    return time_acting(policy, repeats=20)


def attempt(work: Callable[..., dict], *arguments: object) -> dict:
    """The row, or the word that it does not fit."""
    try:
        return work(*arguments)
    except (torch.cuda.OutOfMemoryError, LarError) as error:
        return {"failed": str(error).splitlines()[0][:120]}
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """Run all combinations on this machine and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cap", type=float, default=15.0, help="GB that PyTorch may use")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--out", type=Path, default=Path("results/gpu.json"))
    options = parser.parse_args()
    quiet()
    if not torch.cuda.is_available():
        parser.error("there is no GPU here; `lar doctor --full-size` runs on a CPU")
    torch.cuda.set_per_process_memory_fraction(min(1.0, 1e9 * options.cap / torch.cuda.mem_get_info()[1]))
    table: dict[str, object] = {"gpu": device_name(), "cap_gb": options.cap, "provenance": provenance(), "training": [],
                                "acting": []}
    with tempfile.TemporaryDirectory() as folder:
        build_full_size(Path(folder) / "weights")
        weights = {"backbone": str(Path(folder) / "weights")}
        for settings in TUNES:
            for batch in options.batches:
                config = full_size_config(**settings, **weights, batch_size=batch)
                row = settings | {"batch": batch} | attempt(training_step, config, Path(folder))
                table["training"].append(row)
                print(row, flush=True)
                write_json(options.out, table)
        for precision in ("fp16", "int8", "nf4"):
            for head in ("parallel", "autoregressive"):
                config = make_config("action_only", "t4", precision=precision, tune="lora_all", cache=False, head=head,
                                     **weights)
                row = {"precision": precision, "head": head} | attempt(policy_step, config, weights["backbone"])
                table["acting"].append(row)
                print(row, flush=True)
                write_json(options.out, table)


if __name__ == "__main__":
    main()
