"""What can be read from the patches, and how hard reconstruction pulls, against cases that are known beforehand."""

import numpy as np
import pytest

from lar_core.measure.mechanism import _probe, pull
from lar_core.run.files import append_jsonl


@pytest.fixture
def known():
    """Places (120, 4) in metres of twelve episodes."""
    return np.random.default_rng(0).uniform(-0.2, 0.2, (120, 4)), np.repeat(np.arange(12), 10)


def test_a_place_that_stands_in_the_states_is_read_off_them(known):
    places, episode = known
    rng = np.random.default_rng(1)
    states = places @ rng.standard_normal((4, 300)) + rng.standard_normal(300)
    train, held = episode < 9, episode >= 9
    read = _probe(states[train], states[held], places[train], episode[train])
    assert np.abs(read - places[held]).max() < 0.005


def test_from_noise_nothing_is_read_but_the_mean(known):
    places, episode = known
    states = np.random.default_rng(1).standard_normal((120, 300))
    train, held = episode < 9, episode >= 9
    error = np.abs(_probe(states[train], states[held], places[train], episode[train]) - places[held]).mean()
    assert error == pytest.approx(np.abs(places[train].mean(0) - places[held]).mean(), rel=0.15)


def test_the_pull_is_the_ratio_of_the_last_logged_gradients(tmp_path):
    append_jsonl(tmp_path / "metrics.jsonl", {"step": 0, "grad_action": 1.0, "grad_recon": 9.0})
    for step in range(20):
        append_jsonl(tmp_path / "metrics.jsonl", {"step": step + 1, "grad_action": 2.0, "grad_recon": 0.5})
    assert pull(tmp_path / "metrics.jsonl") == {"mean": 0.25, "low": None, "high": None}
    append_jsonl(tmp_path / "none.jsonl", {"step": 1, "grad_action": 2.0})
    assert pull(tmp_path / "none.jsonl") is None
