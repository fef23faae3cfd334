"""Where a notebook runs, how big, which folder; and that every refusal leads somewhere."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import types

import pytest

from lar_core import estimate, notebook
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A work folder of its own, no token, no memory of earlier notebooks."""
    for name in ("HF_TOKEN", "LAR_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LAR_WORK", str(tmp_path / "work"))
    monkeypatch.setattr(notebook, "_mirrors", {})
    monkeypatch.chdir(tmp_path)
    return tmp_path / "work"


@pytest.fixture
def colab(monkeypatch, tmp_path):
    """A stand-in for google.colab: a Drive that can be mounted."""
    package = types.ModuleType("google.colab")
    def mount(where):
        os.makedirs(f"{where}/MyDrive", exist_ok=True)
    package.drive = types.SimpleNamespace(mount=mount)
    monkeypatch.setitem(sys.modules, "google.colab", package)
    monkeypatch.setattr(notebook, "on_colab", lambda: True)
    monkeypatch.setattr(notebook, "DRIVE", tmp_path / "drive")
    return types.SimpleNamespace(drive=package.drive, folder=tmp_path / "drive/MyDrive/la-reconvla")


def test_without_a_gpu_the_tiny_profile_and_the_reason(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert notebook.choose_profile("auto") == "tiny"
    said = capsys.readouterr().out
    assert "no GPU" in said and "Profile tiny" in said and "set PROFILE" in said


def test_on_colab_without_a_gpu_it_says_how_to_get_one(capsys, monkeypatch, colab):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert notebook.choose_profile("auto") == "colab"
    assert "Change runtime type" in capsys.readouterr().out


def test_a_step_without_an_estimate_is_made_all_the_same(capsys, monkeypatch):
    monkeypatch.setattr("lar_core.estimate._expected", lambda *_: 1 / 0)
    run = notebook.open_run("attention_mask", "micro")
    for _ in range(2):
        with notebook.step(run, "latency"):
            print("THE STEP")
    said = capsys.readouterr().out
    assert said.count("THE STEP") == 2 and "Latency: unknown time and unknown memory expected." in said
    (_, expected, took), = notebook.spent(run)
    assert expected == str(estimate.UNKNOWN) and "GiB" in took


def test_the_readers_choice_comes_first_then_the_environment(monkeypatch):
    monkeypatch.setenv("LAR_PROFILE", "micro")
    assert notebook.choose_profile("auto") == "micro" and notebook.choose_profile("small") == "small"


def test_a_misspelt_profile_is_refused_with_the_nearest():
    with pytest.raises(LarError, match="did you mean 'tiny'"):
        notebook.choose_profile("tinny")


def test_on_a_gpu_without_access_to_the_weights_the_tiny_profile_is_offered(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(notebook, "_machine", lambda: "Tesla T4")
    monkeypatch.setattr(notebook, "sign_in", lambda: False)
    assert notebook.choose_profile("auto") == "tiny" and "may not be had" in capsys.readouterr().out
    monkeypatch.setattr(notebook, "sign_in", lambda: True)
    assert notebook.choose_profile("auto") == "t4"


@pytest.mark.parametrize("how", ["chosen", "environment"])
def test_a_large_profile_asks_for_its_weights_and_falls_back_in_a_sentence(capsys, monkeypatch, how):
    asked, answers = [], iter([True, False])
    monkeypatch.setattr(notebook, "sign_in", lambda: asked.append(True) or next(answers))
    def choose(profile):
        if how == "environment":
            monkeypatch.setenv("LAR_PROFILE", profile)
        return notebook.choose_profile("auto" if how == "environment" else profile)
    assert choose("micro") == "micro" and not asked
    assert choose("t4") == "t4" and asked
    assert choose("t4") == "tiny" and "the small model is used" in capsys.readouterr().out


def test_a_relative_work_folder_stays_the_same_one(tmp_path, monkeypatch):
    monkeypatch.setenv("LAR_WORK", "relative")
    for _ in range(2):
        notebook.open_run("attention_mask", "micro")
    assert os.getcwd() == str(tmp_path / "relative")


def test_the_run_is_opened_in_the_work_folder_and_says_what_is_done(here, capsys):
    run = notebook.open_run("attention_mask", "micro")
    assert os.getcwd() == str(here) and (here / "runs/attention_mask-micro-s0/config.yaml").exists()
    assert "It is new" in capsys.readouterr().out
    (run.path / "checkpoints/step_000008").mkdir(parents=True)
    notebook.open_run("attention_mask", "micro")
    assert "training 8 of 16 steps" in capsys.readouterr().out


def test_on_colab_the_run_is_kept_on_drive_and_brought_back(here, colab, capsys):
    notebook.open_run("attention_mask", "micro", drive=True)
    notebook._mirrors[here][0].sync()
    kept = colab.folder / "runs/attention_mask-micro-s0/config.yaml"
    assert kept.exists()
    (here / "runs/attention_mask-micro-s0/config.yaml").unlink()  # a new machine
    notebook._mirrors.clear()
    notebook.open_run("attention_mask", "micro", drive=True)
    assert "1 files were brought back" in capsys.readouterr().out


def test_a_drive_that_refuses_is_said_once_for_each_reason_and_asked_again(here, colab, capsys):
    answers = ["mount failed", "mount failed", "timed out"]
    mount = colab.drive.mount
    def refuse(where):
        if answers:
            raise ValueError(answers.pop(0))
        mount(where)
    colab.drive.mount = refuse
    for _ in range(3):
        notebook.open_run("attention_mask", "micro", drive=True)
    said = capsys.readouterr().out
    assert said.count("Google Drive is not there (mount failed)") == said.count("not there (timed out)") == 1
    notebook.open_run("attention_mask", "micro", drive=True)
    assert "Kept on Google Drive" in capsys.readouterr().out


def test_a_mount_that_leaves_no_drive_is_not_written_into(here, colab, capsys):
    colab.drive.mount = lambda where: os.makedirs(where, exist_ok=True)  # no MyDrive in it
    notebook.open_run("attention_mask", "micro", drive=True)
    assert "Google Drive is not there" in capsys.readouterr().out and not os.listdir(colab.folder.parents[1])


def test_a_drive_that_was_unmounted_is_mounted_again_by_the_same_cell(here, colab, capsys):
    run = notebook.open_run("attention_mask", "micro", drive=True)
    with notebook.step(run, "latency"):
        cloud = colab.folder.parent.rename(colab.folder.parents[2] / "cloud")
    said = capsys.readouterr().out
    assert "not mounted" in said and "Not on Drive yet" in said and not colab.folder.parent.exists()
    colab.drive.mount = lambda where: cloud.rename(f"{where}/MyDrive")
    notebook.open_run("attention_mask", "micro", drive=True)
    os.chdir("/")  # wherever the reader has gone
    with notebook.step(run.__class__(here / run.path, run.config), "latency"):
        pass
    assert (colab.folder / run.path / "steps.jsonl").read_text().count("latency") == 2
    assert "Not on Drive yet" not in capsys.readouterr().out


def test_a_run_that_is_there_is_used_and_else_a_small_one_is_trained(here, monkeypatch, capsys):
    made = []
    def train(run, data):
        made.append(run)
        run.final_checkpoint.mkdir(parents=True)
    monkeypatch.setattr(notebook, "train_all", train)
    quick = notebook.trained_run("attention_mask", "tiny")
    assert quick.path.name.endswith("-quick") and quick.config.profile.samples == notebook.QUICK["samples"]
    assert "A small one is trained now" in capsys.readouterr().out
    assert notebook.trained_run("attention_mask", "tiny").path == quick.path and len(made) == 1
    full = Run.open(make_config(profile="tiny"), here / "runs/attention_mask-tiny-s0")
    full.final_checkpoint.mkdir(parents=True)
    assert notebook.trained_run("attention_mask", "tiny").path.name == full.path.name


def test_a_step_says_what_it_expects_and_what_it_took(here, capsys):
    with notebook.step(notebook.open_run("attention_mask", "micro"), "latency"):
        pass
    said = capsys.readouterr().out
    assert "Latency: 6 s and 1.5 GiB expected" in said and "it took 1 s" in said


def test_what_a_step_took_is_added_up_beside_its_first_estimate(here, monkeypatch):
    run = notebook.open_run("attention_mask", "micro")
    for seconds in (100.0, 1.0):
        monkeypatch.setattr(estimate, "expected", lambda _, s=seconds: {"training": estimate.Cost(s, 2.0)})
        with contextlib.suppress(KeyboardInterrupt), notebook.step(run, "training"):
            raise KeyboardInterrupt  # stopped by hand: counted all the same
    (name, expected, took), = notebook.spent(run)
    assert (name, expected) == ("training", "2 min and 2.0 GiB") and took.startswith("1 s and ")
    assert len((run.path / "steps.jsonl").read_text().splitlines()) == 2


def test_scores_that_are_there_are_read_and_others_are_made(here, monkeypatch):
    run = notebook.open_run("attention_mask", "micro")
    monkeypatch.setattr(notebook.steps, "show_saliency", lambda *_: {"made": True})
    (run.path / "heldout.json").write_text(json.dumps({"made": False}))
    assert notebook.scores(run) == {"made": True}  # the pictures are missing
    (run.path / "gallery.npz").touch()
    assert notebook.scores(run) == {"made": True}  # an earlier version's, which does not say what the actions depend on
    (run.path / "heldout.json").write_text(json.dumps({"made": False, "cause": None}))
    assert notebook.scores(run) == {"made": False, "cause": None}


def test_out_of_memory_names_the_setting_to_lower_and_the_estimate(here):
    with (pytest.raises(LarError, match="expected: .* GiB.*lower batch_size"),
          notebook.step(notebook.open_run("attention_mask", "micro"), "training")):
        raise MemoryError


def test_an_error_of_ours_is_one_sentence_in_a_notebook():
    assert LarError("Do this.")._render_traceback_() == ["LarError: Do this."]
