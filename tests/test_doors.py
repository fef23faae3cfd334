"""Doors to vla-eval, over real sockets of this machine: ours served and audited is as rolled out, and what can go wrong."""

import http.server
import shutil
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

vla_eval = pytest.importorskip("vla_eval", reason="the extra `doors` is not installed")
import still_server  # noqa: E402
from still_server import Still  # noqa: E402
from vla_eval.api import run as vla_run  # noqa: E402
from vla_eval.api import serve_background  # noqa: E402
from vla_eval.benchmarks.libero.benchmark import LIBEROBenchmark  # noqa: E402
from websockets.sync.server import serve as websocket_serve  # noqa: E402

from lar_core import cli  # noqa: E402
from lar_core.audit import audit  # noqa: E402
from lar_core.data.dataset import Stats  # noqa: E402
from lar_core.measure.results import episodes_of  # noqa: E402
from lar_core.measure.rollout import _plan, close_envs  # noqa: E402
from lar_core.model.policy import load_policy, make_policy  # noqa: E402
from lar_core.run.config import make_config  # noqa: E402
from lar_core.run.errors import LarError  # noqa: E402
from lar_core.run.folder import Run  # noqa: E402
from lar_core.scene.env import SpatialEnv  # noqa: E402
from lar_core.scene.setup import STANDIN  # noqa: E402
from lar_core.vla import Asked, commanded, sent, serving  # noqa: E402

SHORT = {"tasks": (8,), "episodes_per_task": 2, "max_steps": 12, "videos_per_task": 1}
SEEN = {"agentview_rgb": np.zeros((1, 8, 8, 3), np.uint8)}


@pytest.fixture(scope="module")
def run(tmp_path_factory, backbone_folder):
    """A run whose policy was never trained, but saved as if."""
    run = Run.open(make_config("action_only", "micro", execute=4, **SHORT), tmp_path_factory.mktemp("served") / "run")
    run.final_checkpoint.mkdir(parents=True)
    policy = make_policy(run.config, backbone_folder)
    run.backbone.symlink_to(backbone_folder)
    policy.save(run.final_checkpoint / "model.safetensors")
    Stats((-1.0,) * 7, (1.0,) * 7, (0.0,) * 8, (1.0,) * 8).save(run.stats)
    return run


@contextmanager
def process(*command):
    """A process that prints its address in its first line; yields that."""
    started = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True)
    try:
        yield next(word for word in started.stdout.readline().split() if word.startswith("ws://"))
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def audited(url, folder, **changes):
    return audit(url, folder, {**SHORT, **changes}, ("right",), pictures=("seen",), timeout=60, workers=1)[0]


def key(row):
    return row["instruction"], row["task"], row["episode"]


def test_a_policy_of_ours_served_and_audited_has_the_episodes_of_lar_rollout(run, tmp_path, capsys):
    assert cli.main(["rollout", "--run-dir", str(run.path), "--instructions", "right", "other_bowl"]) == 0
    folder = tmp_path / "audit"
    with process("-m", "lar_core", "serve", "--run-dir", str(run.path), "--port", "0") as url:
        assert cli.main(["audit", "--server", url, "--run-dir", str(folder), "--tasks", "8", "--instructions", "right",
                         "other_bowl", "--set", "episodes_per_task=2", "max_steps=12", "videos_per_task=1"]) == 0
    printed = capsys.readouterr().out
    ours, theirs = ({key(row): row for row in episodes_of(Run.load(path))} for path in (run.path, folder))
    assert ours.keys() == theirs.keys() and len(ours) == 4
    for name in ("success", "begun", "steps", "sentence", "first_touched", "progress", "init_seed"):
        assert [ours[one][name] for one in ours] == [theirs[one][name] for one in ours], name
    assert [row["policy"] for row in episodes_of(Run.load(folder / "control"))] == ["PolicyServer shown grey"] * 2
    page = (folder / "report.html").read_text()
    assert "only asked for actions" in page and "Where the instruction looks" not in page and "lar audit --server" in page
    assert "PolicyServer shown grey" in printed


def test_what_is_asked_over_the_wire_is_answered_as_the_policy_itself_does(run, rng):
    policy, stats = load_policy(run)
    seen = {"agentview_rgb": rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8),
            "eye_in_hand_rgb": rng.integers(0, 256, (2, 32, 32, 3), dtype=np.uint8), "ee_pos": rng.normal(size=(2, 3)),
            "ee_ori": 1.9 * rng.normal(size=(2, 3)), "gripper_states": rng.normal(size=(2, 2))}
    own, _ = _plan(policy, stats, "", seen, ["move the bowl", "."])
    with serving(policy, stats, "127.0.0.1", 0) as url, Asked(url, 60) as plan:
        for step in range(4):  # the last of the chunk, whatever is seen by then
            actions, _ = plan(seen, ["move the bowl", "."], step)
            assert np.abs(actions[:, 0, :6] - own[:, step, :6]).max() < 1e-5
            assert (actions[:, 0, 6] == np.where(own[:, step, 6] < 0, -1, 1)).all()


def test_what_is_sent_is_what_vla_evals_own_libero_benchmark_sends():
    env = SpatialEnv(8, image_size=256, wrist_size=256, fast=False)
    try:
        seen, _ = env.reset(seed=0, options={"wait_steps": 0})
        for precise in (False, True):
            theirs = LIBEROBenchmark(send_wrist_image=True, send_state=True, quat_no_antipodal=precise)
            theirs._env = env._wrapper
            expected = theirs.make_obs(env.stock._get_observations(force_update=True), {"name": "a sentence"})
            ours = sent(seen, "a sentence", {"send_wrist_image": True, "send_state": True, "quat_no_antipodal": precise})
            assert expected.keys() - ours.keys() == {"controller_states"} and ours["task_description"] == "a sentence"
            assert np.abs(ours["states"] - expected["states"]).max() < 1e-6
            for camera in ("agentview", "wrist"):
                assert np.array_equal(ours["images"][camera], expected["images"][camera]), camera
        assert sent(seen, "", {}).keys() == {"images", "task_description"}
    finally:
        env.close()


def test_a_server_that_dies_leaves_its_episodes_and_the_same_command_goes_on(tmp_path):
    with process(still_server.__file__, "18") as url, pytest.raises(LarError, match="went away in the middle of an episode"):
        audited(url, tmp_path / "audit")
    kept = episodes_of(Run.load(tmp_path / "audit"))
    assert [row["episode"] for row in kept] == [0]
    server = Still()
    with serve_background(server) as handle:
        results = audited(handle.url, tmp_path / "audit")
    assert len(server.seen) == 12 and results["rollouts"][0]["episodes"] == 2
    assert episodes_of(Run.load(tmp_path / "audit"))[0] == kept[0]


def test_an_audit_in_liberos_own_look_takes_it_from_the_folder_that_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("LAR_LIBERO_ASSETS", str(shutil.copytree(STANDIN, tmp_path / "assets")))
    with serve_background(Still()) as handle:
        results = audited(handle.url, tmp_path / "audit", bench="libero", episodes_per_task=1, max_steps=1,
                          videos_per_task=0)
        assert results["provenance"]["assets"]["name"] == "official"
        close_envs()
        monkeypatch.setenv("LAR_LIBERO_ASSETS", str(tmp_path))
        with pytest.raises(LarError, match=f"{tmp_path} is not a complete set of LIBERO's assets, .*: correct LAR_LIBERO"):
            audited(handle.url, tmp_path / "another", bench="libero", episodes_per_task=1, max_steps=1, videos_per_task=0)


@pytest.mark.parametrize("answer, sentence", [
    (lambda: np.zeros(8), r"actions of shape \(8,\), but a LIBERO step takes 7 numbers"),
    (lambda: np.zeros((10, 7)), "whole chunks: start it with its chunk_size set"),
    (lambda: np.full(7, np.nan), "not 7 finite numbers"),
    (lambda: 1 / 0, "failed .*ZeroDivisionError.*look at what it prints")])
def test_wrong_answers_are_named(answer, sentence):
    with serve_background(Still(answer)) as handle, Asked(handle.url, 60) as plan, pytest.raises(LarError, match=sentence):
        plan(SEEN, ["."], 0)


def test_a_server_that_answers_too_late_is_named():
    let_go = threading.Event()
    with serve_background(Still(lambda: let_go.wait() and np.zeros(7))) as handle, Asked(handle.url, 0.2) as plan:
        with pytest.raises(LarError, match=r"did not answer in 0.2 seconds.*--timeout.*are kept"):
            plan(SEEN, ["."], 0)
        let_go.set()


def test_where_nobody_listens_the_address_is_named(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert cli.main(["audit", "--server", f"ws://127.0.0.1:{port}", "--run-dir", str(tmp_path / "audit")]) == 2
    assert f"Nobody listens at ws://127.0.0.1:{port}" in capsys.readouterr().err
    assert not (tmp_path / "audit").exists()


@contextmanager
def running(server):
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield
    server.shutdown()
    thread.join()


def test_servers_of_another_protocol_are_named():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as web, running(web), \
            pytest.raises(LarError, match="is no model server of vla-eval"):
        Asked(f"ws://127.0.0.1:{web.server_port}", 5).__enter__()
    with websocket_serve(lambda peer: peer.send("hello"), "127.0.0.1", 0) as other, running(other), \
            pytest.raises(LarError, match="is no model server of vla-eval"):
        Asked(f"ws://127.0.0.1:{other.socket.getsockname()[1]}", 5).__enter__()
    with pytest.raises(LarError, match="is no model server of vla-eval.*ws://HOST:PORT"):
        Asked("http://127.0.0.1:1", 5).__enter__()


def test_absolute_poses_are_refused():
    server = Still()
    server.get_observation_params = lambda: {"absolute_action": True}
    with serve_background(server) as handle, pytest.raises(LarError, match="commands absolute poses"):
        Asked(handle.url, 5).__enter__()


def test_a_gripper_is_rounded_as_vla_eval_rounds_it():
    assert [commanded({"actions": [0] * 6 + [value]})[6] for value in (-0.1, 0, 0.2)] == [-1, 1, 1]


def test_vla_evals_own_runner_runs_our_scene_with_an_instruction_and_its_outcomes(tmp_path):
    close_envs()
    server = Still()
    config = {"benchmarks": [{"benchmark": "lar_core.vla:LarSpatial", "episodes_per_task": 1, "max_steps": 5, "params": {
        "tasks": [8], "instruction": "other_bowl", "grey": True, "send_state": True, "image_size": 64}}]}
    with serve_background(server) as handle:
        results = vla_run(config, server_url=handle.url, output_dir=tmp_path, no_save=True)
    episode = results[0]["tasks"][0]["episodes"][0]["metrics"]
    assert episode == {"success": False, "followed": False, "first_touched": "none", "progress": "none", "on_plate": "none"}
    assert len(server.seen) == 5 and {"states", "images"} < server.seen[0].keys()
    assert (server.seen[0]["images"]["agentview"] == 128).all() and "plate" in server.seen[0]["task_description"]
