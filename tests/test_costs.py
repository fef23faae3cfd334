"""What choices cost: every variant is really the one that was asked for, and is measured."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import timed
from test_results import full, minimal

from lar_core.measure import costs
from lar_core.measure.costs import ARMS, BASE, answer, compare_precisions, compare_training, load, logits, measure_training
from lar_core.measure.results import validate_results
from lar_core.model.diffusion import count
from lar_core.model.saliency import SaliencyTap
from lar_core.model.train import Trainer
from lar_core.run.config import CONDITIONS, make_config
from lar_core.run.folder import Run
from lar_core.show.report import cost_rows, summary_table


@pytest.fixture
def run(tmp_path):
    return Run.open(make_config(profile="micro"), tmp_path / "run")


def test_fields_of_condition_and_profile_are_changed_alike():
    config = make_config(profile="micro").replace(mask_input=True, batch_size=4)
    assert config.condition.mask_input and config.profile.batch_size == 4


def test_one_token_after_another_is_slower_than_all_at_once(run):
    (_, fast, fast95, rate), (_, slow, *_), *_ = costs.policy_steps(run, costs.heads(), repeats=5)
    assert slow > 2 * fast and fast95 >= fast and rate == pytest.approx(8000 / fast)


def test_a_run_that_trains_from_the_cache_can_be_timed_in_every_precision(tmp_path):
    run = Run.open(make_config(profile="micro", tune="full_top", cache=True), tmp_path / "cached")
    assert len(costs.policy_steps(run, costs.precisions(), repeats=1)) == 3


def test_heads_are_timed_whatever_head_the_run_has(tmp_path):
    run = Run.open(make_config("bridge_head", "micro"), tmp_path / "bridge")  # its L1 loss does not suit every head
    assert [run.config.replace(**changes).condition.head for changes in costs.heads().values()] == [
        "parallel", "autoregressive", "bridge", "focus"]


def test_saliency_can_be_left_out(run, monkeypatch):
    read = []
    class Counted(SaliencyTap):
        def __enter__(self):
            read.append(self)
            return super().__enter__()
    def maps_read(work, repeats):
        before = len(read)
        work()
        return len(read) - before
    monkeypatch.setattr("lar_core.model.backbone.SaliencyTap", Counted)
    monkeypatch.setattr(costs, "milliseconds", maps_read)
    assert costs.saliency_cost(run) == (1, 0)


def test_a_time_is_the_median_behind_two_runs_that_warm_up(monkeypatch):
    clock = iter([0, 90, 100, 180, 200, 203, 300, 301, 400, 402])  # seconds: began and ended, five times
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(clock))
    runs = []
    assert costs.milliseconds(lambda: runs.append(1), repeats=3) == 2000 and len(runs) == 5


METER = """
import json, subprocess, sys, time
import numpy as np
from lar_core.measure.costs import meter
with meter(children=True) as nothing:
    pass
try:
    with meter(children=True) as both, meter() as alone:
        block = np.ones(2**27 // 8)  # 128 MiB
        began = time.perf_counter()
        child = subprocess.Popen([sys.executable, "-c", "x = bytearray(2**27); input()"], stdin=subprocess.PIPE)
        while both.peak_bytes - nothing.peak_bytes < 245 * 2**20:
            time.sleep(0.05)
        child.communicate(b"\\n")
        took = time.perf_counter() - began
        raise KeyError  # what breaks off is measured as well
except KeyError:
    print(json.dumps([(alone.peak_bytes - nothing.peak_bytes) / 2**20, (both.peak_bytes - nothing.peak_bytes) / 2**20,
                      took, alone.seconds, both.seconds]))
"""


def test_the_meter_sees_its_process_and_on_demand_its_children():
    """In a process of its own: what other tests leave behind is not measured."""
    done = subprocess.run([sys.executable, "-c", METER], capture_output=True, text=True, timeout=240)
    own, both, took, shorter, longer = json.loads(done.stdout)
    assert 120 < own < 200 < 245 < both < 500 and took < shorter < longer


# The cost of a training step: counted by torch, checked by hand where that can be done.


def measured(tmp_path, condition, **changes):
    run = Run.open(make_config(condition, "micro", **changes), tmp_path / condition)
    return run, measure_training(run, steps=2)


def test_a_decoder_adds_its_own_parameters_and_operations(tmp_path, policy_of, monkeypatch):
    began, steps = time.perf_counter(), []
    monkeypatch.setattr(Trainer, "one_step", timed(Trainer.one_step, steps))
    run, cost = measured(tmp_path, "random_mask")
    policy = policy_of("random_mask")
    assert cost["own"]["parameters"] - cost["action_only"]["parameters"] == count(policy.decoder)
    assert 2 * (cost["own"]["step_ms"] + cost["action_only"]["step_ms"]) < 1000 * (time.perf_counter() - began)
    for measure, taken in (("own", steps[:5]), ("action_only", steps[5:])):  # each: two to warm up, two, one counted
        assert len(taken) == 5 and 1000 * np.median(taken[2:4]) < cost[measure]["step_ms"]
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


# A backbone in several precisions: 8 bit is smaller and says nearly the same.


SENTENCES = ["pick up the black bowl on the ramekin", "move the bowl"]
image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)


def test_eight_bit_is_smaller_and_says_nearly_the_same(backbone_folder, monkeypatch):
    monkeypatch.setattr("lar_core.measure.costs.milliseconds", lambda work, repeats: 1000 * len(work()) + repeats)
    began, loading = time.perf_counter(), []
    monkeypatch.setattr(costs, "load", timed(load, loading))
    full, eight = compare_precisions(backbone_folder, ["fp32", "int8"], image, SENTENCES)
    assert (full.error, full.agreement) == (0, 1)
    assert eight.bytes < full.bytes and 0 < eight.error < 0.1 and eight.agreement > 0.8
    assert full.seconds + eight.seconds < time.perf_counter() - began
    assert loading[0] < full.seconds and loading[1] < eight.seconds
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
