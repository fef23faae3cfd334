"""The smoke test's own path, on a slice of the architecture; the true size is `lar doctor --full-size`."""


import itertools
import time

import pytest
import torch

from lar_core import full_size
from lar_core.full_size import full_size_config, smoke
from lar_core.model.policy import Policy
from lar_core.model.tiny import build_tiny, full_config
from lar_core.run.config import PROFILES
from lar_core.run.errors import LarError

SLICE = PROFILES["micro"].replace(image_size=56, patch_size=14, text_layers=4)


def build_slice(folder):
    build_tiny(SLICE, folder)


@pytest.mark.parametrize("changes", [{}, {"tune": "lora_all"}, {"tune": "full_top", "precision": "fp32"}])
def test_every_stage_runs_is_timed_and_leaves_nothing(tmp_path, monkeypatch, changes):
    config = full_size_config(image_size=56, wrist_size=28, text_layers=4, decoder_heads=2, **changes)
    sizes = itertools.count(1)
    monkeypatch.setattr("lar_core.measure.costs.own_bytes", lambda *_: next(sizes))
    began = time.perf_counter()
    stages = dict(smoke(config, tmp_path, build_slice))
    assert list(stages) == ["build", "load", "saliency", "train", "act"]
    assert sum(reading.seconds for reading in stages.values()) < time.perf_counter() - began
    peaks = [reading.peak_bytes for name, reading in stages.items() if name != "build"]  # that is another process
    assert torch.cuda.is_available() or (peaks == sorted(set(peaks)) and peaks[-1] == next(sizes) - 1)
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(full_size, "CHECKPOINT_BYTES", 10**18)
    with pytest.raises(LarError, match="full-size checkpoint takes"):
        next(smoke(full_size_config(), tmp_path, build_slice))


def test_a_policy_that_acts_wrongly_is_found_out(tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "act", lambda self, batch: (batch["proprio"], None))
    config = full_size_config(image_size=56, wrist_size=28, text_layers=4, decoder_heads=2)
    with pytest.raises(LarError, match="Stage act ran but gave a wrong result"):
        list(smoke(config, tmp_path, build_slice))


def test_the_full_size_has_the_published_widths():
    config = full_config()
    text, vision = config.text_config, config.vision_config
    assert (text.num_hidden_layers, text.hidden_size, text.intermediate_size, text.vocab_size) == (18, 2048, 16384, 257216)
    assert (vision.num_hidden_layers, vision.hidden_size, vision.intermediate_size) == (27, 1152, 4304)
    assert (vision.image_size // vision.patch_size) ** 2 == 256
