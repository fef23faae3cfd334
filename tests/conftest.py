"""Shared fixtures: the smallest model, and demonstrations made of noise where no scene is needed."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

os.environ.setdefault("LAR_LIBERO_ASSETS", "standin")  # tests never depend on what else this machine has

import numpy as np
import pytest
import torch
from hub_stand_in import hub  # noqa: F401  (a fixture for all tests)

from lar_core.model.policy import make_policy
from lar_core.model.tiny import build_tiny
from lar_core.run.config import PROFILES, make_config
from lar_core.run.runtime import Draws, quiet

quiet()
# Where the tests themselves are started in the background, the shell has told them to ignore these.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
LONG = ("test_studies.py", "test_end_to_end.py", "test_collect.py", "test_rollout.py", "test_env.py", "test_presets.py",
        "test_demonstrations.py", "test_distributed.py", "test_full_size.py", "test_train.py", "test_wheel.py")
SENTENCES = ["pick up the black bowl on the ramekin and place it on the plate", "move the bowl"]


def pytest_configure(config):
    """Several workers take files in the order below; xdist would begin with those of many tests, and wait for a long one."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """The longest files first."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


@pytest.fixture(scope="session")
def backbone_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    build_tiny(PROFILES["micro"], folder)
    return folder


@pytest.fixture
def policy_of(backbone_folder):
    """A factory: policy_of("gaze_mask", mask_grid="essay") is an untrained micro policy of that condition."""
    return lambda condition="attention_mask", **changes: make_policy(make_config(condition, "micro", **changes),
                                                                     backbone_folder)


def wait_until(happened: Callable[[], object], seconds: float = 240) -> None:
    """Wait for what another process or thread does; a busy machine takes a minute to import torch."""
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, f"not in {seconds} seconds"
        time.sleep(0.05)


def timed(work: Callable, taken: list[float]) -> Callable:
    """`work`, which appends to `taken` the seconds of every call: who measures it from outside must find no less."""
    def measured(*arguments, **settings):
        began = time.perf_counter()
        try:
            return work(*arguments, **settings)
        finally:
            taken.append(time.perf_counter() - began)
    return measured


def reconstruct(policy, batch, encoding=None):
    """What the policy makes of the patches that it masks, by one seed's draws."""
    encoding, draws = encoding or policy.encode(batch), Draws(0)
    return policy.reconstruct(batch, encoding, policy.mask(batch, encoding.saliency, draws), draws)


@pytest.fixture
def batch():
    """Two samples in the shapes of the micro profile; the second instruction is shorter, so it is padded."""
    generator = torch.Generator().manual_seed(0)
    def pixels(size):
        return torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    regions = torch.zeros(2, 2, 64, 64, dtype=torch.uint8)
    regions[:, 0, 16:32, 32:48] = 1
    regions[:, 1, 48:, :16] = 1
    return {"images": pixels(64), "wrist": pixels(32), "proprio": torch.randn(2, 8, generator=generator),
            "instructions": SENTENCES, "actions": torch.rand(2, 8, 7, generator=generator) * 2 - 1,
            "action_pad": torch.arange(8).expand(2, 8) >= torch.tensor([[8], [5]]), "regions": regions,
            "previous": pixels(64), "following": pixels(64),
            "others": ["pick up the black bowl on the cookie box and place it on the plate", None]}


@pytest.fixture
def rng():
    return np.random.default_rng(0)
