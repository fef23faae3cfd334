"""How large activations get: fp16 ends at 65,504, and a language model's residual stream can come near it.

The first batch of a training tells; the numbers go to `activations.json` in the run folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .backbone import Backbone

FP16_MAX = 65_504.0


@contextmanager
def activation_ranges(backbone: Backbone) -> Iterator[dict[str, float]]:
    """Yield a dictionary that fills with the largest absolute output of every layer that runs inside the block."""
    ranges: dict[str, float] = {}
    layers = {"vision tower": backbone.vlm.model.vision_tower, "projector": backbone.vlm.model.multi_modal_projector}
    layers |= {f"layer {index}": layer for index, layer in enumerate(backbone.vlm.model.language_model.layers)}

    def watch(name: str):
        def look(_module, _inputs, output) -> None:
            states = output if isinstance(output, torch.Tensor) else output[0]
            ranges[name] = max(ranges.get(name, 0.0), float(states.detach().abs().max()))
        return look

    hooks = [layer.register_forward_hook(watch(name)) for name, layer in layers.items() if layer is not None]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def too_large(ranges: dict[str, float]) -> list[str]:
    """Names of the layers whose outputs pass half of what fp16 can hold."""
    return [name for name, largest in ranges.items() if not largest < FP16_MAX / 2]
