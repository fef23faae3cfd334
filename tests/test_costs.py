"""What choices cost: every variant is really the one that was asked for, and is measured."""

from __future__ import annotations

import pytest

from lar_core.config import make_config
from lar_core.evaluate import costs
from lar_core.run import Run


@pytest.fixture
def run(tmp_path):
    return Run.open(make_config(profile="micro"), tmp_path / "run")


def test_fields_of_condition_and_profile_are_changed_alike():
    config = make_config(profile="micro").replace(mask_input=True, batch_size=4)
    assert config.condition.mask_input and config.profile.batch_size == 4


def test_one_token_after_another_is_slower_than_all_at_once(run):
    (_, fast, fast95, rate), (_, slow, *_), *_ = costs.policy_steps(run, costs.heads(), repeats=5)
    assert slow > 2 * fast and fast95 >= fast and rate == pytest.approx(8000 / fast)


def test_heads_are_timed_whatever_head_the_run_has(tmp_path):
    run = Run.open(make_config("bridge_head", "micro"), tmp_path / "bridge")  # its L1 loss does not suit every head
    assert [run.config.replace(**changes).condition.head for changes in costs.heads().values()] == [
        "parallel", "autoregressive", "bridge", "focus"]


def test_saliency_can_be_left_out(run):
    assert all(ms > 0 for ms in costs.saliency_cost(run, repeats=3))
