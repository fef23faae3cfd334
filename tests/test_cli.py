"""The command line: it teaches, and refuses nonsense in one sentence with a non-zero exit code."""

import errno
import signal

import pytest

from lar_core import cli, steps
from lar_core.run.config import make_config
from lar_core.run.folder import Run


@pytest.mark.parametrize("step", cli.STEPS)
def test_every_step_teaches(step, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([step, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text) > 200 and (all(option in text for option in (
        ("--run-dir", "--workers") if step == "study" else ("--set", "PATH") if step == "check-demos"
        else ("--condition", "--profile", "--seed", "--run-dir"))))
    assert ("--workers" in text) == (step in ("study", *cli.WORKING))


@pytest.mark.parametrize("words, message", [
    (["train", "--condition", "atention_mask"], "did you mean 'attention_mask'"),
    (["train", "--profile", "tini"], "did you mean 'tiny'"),
    (["demos", "--tasks", "12"], "Unknown task '12'"),
    (["demos", "--profile", "micro", "--workers", "0"], "--workers is 0, but must be at least 1"),
    (["train", "--set", "samples"], "FIELD=VALUE"),
    (["train", "--set", "sample=3"], "did you mean 'samples'"),
    (["rollout", "--placement", "offical"], "did you mean 'official'"),
    (["rollout"], "no finished training"),
    (["saliency"], "no finished training"),
    (["photographs", "refcoco", "nowhere"], "no finished training"),
])
def test_nonsense_is_one_sentence_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("lar: ") and error.count("\n") == 1 and message in error


def test_an_existing_run_folder_brings_its_own_settings(tmp_path):
    Run.open(make_config("random_mask", "micro", 7), tmp_path / "run")
    arguments = cli.build_parser().parse_args(["report", "--run-dir", str(tmp_path / "run")])
    assert cli._run_of(arguments).config == make_config("random_mask", "micro", 7)


def test_settings_on_the_command_line_reach_the_configuration():
    arguments = cli.build_parser().parse_args(
        ["train", "--condition", "gaze_mask", "--tasks", "2", "5", "--set", "samples=100", "mask_input=true"])
    config = cli.config_of(arguments)
    assert config.profile.tasks == (2, 5) and config.profile.samples == 100 and config.condition.mask_input


def test_a_full_disk_is_named(capsys, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "model.safetensors")
    monkeypatch.setattr(steps, "train_policy", full)
    assert cli.main(["train", "--run-dir", str(tmp_path / "run")]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(capsys, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(steps, "train_policy", interrupt)
    assert cli.main(["train", "--run-dir", str(tmp_path / "run")]) == 130
    assert "run the same command again" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_of_a_scheduler_stops_as_ctrl_c_does(capsys, tmp_path, monkeypatch, number):
    before = signal.getsignal(number)
    monkeypatch.setattr(steps, "train_policy", lambda *_: signal.raise_signal(number))
    assert cli.main(["train", "--run-dir", str(tmp_path / "run")]) == 128 + number
    assert "run the same command again" in capsys.readouterr().err and signal.getsignal(number) is before


@pytest.mark.parametrize("step, function", [("reproduce", "reproduce"), ("demos", "make_demos"), ("train", "train_policy"),
                                            ("saliency", "show_saliency"), ("rollout", "roll_out_policy")])
def test_workers_reach_the_step(tmp_path, monkeypatch, step, function):
    class Reached(Exception):
        pass

    def reach(*arguments):
        assert arguments[-1] == 3
        raise Reached
    monkeypatch.setattr(steps, function, reach)
    with pytest.raises(Reached):
        cli.main([step, "--profile", "micro", "--workers", "3", *([] if step == "demos" else ["--run-dir", str(tmp_path)])])
