"""One backbone in several precisions, one after the other: memory, speed, and whether it still says the same."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..model.backbone import Backbone, normalise_pixels
from ..model.loading import load_backbone, parameter_table
from ..run.runtime import device
from .costs import milliseconds


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
        began = time.perf_counter()
        backbone = load(source, precision)
        seconds = time.perf_counter() - began
        found = torch.cat([logits(backbone, image, sentence) for sentence in sentences])
        reference = found if reference is None else reference
        ms = milliseconds(lambda backbone=backbone: logits(backbone, image, sentences[0]), repeats=3)
        rows.append(Measured(precision, sum(row["bytes"] for row in parameter_table(backbone.vlm)), seconds, ms,
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
