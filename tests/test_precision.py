"""A backbone in several precisions: 8 bit is smaller and says nearly the same."""

from __future__ import annotations

import time

import numpy as np
import torch

from lar_core.measure.costs import answer, compare_precisions, load, logits

SENTENCES = ["pick up the black bowl on the ramekin", "move the bowl"]
image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def test_eight_bit_is_smaller_and_says_nearly_the_same(backbone_folder, monkeypatch):
    monkeypatch.setattr("lar_core.measure.costs.milliseconds", lambda work, repeats: 1000 * len(work()) + repeats)
    began = time.perf_counter()
    full, eight = compare_precisions(backbone_folder, ["fp32", "int8"], image, SENTENCES)
    assert (full.error, full.agreement) == (0, 1)
    assert eight.bytes < full.bytes and 0 < eight.error < 0.1 and eight.agreement > 0.8
    assert full.seconds + eight.seconds < time.perf_counter() - began
    length = len(logits(load(backbone_folder, "fp32"), image, SENTENCES[0]))
    assert full.ms == eight.ms == 1000 * length + 3  # the first sentence alone is timed


def test_logits_are_those_of_transformers_own_forward_pass(backbone_folder):
    backbone = load(backbone_folder, "fp32")
    inputs = backbone.processor(images=image, text="<image>" + SENTENCES[1], return_tensors="pt")
    inputs.pop("labels", None)
    with torch.no_grad():
        whole = backbone.vlm(**inputs).logits[0, backbone.patches:]
    torch.testing.assert_close(logits(backbone, image, SENTENCES[1]), whole)


def test_an_answer_is_the_likeliest_next_token_and_does_not_repeat_the_question(backbone_folder):
    backbone = load(backbone_folder, "fp32")
    prompts = ["caption en", *SENTENCES]
    likeliest = [backbone.processor.tokenizer.decode([logits(backbone, image, prompt)[-1].argmax().item()],
                                                     skip_special_tokens=True) for prompt in prompts]
    assert [answer(backbone, image, prompt, tokens=1) for prompt in prompts] == likeliest and any(likeliest)
    assert all(answer(backbone, image, prompt, tokens=3).startswith(first) for prompt, first in zip(prompts, likeliest))
