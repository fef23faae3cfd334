"""Training resumes after a real kill and ends at the same bits; damaged files and odd losses are named."""

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import wait_until
from test_demos import make_episode

from lar_core.data.dataset import Stats, load_split, make_dataset
from lar_core.data.demos import merge_episodes, write_episode
from lar_core.model.policy import Policy, load_policy
from lar_core.model.tiny import build_tiny, prepare_backbone
from lar_core.model.train import Trainer, rate, train
from lar_core.run.config import PROFILES, make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl, read_jsonl
from lar_core.run.folder import Run
from lar_core.run.processes import Stopped

CHANGES = {"samples": 160, "batch_size": 4, "checkpoint_every": 5}  # 40 steps
HALF_WAY = {**CHANGES, "samples": 200, "checkpoint_every": 8}  # 50 steps; step 10 is logged after a checkpoint
IN_A_PROCESS = """
import sys
from pathlib import Path
from lar_core.run.folder import Run
from lar_core.model.train import train
train(Run.load(sys.argv[1]), [Path(sys.argv[2])])
"""
HELD_AT_STEP_12 = """
import time
from lar_core.model.train import Trainer
one_step = Trainer.one_step
Trainer.one_step = lambda trainer: one_step(trainer) if trainer.step < 12 else time.sleep(600)
"""


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demos")
    (folder / "task.bddl").write_text("(define)")
    parts = [folder / f"{seed}.hdf5" for seed in range(4)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(steps=12, seed=seed, size=64, wrist=32),
                      bddl_file=folder / "task.bddl")
    merge_episodes(parts, folder / "demo.hdf5")
    return folder / "demo.hdf5"


@pytest.fixture
def new_run(tmp_path):
    def make(name, condition="attention_mask", **changes):
        return Run.open(make_config(condition, "micro", **{**CHANGES, **changes}), tmp_path / name)
    return make


@pytest.fixture(scope="module")
def whole(demos, tmp_path_factory):
    """A finished run of 50 steps, which no test may change."""
    run = Run.open(make_config("attention_mask", "micro", **HALF_WAY), tmp_path_factory.mktemp("whole") / "run")
    train(run, [demos])
    return run


@pytest.fixture
def copy(whole, tmp_path):
    """A copy of that run."""
    return Run.load(shutil.copytree(whole.path, tmp_path / "copy"))


@pytest.fixture(scope="module")
def killed(demos, tmp_path_factory):
    """The same run, killed between two checkpoints; and what who trained there as well was told."""
    run = Run.open(make_config("attention_mask", "micro", **HALF_WAY), tmp_path_factory.mktemp("killed") / "run")
    process = subprocess.Popen([sys.executable, "-c", HELD_AT_STEP_12 + IN_A_PROCESS, str(run.path), str(demos)],
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: run.metrics.exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr.read()
        with pytest.MonkeyPatch.context() as patch, pytest.raises(LarError) as refused:
            patch.setattr("lar_core.run.folder.PATIENCE", 0)
            train(run, [demos])
    finally:
        process.kill()
        process.wait(timeout=60)
    return run, str(refused.value)


def trainer_of(run, demos):
    episodes, _ = load_split([demos], 0.5, 0)
    return Trainer(run, make_dataset(episodes, Stats.of(episodes), run.config))


def without_times(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in read_jsonl(run.metrics)]


def test_two_processes_do_not_train_in_one_folder(killed):
    run, refused = killed
    assert re.search("Another process is at work in .*run: wait until it is done", refused)
    with run.alone():
        pass


def test_a_blind_control_that_another_process_trains_is_waited_for(new_run, demos, monkeypatch):
    """Several runs of one folder share it."""
    monkeypatch.setattr("lar_core.run.files.NOTICE", 0.1)
    run = new_run("run", condition="blind", samples=16)
    other = trainer_of(run, demos)
    with ThreadPoolExecutor(1) as threads:
        with run.alone():
            waiting = threads.submit(train, run, [demos])
            time.sleep(1)
            assert not waiting.done()
            other.run_steps([])
        waiting.result()
    assert [row["step"] for row in without_times(run)] == [4]


def test_two_processes_build_one_backbone(new_run, monkeypatch):
    built = []

    def build(profile, folder, seed):
        built.append(folder)
        time.sleep(0.2)
        folder.mkdir()
    monkeypatch.setattr("lar_core.model.tiny.build_tiny", build)
    run = new_run("run")
    with ThreadPoolExecutor(3) as threads:
        assert set(threads.map(lambda _: prepare_backbone(run), range(3))) == {run.backbone}
    assert len(built) == 1


def test_a_folder_in_which_another_process_begins_is_no_foreign_one(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".config.123.tmp.yaml").touch()
    assert Run.open(make_config(profile="micro"), tmp_path / "run").path == tmp_path / "run"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(LarError, match="not empty"):
        Run.open(make_config(profile="micro"), tmp_path / "other")


@pytest.mark.parametrize("signals", [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGTERM, signal.SIGTERM],
                                     [signal.SIGTERM, signal.SIGINT]], ids=str)
def test_a_signal_to_stop_saves_the_step_that_is_under_way(new_run, demos, monkeypatch, signals):
    run, one_step = new_run("run"), Trainer.one_step

    def told_to_stop(trainer):
        if trainer.step == 2:
            for number in signals:
                signal.raise_signal(number)
        return one_step(trainer)
    monkeypatch.setattr(Trainer, "one_step", told_to_stop)
    with pytest.raises(Stopped) as stopped:
        train(run, [demos])
    assert [path.name for path in run.checkpoints()] == ["step_000003"] and stopped.value.status == 128 + signals[0]


@pytest.mark.parametrize(("at", "steps"), [(2, [2, 3]), (4, [2, 4])], ids=["in the middle", "the last one"])
def test_a_signal_while_a_checkpoint_is_written_leaves_it_whole_and_is_heard(new_run, demos, monkeypatch, at, steps):
    run, save = new_run("run", samples=4, batch_size=1, checkpoint_every=2), Policy.save

    def told_to_stop(policy, path):
        if path.parent.name.startswith(f".step_{at:06d}"):
            signal.raise_signal(signal.SIGTERM)
        save(policy, path)
    monkeypatch.setattr(Policy, "save", told_to_stop)
    with pytest.raises(Stopped):
        train(run, [demos])
    assert [path.name for path in run.checkpoints()] == [f"step_{step:06d}" for step in steps]
    assert all((path / "trainer.pt").exists() for path in run.checkpoints())
    train(run, [demos])
    assert run.trained


def test_training_runs_in_another_thread_than_the_main_one(new_run, demos):
    run = new_run("run", samples=8)
    with ThreadPoolExecutor(1) as threads:
        threads.submit(train, run, [demos]).result()
    assert run.trained


def test_a_killed_training_goes_on_and_ends_at_the_same_bits(whole, killed, demos, tmp_path):
    stopped = Run.load(shutil.copytree(killed[0].path, tmp_path / "stopped"))
    assert [path.name for path in stopped.checkpoints()] == ["step_000008"]
    assert [row["step"] for row in without_times(stopped)] == [10]
    train(stopped, [demos])
    name = "model.safetensors"
    assert (stopped.final_checkpoint / name).read_bytes() == (whole.final_checkpoint / name).read_bytes()
    assert without_times(stopped) == without_times(whole)


def test_a_denoiser_goes_on_with_the_noise_that_it_would_have_seen(new_run, demos):
    whole = new_run("whole", condition="gaze_diffusion", samples=80)
    train(whole, [demos])
    shutil.copytree(whole.path, whole.path.with_name("stopped"))
    stopped = Run.load(whole.path.with_name("stopped"))
    shutil.rmtree(stopped.final_checkpoint)
    train(stopped, [demos])
    name = "model.safetensors"
    assert (stopped.final_checkpoint / name).read_bytes() == (whole.final_checkpoint / name).read_bytes()
    assert without_times(stopped) == without_times(whole)


def test_metrics_show_both_losses_and_what_each_sends_into_the_backbone(whole):
    rows = read_jsonl(whole.metrics)
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 50]
    with_gradients = [row for row in rows if "grad_action" in row]
    assert with_gradients and all(row["grad_action"] > 0 and row["grad_recon"] > 0 for row in with_gradients)
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["action"] + 0.5 * rows[-1]["recon"], rel=1e-5)


def test_losses_fall(whole):
    rows = read_jsonl(whole.metrics)
    assert rows[-1]["action"] < rows[0]["action"] - 0.5, [row["action"] for row in rows]


def test_only_the_last_checkpoints_are_kept_and_a_finished_run_is_not_trained_again(copy):
    assert [path.name for path in copy.checkpoints()] == ["step_000048", "step_000050"]
    before = copy.metrics.read_bytes()
    train(copy, [Path("no such file")])
    assert copy.metrics.read_bytes() == before


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_still_works(copy, demos):
    run = copy
    (run.final_checkpoint / "trainer.pt").write_bytes(b"half a file")
    (run.path / "config.yaml").touch()
    damaged = run.final_checkpoint.rename(run.path / "checkpoints" / "step_000049")  # as if killed before the end
    with pytest.raises(LarError, match="step_000049.*damaged.*go on from the one before"):
        train(run, [demos])
    (damaged / "trainer.pt").unlink(), (damaged / "model.safetensors").unlink(), (damaged / "config.yaml").unlink()
    damaged.rmdir()
    train(run, [demos])
    assert run.trained


def test_the_learning_rate_follows_transformers_schedule():
    from transformers import get_cosine_schedule_with_warmup
    theirs = get_cosine_schedule_with_warmup(torch.optim.SGD([torch.zeros(1)], lr=1), 5, 40).lr_lambdas[0]
    assert [rate(step, warm_up=5, steps=40) for step in range(41)] == [theirs(step) for step in range(41)]


def test_a_loss_that_is_not_finite_stops_with_its_step(new_run, demos):
    run = new_run("run", learning_rate=1e12, clip_norm=1e12)
    with pytest.raises(LarError, match="The loss became .* at step"):
        train(run, [demos])


def test_loading_an_untrained_run_says_what_to_do(new_run):
    with pytest.raises(LarError, match="lar train"):
        load_policy(new_run("run"))


def test_checkpoints_hold_no_pickle_but_optimiser_tensors(whole):
    assert {path.name for path in whole.final_checkpoint.iterdir()} == {"model.safetensors", "config.yaml", "trainer.pt"}
    torch.load(whole.final_checkpoint / "trainer.pt", weights_only=True)


def test_more_is_masked_at_the_end_than_at_the_beginning_where_the_mask_grows(new_run, demos):
    trainer = trainer_of(new_run("run", condition="growing_mask"), demos)
    counts = []
    for step in (0, 39):
        batch, draws = trainer.batch(step)
        counts.append(trainer.bare.mask(batch, trainer.bare.encode(batch).saliency, draws).sum(1).tolist())
    assert counts == [[2] * 4, [12] * 4]  # of 16 patches: 15 and 75 %
    assert [trainer.bare.ratio(trainer.batch(step)[0]) for step in (0, 39)] == [0.15, 0.75]  # also for regularisers


def test_action_only_and_attention_mask_see_the_same_batches(new_run, demos):
    trainers = [trainer_of(new_run(name, condition=name), demos) for name in ("action_only", "attention_mask")]
    assert json.dumps(trainers[0].sampler.batch_indices(7)) == json.dumps(trainers[1].sampler.batch_indices(7))


def test_a_backbone_from_a_folder_is_used_as_it_is(new_run, demos, backbone_folder):
    run = new_run("run", backbone=str(backbone_folder), samples=8)
    train(run, [demos])
    assert run.trained and not run.backbone.exists()


@pytest.mark.parametrize("changes", [{}, {"tune": "full_top", "top_layers": 1, "saliency_layers": 1, "cache": True}])
def test_other_backbone_weights_are_refused_when_acting_and_when_resuming(new_run, demos, tmp_path, changes):
    """The folder keeps its name and gets other weights, as when somebody trains it on or downloads another revision."""
    backbone = tmp_path / "backbone"
    build_tiny(PROFILES["micro"], backbone)
    run = new_run("run", backbone=str(backbone), samples=8, **changes)
    train(run, [demos], tmp_path / "data")
    load_policy(run)
    build_tiny(PROFILES["micro"], backbone, seed=1)
    sentence = "trained on a backbone with other weights .* give it the backbone that it was trained on"
    with pytest.raises(LarError, match=sentence):
        load_policy(run)
    run.final_checkpoint.rename(run.final_checkpoint.with_name("step_000001"))
    with pytest.raises(LarError, match=sentence):
        train(run, [demos], tmp_path / "data")


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(new_run, demos):
    run = new_run("run", samples=8)
    train(run, [demos])
    unfinished = run.final_checkpoint.rename(run.final_checkpoint.with_name("step_000001"))
    (unfinished / "trainer.pt").unlink()
    with pytest.raises(LarError, match="trainer.pt could not be read .*No such file.*nothing there has to be deleted"):
        train(run, [demos])


def test_a_hub_backbone_must_be_in_the_manifest(new_run, demos):
    run = new_run("run", backbone="google/paligema-3b-pt-224")
    with pytest.raises(LarError, match="did you mean 'google/paligemma-3b-pt-224'"):
        train(run, [demos])


@pytest.fixture
def overflowing(new_run, demos, monkeypatch):
    """A trainer with PyTorch's own scaler; as in fp16, gradients overflow at loss scales above 1024."""
    def make(name, scale, condition="attention_mask"):
        trainer = trainer_of(new_run(name, condition), demos)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        monkeypatch.setattr(trainer.accelerator, "scaler", scaler)
        monkeypatch.setattr(trainer.accelerator, "native_amp", True)
        monkeypatch.setattr(type(trainer.accelerator), "mixed_precision", "fp16")  # then it unscales before it clips
        trainer.optimiser.__init__(trainer.optimiser.optimizer, scaler=scaler)
        weight = next(iter(trainer.bare.trained().values()))
        weight.register_hook(lambda gradient: gradient * (1.0 if scaler.get_scale() <= 1024 else math.inf))
        trainer.policy.train()
        return trainer
    return make


@pytest.mark.parametrize("condition", ["attention_mask", "teacher_mask"])
def test_a_step_that_the_fp16_scaler_leaves_out_is_tried_again_and_moves_nothing(overflowing, condition):
    plain, scaled = overflowing("plain", 1.0, condition), overflowing("scaled", 2.0**13, condition)
    rows = [(plain.one_step(), scaled.one_step()) for _ in range(2)]
    assert (rows[-1][1]["skipped"], rows[-1][0]["skipped"]) == (3, 0)
    assert scaled.step == plain.step == 2 and scaled.schedule.last_epoch == plain.schedule.last_epoch == 2
    assert rows[-1][1]["lr"] == rows[-1][0]["lr"] and rows[-1][1]["loss"] == pytest.approx(rows[-1][0]["loss"], rel=1e-5)
    for name, weight in plain.bare.trained().items():
        torch.testing.assert_close(scaled.bare.trained()[name], weight, rtol=1e-4, atol=1e-6)
    if plain.bare.teacher is not None:
        for name, weight in plain.bare.teacher.weights.items():
            torch.testing.assert_close(scaled.bare.teacher.weights[name], weight, rtol=1e-4, atol=1e-6)


def test_the_count_of_left_out_steps_survives_a_stop(overflowing):
    trainer = overflowing("run", 2.0**13)
    trainer.one_step()
    trainer.save()
    again = overflowing("run", 1.0)
    again.resume()
    assert again.skipped == trainer.skipped == 3 and again.step == 1


def test_gradients_that_overflow_at_every_scale_stop_in_a_sentence(overflowing, monkeypatch):
    trainer = overflowing("run", 1.0)
    weight = next(iter(trainer.bare.trained().values()))
    weight.register_hook(lambda gradient: gradient * float("nan"))
    before = weight.detach().clone()
    with pytest.raises(LarError, match="not finite at any loss scale .*lower learning_rate"):
        trainer.one_step()
    assert trainer.step == 0 and trainer.schedule.last_epoch == 0 and torch.equal(weight, before)


def test_the_log_is_rewound_in_one_write(new_run, demos, monkeypatch):
    """Killed at any moment of it, the log is the old one or the new one."""
    run = new_run("run")
    rows = [{"step": step, "loss": 1.0} for step in range(1, 6)]
    for row in rows:
        append_jsonl(run.metrics, row)
    trainer = trainer_of(run, demos)
    trainer.step = 3
    def killed(*_):
        assert read_jsonl(run.metrics) == rows  # until the last moment all of the old one is there
        raise KeyboardInterrupt
    with monkeypatch.context() as moment, pytest.raises(KeyboardInterrupt):
        moment.setattr("os.replace", killed)
        trainer._rewind_metrics()
    assert read_jsonl(run.metrics) == rows
    trainer._rewind_metrics()
    assert read_jsonl(run.metrics) == rows[:3]
