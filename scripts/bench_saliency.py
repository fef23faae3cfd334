"""What the saliency tap costs: forward pass with the tap, plain SDPA, and eager attention, side by side in one run.

    python scripts/bench_saliency.py [--repeats 30]

Measured on the tiny profile and on a slice of true PaliGemma width (2 of its 18 language layers, 256 image tokens).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import PaliGemmaForConditionalGeneration

from lar_core.model.backbone import Backbone
from lar_core.model.paligemma import load_backbone
from lar_core.model.tiny import build_tiny
from lar_core.run.config import PROFILES
from lar_core.run.runtime import device_name, quiet

SENTENCE = "pick up the black bowl on the ramekin and place it on the plate"
TRUE_WIDTH = PROFILES["tiny"].replace(image_size=224, patch_size=14, vision_width=128, vision_layers=1,
                     text_width=2048, text_layers=2, attention_heads=8)


@torch.no_grad()
def fastest(forward: Callable[[], object], repeats: int = 3) -> float:
    """Seconds of the fastest of a few forward passes."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        forward()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def eager_forward(folder: str, backbone: Backbone, images: torch.Tensor) -> Callable[[], object]:
    """The same pass by transformers' own model with eager attention."""
    model = PaliGemmaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32,
                                                              attn_implementation="eager").model
    ids = backbone.tokenise([SENTENCE] * len(images)).ids
    return lambda: model(input_ids=ids, pixel_values=images, token_type_ids=torch.zeros_like(ids), use_cache=False)


def compare(name: str, profile, layers: int, batch: int, repeats: int) -> None:
    """Print medians and ratios; the variants take turns, so that a drifting machine is fair to all."""
    with tempfile.TemporaryDirectory() as folder:
        build_tiny(profile, folder)
        backbone = load_backbone(folder, saliency_layers=layers)
        images = torch.rand(batch, 3, profile.image_size, profile.image_size) * 2 - 1
        eager = eager_forward(folder, backbone, images)
    sentences = [SENTENCE] * batch
    variants = {"plain SDPA": lambda: backbone.encode(images, sentences, saliency=False),
                "SDPA with tap": lambda: backbone.encode(images, sentences), "eager": eager}
    rounds = {variant: [] for variant in variants}
    for _ in range(repeats + 1):
        for variant, forward in variants.items():
            rounds[variant].append(fastest(forward))
    base = np.array(rounds["plain SDPA"][1:])  # the first round warms up
    print(f"{name}, batch {batch}:")
    for variant, seconds in rounds.items():
        ratio = np.median(np.array(seconds[1:]) / base)
        print(f"  {variant:14s} {1000 * np.median(seconds[1:]):8.1f} ms   {ratio:5.3f} x plain SDPA")


def main() -> None:
    """Run the comparison on this machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15, help="rounds of all three variants")
    repeats = parser.parse_args().repeats
    quiet()
    print(f"{device_name()}, {torch.get_num_threads()} threads")
    compare("tiny, 3 of 4 layers tapped", PROFILES["tiny"], 3, 16, repeats)
    compare("true width, 1 of 2 layers tapped (the full model: 3 of 18)", TRUE_WIDTH, 1, 1, repeats)


if __name__ == "__main__":
    main()
