"""Reconstructions while training: from before it, and from every checkpoint, drawn beside it."""

from __future__ import annotations

import numpy as np
import pytest

from lar_core.measure.costs import untrained
from lar_core.measure.probes import keep_snapshots, snapshots
from lar_core.run.config import make_config
from lar_core.run.folder import Run
from lar_core.show.pictures import over_time


class Heldout:
    """Stands for a data set: two samples, whatever is asked for."""

    def __init__(self, batch):
        self.made = batch

    def __len__(self):
        return 2

    def batch(self, _):
        return self.made


def test_panels_are_kept_before_training_and_at_each_checkpoint(tmp_path, batch):
    run = Run.open(make_config(profile="micro"), tmp_path / "run")
    with keep_snapshots(run, Heldout(batch)):
        policy = untrained(run)
        for parameter in policy.decoder.parameters():
            parameter.data.mul_(2.0)
        (run.path / "checkpoints/step_000008").mkdir(parents=True)
        policy.save(run.path / "checkpoints/step_000008/model.safetensors")
    kept = snapshots(run)
    assert list(kept) == [0, 8] and kept[0].shape == (2, 4, 64, 64, 3)
    assert (kept[0][:, 0] == kept[8][:, 0]).all() and (kept[0][:, 2] != kept[8][:, 2]).any()


def test_a_condition_that_reconstructs_nothing_keeps_nothing(tmp_path, batch):
    run = Run.open(make_config("action_only", "micro"), tmp_path / "run")
    with keep_snapshots(run, Heldout(batch)):
        pass
    assert snapshots(run) == {}


@pytest.mark.parametrize("count, columns", [(1, 1), (3, 3), (9, 5)])
def test_time_runs_from_left_to_right_in_at_most_five_columns(count, columns):
    picture = over_time({step: np.zeros((2, 4, 32, 32, 3), np.uint8) for step in range(count)}, side=50)
    assert picture.shape[1] == 60 * columns - 10
