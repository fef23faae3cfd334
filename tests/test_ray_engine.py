"""The engine for several machines, without Ray: a stand-in calls here what Ray would call elsewhere.

With Ray, on two nodes of which one is killed: scripts/ray_test.py.
"""

import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from threading import Barrier, Event
from types import SimpleNamespace

import psutil
import pytest

from lar_core import cli, engine, ray_engine, studies
from lar_core.engine import Making
from lar_core.measure.study import Study
from lar_core.ray_engine import Arm, Fleet
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import append_jsonl, read_jsonl
from lar_core.run.folder import Run
from lar_core.run.parcel import pack, stamps, unpack


class Lost(Exception):
    """As Ray raises when a machine is gone."""


class Raised(Lost):
    """As Ray raises what was raised there."""

    def __init__(self, cause):
        super().__init__(str(cause))
        self.cause = cause


class Handle:
    def __init__(self, arm):
        self.arm = arm

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *words: (name, getattr(self.arm, name), words))


class StandIn:
    """The calls of Ray that the engine makes. lost: the number of the look, if any, that finds the machine gone."""

    exceptions = SimpleNamespace(RayError=Lost, RayTaskError=Raised)

    def __init__(self, *lost):
        self.lost, self.looks, self.begun, self.gone, self.written = lost, 0, 0, Event(), Event()

    def remote(self, kind):
        return SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda *words: self.begin(kind(*words))))

    def begin(self, arm):
        self.begun += 1
        return Handle(arm)

    def put(self, value):
        return "put", lambda: value, ()

    def get(self, promised):
        name, call, words = promised
        if name == "look":
            self.looks += 1
            assert self.written.wait(60)
            if self.looks in self.lost:
                self.gone.set()
                raise Lost("The node is gone.")
        try:
            return call(*words)
        except LarError as error:
            raise Raised(error) from error

    def kill(self, arm):
        pass


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A function that makes a fleet whose machines share no folder with the driver's."""
    monkeypatch.setattr(engine, "pool", lambda shares: ThreadPoolExecutor(1))
    monkeypatch.setattr(engine, "interruptible", lambda job, run, data, log: job(run, data))
    monkeypatch.setattr(ray_engine, "LOOK", 0.01)
    monkeypatch.setattr(ray_engine, "PAUSE", 0)
    monkeypatch.setattr(ray_engine, "temporary_folder", lambda name: there)
    (there := tmp_path / "there").mkdir()
    (tmp_path / "data" / "demos").mkdir(parents=True)
    (tmp_path / "data" / "demos" / "task5.hdf5").write_text("bowls")

    def make(ray, at_once=9):
        monkeypatch.setitem(sys.modules, "ray", ray)
        return Fleet(ray, {"num_cpus": 1}, tmp_path / "data", ".a-mark", at_once)
    return make


@pytest.fixture
def run(tmp_path):
    return Run.open(make_config("action_only", "micro"), tmp_path / "here" / "action_only-micro-s0")


def whole(job):
    return Making(job, None, lambda run: {}, None)


def outcome(fleet, job, run):
    making = job if isinstance(job, Making) else whole(job)
    return list(fleet.each(making, [run], [run.path.parents[1] / "data" / "demos" / "task5.hdf5"]))


def test_a_run_is_made_elsewhere_from_what_was_sent_and_comes_back(elsewhere, run, tmp_path):
    def job(there, data):
        assert there.path != run.path and there.config == run.config
        (there.path / "said.txt").write_text((data / "demos" / "task5.hdf5").read_text())
        (there.path / ".lock").touch()
        ray.written.set()

    ray = StandIn()
    assert outcome(elsewhere(ray), job, run) == [(run, None)]
    assert (run.path / "said.txt").read_text() == "bowls" and not (run.path / ".lock-owner").exists()
    assert not list((tmp_path / "there").glob("run-*"))


def test_a_run_whose_machine_was_lost_goes_on_from_what_had_come_back(elsewhere, run):
    def job(there, data):
        found = [path.name for path in there.checkpoints()]
        if not found:
            (there.path / "checkpoints" / "step_000002").mkdir(parents=True)
            (there.path / "checkpoints" / "step_000002" / "trainer.pt").write_text("2")
            ray.written.set()
            ray.gone.wait(60)
            return None
        return f"begun again with {found}"

    ray = StandIn(2)
    ((_, said),) = outcome(elsewhere(ray), job, run)
    assert said == "begun again with ['step_000002']" and ray.begun == 2


def test_a_checkpoint_that_training_has_taken_away_goes_here_too(elsewhere, run):
    for step in ("step_000001", "step_000002"):
        (run.path / "checkpoints" / step).mkdir(parents=True)
        (run.path / "checkpoints" / step / "trainer.pt").write_text(step)

    def job(there, data):
        for old in there.checkpoints()[:1]:
            ray_engine.remove(old)
        ray.written.set()

    outcome(elsewhere(ray := StandIn()), job, run)
    assert [path.name for path in run.checkpoints()] == ["step_000002"]


def test_a_run_that_is_lost_every_time_is_a_failure_and_the_others_go_on(elsewhere, run):
    ray = StandIn(1, 2, 3)
    ray.written.set()
    other = Run.open(make_config("random_mask", "micro"), run.path.with_name("random_mask-micro-s0"))
    made = dict((found.config.condition.name, said) for found, said in
                elsewhere(ray, at_once=1).each(whole(lambda there, data: None), [run, other],
                                               [run.path.parents[1] / "data/demos/task5.hdf5"]))
    assert "lost 3 times, the last time because: The node is gone." in made["action_only"]
    assert made["random_mask"] is None


PLACES = ("near", "wide")


def row(placement, episode):
    return {"placement": placement, "episode": episode}


class Apart:
    """A run with three episodes at each of two placements, rolled out at the same time; `there`: in which folders."""

    def __init__(self, ray, run):
        self.ray, self.run, self.there, self.together = ray, run, [], Barrier(2, timeout=60)

    def making(self):
        study = SimpleNamespace(placement=PLACES)
        return Making(self.whole, self.first, self.apart, lambda run: studies._in_order(study, run))

    def first(self, there, data):
        self.there.append(("first", there.path, (data / "demos").exists()))
        (there.path / "stats.json").write_text("trained")
        self.ray.written.set()

    def apart(self, run):
        had = [seen["placement"] for seen in read_jsonl(run.path / "rollouts.jsonl")]
        return {place: lambda there, data, place=place: self.roll_out(there, place)
                for place in PLACES if had.count(place) < 3}

    def roll_out(self, there, place):
        self.there.append((place, there.path, False))
        assert (there.path / "stats.json").read_text() == "trained"
        had = [seen["episode"] for seen in read_jsonl(there.path / "rollouts.jsonl") if seen["placement"] == place]
        for episode in range(len(had), 3):
            if episode == 1:
                self.together.wait()  # both have one row, and neither has the other's
            append_jsonl(there.path / "rollouts.jsonl", row(place, episode))
        (there.path / "rollouts").mkdir(exist_ok=True)
        (there.path / "rollouts" / f"{place}.mp4").write_text(place)

    def whole(self, there, data):
        self.there.append(("whole", there.path, (data / "demos").exists()))


def test_placements_are_rolled_out_side_by_side_and_every_row_comes_back_once_in_order(elsewhere, run):
    made = Apart(StandIn(), run)
    assert outcome(elsewhere(made.ray), made.making(), run) == [(run, None)]
    assert read_jsonl(run.path / "rollouts.jsonl") == [row(place, episode) for place in PLACES for episode in range(3)]
    assert {path.name for path in (run.path / "rollouts").iterdir()} == {"near.mp4", "wide.mp4"}
    assert [name for name, _, _ in made.there][0::3] == ["first", "whole"] and len({path for _, path, _ in made.there}) == 4
    assert made.there[0][2] and made.there[3][2]


def test_who_shares_the_folders_works_in_them_but_for_rollouts_that_are_apart(elsewhere, run, tmp_path):
    for place in (run.path.parent, tmp_path / "data"):
        (place / ".a-mark").touch()
    made = Apart(StandIn(), run)
    outcome(elsewhere(made.ray), made.making(), run)
    assert [(name, path == run.path) for name, path, _ in sorted(made.there)] == [
        ("first", True), ("near", False), ("whole", True), ("wide", False)]
    assert read_jsonl(run.path / "rollouts.jsonl") == [row(place, episode) for place in PLACES for episode in range(3)]


def test_rollouts_whose_machine_was_lost_go_on_from_the_rows_that_had_come_back(elsewhere, run):
    made, sent = Apart(ray := StandIn(), run), []

    def roll_out(there, place):
        sent.append(read_jsonl(there.path / "rollouts.jsonl"))
        if len(sent) == 1:
            append_jsonl(there.path / "rollouts.jsonl", row("wide", 1))
            ray.lost = {ray.looks + 2}  # the look before it has fetched the row
            ray.gone.wait(60)
        append_jsonl(there.path / "rollouts.jsonl", row("wide", 2))  # the first time on a machine that is gone

    for place, episode in (("wide", 0), *(("near", episode) for episode in range(3))):  # of an earlier command
        append_jsonl(run.path / "rollouts.jsonl", row(place, episode))
    made.roll_out = roll_out
    assert outcome(elsewhere(ray), made.making(), run) == [(run, None)]
    assert [rows.count(row("wide", 1)) for rows in sent] == [0, 1]
    assert read_jsonl(run.path / "rollouts.jsonl") == [row(place, episode) for place in PLACES for episode in range(3)]


def test_no_more_jobs_run_at_the_same_time_than_were_asked_for(elsewhere, run):
    made, now, most = Apart(StandIn(), run), [], []

    def counted(there, place):
        now.append(place)
        most.append(len(now))
        append_jsonl(there.path / "rollouts.jsonl", row(place, 0))
        now.remove(place)

    made.roll_out = counted
    outcome(elsewhere(made.ray, at_once=1), made.making(), run)
    assert most == [1, 1]


def test_a_machine_with_other_versions_is_refused(elsewhere, run, monkeypatch):
    monkeypatch.setattr(Arm, "meet", lambda *_: (False, ray_engine._kind() | {"torch": "1.0"}))
    ((_, said),) = outcome(elsewhere(StandIn()), lambda *_: None, run)
    assert "A machine of the cluster has torch 1.0 where this one has" in said


def test_files_come_whole_and_without_what_is_not_finished(tmp_path):
    for name in ("a/results.json", "a/.lock", "a/checkpoints/.step.tmp/x", "a/checkpoints/step_000001/trainer.pt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "b" / "a").mkdir(parents=True)
    (tmp_path / "b" / "a" / "results.json").write_text("older")
    unpack(pack(stamps(tmp_path / "a"), tmp_path), tmp_path / "b")
    found = {str(path.relative_to(tmp_path / "b")): path.read_text() for path in (tmp_path / "b").rglob("*.*")
             if path.is_file()}
    assert found == {name: name for name in ("a/results.json", "a/checkpoints/step_000001/trainer.pt")}


def test_rows_of_rollouts_are_joined_and_a_torn_line_is_dropped(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "a").mkdir(parents=True)
    (tmp_path / "a" / "rollouts.jsonl").write_text('{"n": 1}\n{"n": 3}\n{"n')
    (tmp_path / "b" / "a" / "rollouts.jsonl").write_text('{"n": 1}\n{"n": 2}\n{"n": 3')
    for _ in range(2):
        unpack(pack(stamps(tmp_path / "a"), tmp_path), tmp_path / "b")
    assert (tmp_path / "b" / "a" / "rollouts.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n{"n": 3}\n'


@pytest.mark.parametrize("nodes, runs, workers, share", [
    ([{"CPU": 2}], 8, None, {"num_cpus": 1}),  # two runs, as the local engine
    ([{"CPU": 16}], 4, None, {"num_cpus": 4}),
    ([{"CPU": 16}, {"CPU": 16}], 3, None, {"num_cpus": 8}),
    ([{"CPU": 16}, {"CPU": 4}], 40, None, {"num_cpus": 2}),
    ([{"CPU": 4}, {"CPU": 4}], 40, 20, {"num_cpus": 1}),
    ([{}, {"CPU": 16, "GPU": 4}, {"CPU": 64}], 40, None, {"num_cpus": 4, "num_gpus": 1}),
    ([{}], 3, None, {"num_cpus": 1}),  # machines are yet to come
])
def test_a_run_is_given_what_the_local_engine_would(nodes, runs, workers, share):
    assert ray_engine._share(nodes, runs, workers) == share


@pytest.mark.skipif(not find_spec("ray"), reason="Ray is not installed: pip install ray")
def test_ray_itself_makes_runs_and_listens_on_loopback_only(tmp_path, run):
    with ray_engine.on_ray(run.path.parent, tmp_path / "data", 1, 1) as each:
        assert list(each(whole(print), [run], [])) == [(run, None)]
        heard = {port.laddr.ip for process in psutil.Process().children(recursive=True)
                 for port in process.net_connections("inet") if port.status == psutil.CONN_LISTEN}
    assert str(tmp_path / "data") in (run.path / "log.txt").read_text()
    assert heard and all("127.0.0.1" in address for address in heard)


def test_without_ray_a_sentence_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(LarError, match="needs Ray, which is not installed: type `pip install ray`"):
        studies.run_study(Study(name="mine", conditions=("action_only",), profile="micro"), tmp_path, tmp_path, engine="ray")


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_where_no_ray_answers_a_sentence_says_so_at_once(tmp_path, monkeypatch, address):
    monkeypatch.setitem(sys.modules, "ray", StandIn())
    with pytest.raises(LarError, match=f"No Ray answers at {address} .*refused.*ray start --head"):
        studies.run_study(Study(name="mine", conditions=("action_only",), profile="micro"), tmp_path, tmp_path, None, "ray",
                          address)


def test_what_ray_client_says_last_is_the_cause(tmp_path, monkeypatch):
    def init(*_, **__):
        raise ConnectionAbortedError("Initialization failure from server:\nTraceback\nRuntimeError: Starting failed.\n\n")

    ray = StandIn()
    ray.init = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    failed = pytest.raises(LarError, match=r"\(RuntimeError: Starting failed\)")
    with socket.create_server(("127.0.0.1", 0)) as server, failed:
        ray_engine._connect(f"ray://127.0.0.1:{server.getsockname()[1]}")


def test_an_address_without_ray_is_refused(tmp_path):
    with pytest.raises(LarError, match="say --engine ray too"):
        studies.run_study(Study(name="mine", conditions=("action_only",)), tmp_path, tmp_path, address="auto")


def test_engine_and_address_reach_the_study(monkeypatch, tmp_path, capsys):
    (tmp_path / "a.yaml").write_text("conditions: [action_only]")
    monkeypatch.setattr(studies, "run_study", lambda *words: (_ for _ in ()).throw(LarError(str(words[3:]))))
    assert cli.main(["study", str(tmp_path / "a.yaml"), "--engine", "ray", "--address", "auto", "--workers", "3"]) == 2
    assert "(3, 'ray', 'auto')" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["study", str(tmp_path / "a.yaml"), "--engine", "slurm"])
