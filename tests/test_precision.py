"""A backbone in several precisions: 8 bit is smaller and says nearly the same."""

from __future__ import annotations

import numpy as np
import torch

from lar_core.evaluate.precision import answer, compare_precisions, load, logits

SENTENCES = ["pick up the black bowl on the ramekin", "move the bowl"]
image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def test_eight_bit_is_smaller_and_says_nearly_the_same(backbone_folder):
    full, eight = compare_precisions(backbone_folder, ["fp32", "int8"], image, SENTENCES)
    assert (full.error, full.agreement) == (0, 1)
    assert eight.bytes < full.bytes and 0 < eight.error < 0.1 and eight.agreement > 0.8
    assert full.ms > 0 and eight.seconds > 0


def test_logits_are_those_of_transformers_own_forward_pass(backbone_folder):
    backbone = load(backbone_folder, "fp32")
    inputs = backbone.processor(images=image, text="<image>" + SENTENCES[1], return_tensors="pt")
    inputs.pop("labels", None)
    with torch.no_grad():
        whole = backbone.vlm(**inputs).logits[0, backbone.patches:]
    torch.testing.assert_close(logits(backbone, image, SENTENCES[1]), whole)


def test_an_answer_is_text(backbone_folder):
    assert isinstance(answer(load(backbone_folder, "fp32"), image, "caption en", tokens=3), str)
