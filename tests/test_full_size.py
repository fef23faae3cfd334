"""The smoke test's own path, on a slice of the architecture; the true size is `lar doctor --full-size`."""

import itertools
import os
import time

import pytest
import torch
from conftest import timed

from lar_core import full_size
from lar_core.full_size import full_size_config, smoke
from lar_core.model.policy import Policy
from lar_core.model.tiny import build_tiny, full_config
from lar_core.model.train import Trainer
from lar_core.run.config import PROFILES
from lar_core.run.errors import LarError

SLICE = PROFILES["micro"].replace(image_size=56, patch_size=14, text_layers=4)


def build_slice(folder):
    build_tiny(SLICE, folder)


@pytest.fixture
def here(monkeypatch):
    """The slice is built in this process: starting another takes longer than all else."""
    monkeypatch.setattr(full_size, "_in_a_process", full_size._build)


def test_the_checkpoint_is_built_in_a_process_of_its_own(tmp_path):
    """So that its memory is gone afterwards."""
    stage, reading = next(smoke(full_size_config(), tmp_path, tell_process))
    assert stage == "build" and reading.seconds > 0 < reading.peak_bytes
    assert int((tmp_path / "process").read_text()) != os.getpid()


def tell_process(checkpoint):
    (checkpoint.parents[1] / "process").write_text(str(os.getpid()))


@pytest.mark.parametrize("changes", [{}, {"tune": "lora_all"}, {"tune": "full_top", "precision": "fp32"}])
def test_every_stage_runs_is_timed_and_leaves_nothing(here, tmp_path, monkeypatch, changes):
    config = full_size_config(image_size=56, wrist_size=28, text_layers=4, decoder_heads=2, **changes)
    sizes, building, training, acting = itertools.count(1), [], [], []
    monkeypatch.setattr(Trainer, "one_step", timed(Trainer.one_step, training))
    monkeypatch.setattr(Policy, "act", timed(Policy.act, acting))
    monkeypatch.setattr("lar_core.measure.costs.own_bytes", lambda *_: next(sizes))
    began = time.perf_counter()
    stages = dict(smoke(config, tmp_path, timed(build_slice, building)))
    assert list(stages) == ["build", "load", "saliency", "train", "act"]
    assert sum(reading.seconds for reading in stages.values()) < time.perf_counter() - began
    for name, taken in (("build", building), ("train", training), ("act", acting)):
        assert len(taken) == 1 and taken[0] <= stages[name].seconds
    peaks = [reading.peak_bytes for reading in stages.values()]
    assert torch.cuda.is_available() or (peaks == sorted(set(peaks)) and peaks[-1] == next(sizes) - 1)
    assert not list(tmp_path.iterdir())


def test_too_small_a_disk_is_said_first(tmp_path, monkeypatch):
    monkeypatch.setattr(full_size, "CHECKPOINT_BYTES", 10**18)
    with pytest.raises(LarError, match="full-size checkpoint takes"):
        next(smoke(full_size_config(), tmp_path, build_slice))


def test_a_policy_that_acts_wrongly_is_found_out(here, tmp_path, monkeypatch):
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
