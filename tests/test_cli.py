"""The command line: it teaches, and refuses nonsense in one sentence with a non-zero exit code."""

import errno
import signal

import pytest

from lar_core import cli, doctor, options, steps
from lar_core.run.config import make_config
from lar_core.run.folder import Run


@pytest.mark.parametrize("step", options.STEPS)
def test_every_step_teaches(step, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([step, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    own = {"study": ("--run-dir", "--workers", "--engine", "--address"), "check-demos": ("--set", "PATH"),
           "look": ("SENTENCE", "--picture", "--scene", "--run-dir", "--backbone", "--out"),
           "serve": ("--run-dir", "--port", "--host"), "audit": ("--server", "--instructions", "--pictures", "--timeout")}
    named = own.get(step, ("--condition", "--profile", "--seed", "--run-dir"))
    assert len(text) > 200 and all(option in text for option in named)
    assert ("--workers" in text) == (step in ("study", "audit", *options.WORKING))


@pytest.mark.parametrize("words, message", [
    (["train", "--condition", "atention_mask"], "did you mean 'attention_mask'"),
    (["train", "--profile", "tini"], "did you mean 'tiny'"),
    (["demos", "--tasks", "12"], "Unknown task '12'"),
    (["demos", "--profile", "micro", "--workers", "0"], "--workers is 0, but must be at least 1"),
    (["train", "--set", "samples"], "FIELD=VALUE"),
    (["train", "--set", "sample=3"], "did you mean 'samples'"),
    (["train", "--set", "seed=3"], "say --seed 3"),
    (["train", "--set", "condition=blind"], "say --condition blind"),
    (["train", "--set", "backbone=@x"], "FIELD=VALUE, not 'backbone=@x'"),
    (["train", "--set", "regularisers=3"], "must be weights by name"),
    (["train", "--set", "learning_rate=-1"], "learning_rate is -1, but must be greater than 0"),
    (["train", "--set", "learning_rate=.nan"], "must be a finite number"),
    (["train", "--set", "decoder_heads=3"], "must be a multiple of decoder_heads (3)"),
    (["train", "--set", "attention_heads=3", "backbone=scratch"], "must be a multiple of attention_heads (3)"),
    (["train", "--set", "focus_keep=0.2"], "leave it, or choose head=focus"),
    (["check-demos", "nowhere", "--set", "demos_conventions"], "FIELD=VALUE"),
    (["doctor", "--full-size", "--profile", "full"], "leave --profile out"),
    (["rollout", "--placement", "offical"], "did you mean 'official'"),
    (["look"], "There is no sentence to look with"),
    (["look", "a bowl", "--picture", "a.png", "--scene", "3"], "has no task, placement or scene"),
    (["look", "a bowl", "--run-dir", "nowhere"], "There is no run in nowhere"),
    (["look", "a bowl", "--backbone", "tabeltop"], "did you mean 'tabletop'"),
    (["look", "a bowl", "--backbone", "scratch"], "looks nowhere in particular"),
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
    arguments = options.build_parser().parse_args(["report", "--run-dir", str(tmp_path / "run")])
    assert cli._run_of(arguments).config == make_config("random_mask", "micro", 7)


def test_settings_on_the_command_line_reach_the_configuration():
    arguments = options.build_parser().parse_args(
        ["train", "--condition", "gaze_mask", "--tasks", "2", "5", "--set", "samples=100", "mask_input=true"])
    config = cli.config_of(arguments)
    assert config.profile.tasks == (2, 5) and config.profile.samples == 100 and config.condition.mask_input


@pytest.mark.parametrize("words, value", [("1e-4", 1e-4), ("2E-5", 2e-5), ("1.5e-3", 1.5e-3), ("0.01", 0.01)])
def test_numbers_may_be_written_as_people_write_them(words, value):
    arguments = options.build_parser().parse_args(["train", "--set", f"learning_rate={words}", f"sparsity={words}"])
    config = cli.config_of(arguments)
    assert config.profile.learning_rate == value and config.condition.regularisers == {"sparsity": value}


def test_demonstrations_are_those_of_an_existing_run_folder(tmp_path):
    config = make_config("random_mask", "micro", 7)
    Run.open(config, tmp_path / "run")
    arguments = options.build_parser().parse_args(["demos", "--run-dir", str(tmp_path / "run")])
    assert cli.config_of(arguments) == config


@pytest.mark.parametrize("words", [["--machine", "t4"], ["--condition", "blind"], ["--set", "batch_size=4"]])
def test_the_doctor_plans_whatever_is_named(monkeypatch, words):
    planned = []
    monkeypatch.setattr(doctor, "show_plan", lambda *arguments: planned.append(arguments))
    monkeypatch.setattr(doctor, "ask", lambda config: None)
    monkeypatch.setattr(doctor, "examine", lambda: pytest.fail("nothing was planned"))
    assert cli.main(["doctor", *words]) == 0 and len(planned) == 1


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
        assert 3 in arguments
        raise Reached
    monkeypatch.setattr(steps, function, reach)
    with pytest.raises(Reached):
        cli.main([step, "--profile", "micro", "--workers", "3", *([] if step == "demos" else ["--run-dir", str(tmp_path)])])
