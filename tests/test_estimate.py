"""Estimates against what they predict: parameters of real models, memory and files of a real training, steps of a run."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from lar_core import estimate
from lar_core.data.hub import entry
from lar_core.doctor import show_plan
from lar_core.estimate import T4, Machine, Size, plan, this_machine
from lar_core.measure.costs import NOISE_FRAMES, noise_dataset
from lar_core.model.policy import make_policy
from lar_core.model.tiny import full_config
from lar_core.model.train import Trainer
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl
from lar_core.run.folder import Run

CPU = Machine("a CPU", False, int(16e9), int(0.4e9), dict.fromkeys(("fp32", "fp16", "int8", "nf4"), 5e10))


@pytest.mark.parametrize("tune", ["all", "full_top", "lora_top", "lora_all"])
@pytest.mark.parametrize("head", ["parallel", "autoregressive"])
def test_trainable_parameters_are_those_of_the_real_policy(backbone_folder, tune, head):
    config = make_config(profile="micro", tune=tune, top_layers=2, saliency_layers=2, head=head)
    real = sum(parameter.numel() for parameter in make_policy(config, backbone_folder).trained().values())
    assert Size(config).trainable == pytest.approx(real, rel=0.002)  # the last norm is not counted


@pytest.mark.parametrize("condition", ["action_only", "gaze_mask", "gaze_diffusion", "gaze_diffusion_matched",
                                       "inverse_dynamics"])
def test_decoders_and_readers_count_too(backbone_folder, condition):
    config = make_config(condition, "micro")
    real = sum(parameter.numel() for parameter in make_policy(config, backbone_folder).trained().values())
    assert Size(config).trainable == pytest.approx(real, rel=0.002)


def test_the_true_size_has_the_published_number_of_parameters():
    size = Size(make_config(profile="t4"))
    assert size.vision + size.projector + size.embedding + size.layers * size.layer == pytest.approx(2.92e9, rel=0.005)
    assert size.embedding == 257_216 * 2048


def test_the_feature_cache_is_planned_for_image_20_text_tokens_and_wrist_camera_at_2_bytes_a_number():
    size = Size(make_config(profile="t4"))
    assert plan(make_config(profile="t4"), T4, frames=1000).disk == 1000 * (256 + 20 + 64) * 2048 * 2
    assert size.features == 340 * 2048


@pytest.mark.parametrize("condition", ["attention_mask", "bridge_head"])  # the second also keeps what the tower gives
def test_the_feature_cache_is_as_large_as_planned(tmp_path, backbone_folder, monkeypatch, condition):
    config = make_config(condition, "micro", backbone=str(backbone_folder), precision="int8", tune="lora_top",
                         top_layers=2, saliency_layers=2, cache=True)
    trainer = Trainer(Run.open(config, tmp_path / "run"), noise_dataset(config), tmp_path / "data")
    monkeypatch.setattr(estimate, "TEXT", trainer.batch(0)[0]["states"].shape[1] - Size(config).image)
    (kept,) = (tmp_path / "data").rglob("*.safetensors")
    written = sum(value.nbytes for value in load_file(kept).values())
    assert written == plan(config, CPU, frames=NOISE_FRAMES).disk


def test_published_and_computed_t4_budgets_hold():
    """Order of magnitude of what others report to fit, and not to fit, a 15 GB card."""
    def peak(**changes):
        return plan(make_config(profile="t4", **changes), T4)
    assert peak().fits and peak(tune="full_top").fits
    assert not peak(tune="full_top", precision="fp32", cache=False).fits
    assert not peak(tune="lora_all", cache=False, batch_size=16).fits
    assert peak(tune="lora_all", cache=False, batch_size=16, checkpointing=True).fits


def test_the_cache_saves_time_and_the_second_pass_costs_it():
    cached, uncached = (plan(make_config(profile="t4", tune="full_top", cache=cache), CPU) for cache in (True, False))
    assert uncached.step_seconds > 2.5 * cached.step_seconds
    twice = plan(make_config(profile="t4", tune="full_top", cache=False, mask_input=True), CPU)
    assert twice.step_seconds > 1.8 * uncached.step_seconds


def test_a_free_session_is_planned_with_every_step_and_lasts(capsys):
    seconds = plan(make_config(profile="t4"), T4).seconds
    assert list(seconds) == ["install", "download of the weights", "demonstrations", "feature cache", "training",
                             "training of the blind control", "saliency", "rollouts", "rollouts of the blind control",
                             "rollouts of both elsewhere", "latency", "report"]
    assert all(seconds.values()) and 2 * 3600 < sum(seconds.values()) < estimate.SESSION
    show_plan(make_config(profile="t4"), T4)
    assert f"{sum(seconds.values()) / 60:.1f}  of 240 that a free session usually lasts: fits" in capsys.readouterr().out
    show_plan(make_config(profile="t4", tune="lora_all", cache=False), T4)
    assert "usually lasts: DOES NOT FIT" in capsys.readouterr().out


def test_liberos_own_scene_costs_more_and_what_is_here_is_not_downloaded(monkeypatch):
    own, ours = (plan(make_config(profile="t4", bench=bench), T4).seconds for bench in ("auto", "embedded"))
    assert own["demonstrations"] > ours["demonstrations"] and own["rollouts"] > 1.5 * ours["rollouts"]
    episode = own["rollouts of the blind control"] / 150
    assert own["rollouts of both elsewhere"] == pytest.approx(2 * (150 + 3 * 40) * episode)  # wide, counterfactual
    assert "rollouts of both elsewhere" not in ours
    monkeypatch.setattr(estimate, "here", lambda key: True)
    assert plan(make_config(profile="t4"), CPU).seconds["download of the weights"] == 0


def test_8_bit_saves_memory_and_costs_time_on_a_t4():
    fp16, int8 = (plan(make_config(profile="t4", precision=precision, tune="lora_all", cache=False), T4)
                  for precision in ("fp16", "int8"))
    assert int8.peak < fp16.peak - 1.5e9 and int8.step_seconds > 2 * fp16.step_seconds


def test_this_machine_is_measured_in_every_precision_that_is_needed():
    machine = this_machine(make_config(profile="micro", tune="lora_all", precision="int8"))
    assert set(machine.speed) == {"int8", "fp32"} and machine.cuda == torch.cuda.is_available()


def test_speed_is_operations_over_the_time_that_they_took_behind_two_runs_that_warm_up(monkeypatch):
    ticks = itertools.count(0, 0.25)  # seconds a look at the clock: four timed runs until a second is over, and a last look
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: next(ticks))
    size = Size(make_config(profile="micro"))
    tokens = (size.prefix + size.suffix) * size.profile.batch_size
    assert estimate._speed(size, "fp32", torch.device("cpu")) == 4 * 2 * tokens * size.width * size.hidden / 1.25


def test_a_folder_is_planned_by_its_own_config_and_an_unknown_backbone_is_not(backbone_folder, tmp_path):
    own = Size(make_config(profile="micro", backbone=str(backbone_folder)))
    assert own.layer == Size(make_config(profile="micro")).layer
    with pytest.raises(LarError, match="no plan for backbone"):
        Size(make_config(profile="t4", backbone=str(tmp_path)))


def test_a_model_whose_configuration_is_in_the_hubs_cache_is_planned_without_the_network(tmp_path, monkeypatch):
    pinned = entry("paligemma2-3b-pt-224")
    folder = tmp_path / f"models--{pinned.id.replace('/', '--')}" / "snapshots" / pinned.revision
    text = {"model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 257_216}
    full_config().save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"text_config": text, "projection_dim": 2304}))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    size = Size(make_config(profile="t4", backbone=pinned.id))
    assert size.vision + size.projector + size.embedding + size.layers * size.layer == pytest.approx(3.03e9, rel=0.01)


MEASURE = """
import sys
from pathlib import Path
from lar_core.estimate import Machine, plan
from lar_core.measure.costs import NOISE_FRAMES, meter, noise_dataset, own_bytes
from lar_core.model.train import Trainer
from lar_core.run.config import make_config
from lar_core.run.folder import Run
config = make_config(profile="tiny", batch_size=64, samples=640, text_width=256, vision_width=256,
                     backbone="scratch", tune="all", cache=False)
machine = Machine("here", False, 0, own_bytes(), {"fp32": 1e10})
trainer = Trainer(Run.open(config, Path(sys.argv[1])), noise_dataset(config))
trainer.policy.train()
with meter() as reading:
    trainer.one_step()
    trainer.one_step()
print(plan(config, machine, frames=NOISE_FRAMES).peak / reading.peak_bytes)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures the process's memory")
def test_planned_memory_is_within_15_per_cent_of_a_real_training_step(tmp_path):
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path / "run")], capture_output=True, text=True,
                          timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) == pytest.approx(1, abs=0.15)


# --- what is left of a run --------------------------------------------------------------------------------------------

@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no demonstrations have been recorded
    return Run.open(make_config(profile="tiny"), tmp_path / "run")


def test_durations_read_as_one_says_them():
    assert [estimate.duration(s) for s in (0.2, 89, 100, 3600, 5000)] == ["1 s", "89 s", "2 min", "1 h 0 min", "1 h 23 min"]


def test_together_times_add_up_and_memory_does_not():
    made = estimate.together({"a": estimate.Cost(60.0, 2.0), "b": estimate.Cost(30.0, 3.0)})
    assert made == estimate.Cost(90.0, 3.0)
    assert estimate.together({"a": made, "b": estimate.UNKNOWN}) == estimate.UNKNOWN


def test_every_step_has_a_cost_and_more_data_costs_more(run, tmp_path):
    small = estimate.expected(run, cores=2)
    assert set(small) == set(estimate.STEPS)
    large = estimate.expected(Run.open(make_config(profile="small"), tmp_path / "small"), cores=2)
    for name in ("demonstrations", "training", "rollouts"):
        assert large[name].seconds > 1.5 * small[name].seconds
    assert estimate.expected(run, cores=1)["demonstrations"].seconds > 1.8 * small["demonstrations"].seconds


def test_a_run_that_has_begun_is_judged_by_its_own_speed(run):
    append_jsonl(run.metrics, {"step": 250, "seconds": 1000.0})  # 4 s a step, 2000 steps to go
    assert estimate.expected(run, cores=2)["training"].seconds == pytest.approx(8000, rel=0.01)


def test_what_is_done_already_costs_no_more(run, tmp_path, monkeypatch):
    before = estimate.expected(run, cores=2)
    (tmp_path / "demo.hdf5").touch()
    monkeypatch.setattr(estimate, "demo_paths", lambda *_: [tmp_path / "demo.hdf5"])
    for placement in ["near_counterfactual"] * 60 + ["wide"] * 20:
        append_jsonl(run.path / "rollouts.jsonl", {"placement": placement})
    for name in ("heldout.json", "gallery.npz", "training_cost.json"):
        (run.path / name).touch()
    after = estimate.expected(run, cores=2)
    assert after["demonstrations"].seconds < before["demonstrations"].seconds / 5
    assert 30 < after["rollouts"].seconds < before["rollouts"].seconds / 2  # what was seen at another placement is no part
    assert after["saliency"].seconds == 1 and 1 < after["latency"].seconds < before["latency"].seconds
    (run.path / "latency.json").touch()
    assert estimate.expected(run, cores=2)["latency"].seconds == 1


@pytest.mark.parametrize("backbone", ["google/paligemma2-3b-pt-224", "somebody/model", "empty", "damaged", "other",
                                      "no/such/folder"])
def test_a_model_without_a_plan_is_an_unknown_cost_not_an_error(tmp_path, monkeypatch, capsys, backbone):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, content in (("empty", None), ("damaged", "{"), ("other", '{"model_type": "llama"}')):
        (tmp_path / name).mkdir()
        if content:
            (tmp_path / name / "config.json").write_text(content)
    run = Run.open(make_config(profile="t4", backbone=backbone), tmp_path / "run")
    assert estimate.expected(run) == dict.fromkeys(estimate.STEPS, estimate.UNKNOWN)
    assert f"no plan for backbone '{backbone}'" in capsys.readouterr().out
    assert str(estimate.UNKNOWN) == "unknown time and unknown memory"


@pytest.mark.parametrize("damage", [
    lambda run: run.metrics.write_text("{\n{}\n"),  # not JSON
    lambda run: append_jsonl(run.metrics, {"loss": 1.0}),  # of another version
    lambda run: append_jsonl(run.metrics, {"step": 0, "seconds": 3.0})])  # nothing to divide by
def test_a_log_that_cannot_be_read_costs_the_estimate_only(run, damage):
    damage(run)
    assert estimate.expected(run)["training"] == estimate.UNKNOWN
