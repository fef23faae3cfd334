"""The cost of a training step: counted by torch, checked by hand where that can be done."""

import json
import time

import pytest
import torch
from test_results import full, minimal

from lar_core.measure import costs
from lar_core.measure.costs import ARMS, BASE, compare_training, measure_training
from lar_core.measure.results import validate_results
from lar_core.model.diffusion import count
from lar_core.run.config import CONDITIONS, make_config
from lar_core.run.folder import Run
from lar_core.show.report import cost_rows, summary_table


def measured(tmp_path, condition, **changes):
    run = Run.open(make_config(condition, "micro", **changes), tmp_path / condition)
    return run, measure_training(run, steps=2)


def test_a_decoder_adds_its_own_parameters_and_operations(tmp_path, policy_of):
    began = time.perf_counter()
    run, cost = measured(tmp_path, "random_mask")
    policy = policy_of("random_mask")
    assert cost["own"]["parameters"] - cost["action_only"]["parameters"] == count(policy.decoder)
    assert 2 * (cost["own"]["step_ms"] + cost["action_only"]["step_ms"]) < 1000 * (time.perf_counter() - began)
    assert (cost["own"]["peak_bytes"] is None) == (not torch.cuda.is_available())
    linear = sum(weight.numel() for name, weight in policy.decoder.named_parameters() if weight.dim() == 2)
    by_hand = 6 * linear * policy.backbone.patches  # forward, and backward to inputs and to weights: 2 each
    attention = 2 * 3 * 4 * policy.backbone.patches**2 * 32  # of two layers, 32 wide: two products, three times
    saliency = cost["own"]["flops"] - cost["action_only"]["flops"] - by_hand - attention
    assert abs(saliency) < 0.1 * cost["own"]["flops"]  # reading the text rows' attention is small


def test_four_noisy_versions_cost_about_four_decoders_of_the_same_size(tmp_path):
    mae, matched = (measured(tmp_path, name)[1] for name in ("gaze_mask", "gaze_diffusion_matched"))
    added = [cost["own"]["flops"] - cost["action_only"]["flops"] for cost in (mae, matched)]
    assert 2.5 < added[1] / added[0] < 4.5
    assert matched["own"]["parameters"] == pytest.approx(mae["own"]["parameters"], rel=0.05)


def test_action_only_costs_what_it_costs(tmp_path):
    cost = measured(tmp_path, "action_only")[1]
    own, base = ({name: value for name, value in cost[which].items() if name != "step_ms"}
                 for which in ("own", "action_only"))
    assert own == base


def test_a_condition_that_reads_fewer_layers_has_its_base_too(tmp_path):
    cost = measured(tmp_path, "random_mask", tune="full_top", top_layers=1, saliency_layers=1)[1]
    assert cost["own"]["parameters"] > cost["action_only"]["parameters"]


def test_operations_of_8_bit_layers_are_not_claimed(tmp_path):
    cost = measured(tmp_path, "action_only", precision="int8", tune="lora_all")[1]
    assert cost["own"]["flops"] is None


def test_it_is_kept_and_shown(tmp_path):
    run, cost = measured(tmp_path, "gaze_diffusion")
    assert json.loads((run.path / "training_cost.json").read_text()) == cost
    results = minimal("gaze_diffusion", "micro") | {"training_cost": cost}
    validate_results(results)
    validate_results(full() | {"training_cost": None})
    assert "training step" in summary_table(results) and "action_only" in summary_table(results)


def test_conditions_are_compared_and_a_second_look_costs_more_operations():
    costs = compare_training(make_config(profile="micro"), (BASE, "random_mask", "joint_mask"), steps=1)
    assert costs["joint_mask"]["flops"] > 1.3 * costs["random_mask"]["flops"] > costs[BASE]["flops"]
    rows = cost_rows(costs, BASE)
    assert [row[0] for row in rows] == list(costs) and rows[0][2] == "1.00 ×" and rows[0][5] == "–"
    assert set(ARMS) <= set(CONDITIONS)


def test_a_condition_that_does_not_fit_is_said_and_the_others_go_on(monkeypatch):
    def full(config, steps):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(costs, "_cost", full)
    made = compare_training(make_config(profile="micro"), (BASE, "random_mask"))
    assert cost_rows(made, BASE)[1][:2] == ("random_mask", "does not fit in memory")


def test_the_feature_cache_is_left_to_those_that_can_use_it(monkeypatch):
    used = {}
    def remember(config, steps):
        used[config.condition.name] = config.profile.cache
    monkeypatch.setattr(costs, "_cost", remember)
    compare_training(make_config(profile="t4"), (BASE, "joint_mask"))
    assert used == {BASE: True, "joint_mask": False}
