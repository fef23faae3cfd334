"""The session on a real T4, as far as it can be tried without one: its commands, and what a client would be told."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLIENT = """#!/bin/sh
echo "$@" >> "$CALLS"
[ "$1" = exec ] && for last in "$@"; do :; done && python3 -m py_compile "$last"
if [ "$1" = download ]; then
    [ "$4" != "/content/t4/$FAILS.txt" ] || exit 1
    mkdir -p "$(dirname "$5")" && echo '{}' > "$5"
fi
"""


@pytest.fixture
def script(tmp_path):
    """The script in a repository of its own, with a client on the path that writes down what it is told."""
    (tmp_path / "repo/scripts").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "scripts/colab_t4.sh", tmp_path / "repo/scripts")
    client, calls = tmp_path / "bin/colab", tmp_path / "calls"
    client.write_text(CLIENT)
    client.chmod(0o755)
    for words in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"]):
        subprocess.run(["git", *words], cwd=tmp_path / "repo", check=True)

    def start(*words, fails="", **environment):
        calls.write_text("")
        usual = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
        done = subprocess.run(["sh", "scripts/colab_t4.sh", *words], cwd=tmp_path / "repo", capture_output=True, text=True,
                              env=usual | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "CALLS": str(calls),
                                           "FAILS": fails} | environment)
        return done, calls.read_text().splitlines()
    start.folder = tmp_path / "repo"
    return start


def test_the_dry_run_prints_every_command_and_starts_nothing(script):
    done, calls = script("--dry-run", "random_mask")
    lines = [line for line in done.stdout.splitlines() if line.startswith("+ colab")]
    assert done.returncode == 0 and calls == [] and not list(script.folder.glob("results/*"))
    assert lines[0] == "+ colab new -s lar-t4 --gpu T4" and lines[-1] == "+ colab stop -s lar-t4"
    assert all(words in done.stdout for words in ("doctor --full-size", "bench_gpu.py --cap 15", "install_colab.sh",
                                                  "reproduce --profile t4 --condition random_mask"))
    assert "+ colab download -s lar-t4 /content/t4/gpu.json results/gpu.json" in lines


def test_results_are_fetched_and_the_runtime_is_given_back(script):
    done, calls = script(HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (script.folder / "results").iterdir()} == {"gpu.json", "attention_mask-t4-s0.json"}
    assert calls[0].startswith("new") and calls[-1] == "stop -s lar-t4"
    assert "hf_secret" not in done.stdout + " ".join(calls) and not (script.folder / "build/colab_t4/hf_token").exists()


@pytest.mark.parametrize("fails", ["gpu", "full_size"])
def test_a_step_that_fails_ends_the_session_and_the_runtime_is_given_back(script, fails):
    done, calls = script(fails=fails, HF_TOKEN="hf_secret")
    assert done.returncode != 0 and calls[-1] == "stop -s lar-t4"
    assert f"/content/t4/{fails}.txt" in calls[-2] and not (script.folder / "results").exists()


def test_without_a_token_the_condition_is_left_out_and_said(script):
    done, calls = script()
    assert done.returncode == 0 and "HF_TOKEN is not set" in done.stdout
    assert not [call for call in calls if "condition" in call or "abilities" in call] and calls[-1] == "stop -s lar-t4"


def test_without_the_client_it_says_what_to_install(script, tmp_path):
    tools = tmp_path / "few"
    tools.mkdir()
    for name in ("sh", "dirname", "mkdir", "git"):
        (tools / name).symlink_to(shutil.which(name))
    done, _ = script(PATH=str(tools))
    assert done.returncode == 2 and "pip install google-colab-cli" in done.stderr
