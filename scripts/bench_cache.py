"""What the feature cache saves: training steps from disk and from pixels, side by side in one run.

    python scripts/bench_cache.py [--repeats 5] [--precision int8 fp32] [--batch 2]

Measured on profile tiny and on a slice of PaliGemma-3B at true width: a third of the depth everywhere (9 of 27 vision
layers, 6 of 18 language layers, the last 1 of them trained instead of 3), so that the parts keep their proportions.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from lar_core.measure.costs import noise_dataset
from lar_core.model.tiny import build_full_size, full_config
from lar_core.model.train import Trainer
from lar_core.run.config import RunConfig, make_config
from lar_core.run.folder import Run
from lar_core.run.runtime import device_name, quiet

SLICE = {"text_layers": 6, "top_layers": 1, "vision_layers": 9}


def build_slice(folder: Path) -> None:
    """A third of PaliGemma-3B's depth at true width, with a small vocabulary."""
    build_full_size(folder, full_config(vision_layers=9, text_layers=6, vocabulary=4096))


def trainers(folder: Path, make: partial[RunConfig]) -> dict[str, Trainer]:
    """The same training from pixels and from the cache."""
    made = {}
    for name, cache in (("from pixels", False), ("from the cache", True)):
        run = Run.open(make(cache=cache), folder / name.replace(" ", "-"))
        made[name] = Trainer(run, noise_dataset(run.config), folder)
        made[name].policy.train()
    return made


def compare(title: str, folder: Path, make: partial[RunConfig], repeats: int) -> None:
    """Print medians and the ratio; both take turns, so that a drifting machine is fair to both."""
    both = trainers(folder, make)
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats + 1):
        for name, trainer in both.items():
            began = time.perf_counter()
            trainer.one_step()
            seconds.setdefault(name, []).append(time.perf_counter() - began)
    pixels, cached = (np.array(seconds[name][1:]) for name in ("from pixels", "from the cache"))  # the first warms up
    print(f"{title}: from pixels {np.median(pixels):7.3f} s, from the cache {np.median(cached):7.3f} s a step: "
          f"{np.median(pixels / cached):.2f} x", flush=True)


def main() -> None:
    """Run the comparison on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each")
    parser.add_argument("--precision", nargs="+", default=["int8", "fp32"], help="of the frozen layers, at true width")
    parser.add_argument("--batch", type=int, default=2, help="batch size at true width")
    options = parser.parse_args()
    quiet()
    print(f"{device_name()}, {torch.get_num_threads()} threads; a step = batch, losses, backward, AdamW")
    with tempfile.TemporaryDirectory() as folder:
        for tune in ("full_top", "lora_top"):
            make = partial(make_config, profile="tiny", tune=tune)
            compare(f"tiny, {tune}, 3 of 4 layers trained", Path(folder) / f"tiny-{tune}", make, options.repeats)
        build_slice(Path(folder) / "slice")
        for precision in options.precision:
            for tune in ("full_top", "lora_top"):
                make = partial(make_config, profile="t4", tune=tune, precision=precision, saliency_layers=1,
                               batch_size=options.batch, samples=1000, backbone=str(Path(folder) / "slice"), **SLICE)
                compare(f"true width, {precision}, {tune}", Path(folder) / f"{precision}-{tune}", make, options.repeats)


if __name__ == "__main__":
    main()
