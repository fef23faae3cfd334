"""The runs of a study on the machines of a Ray cluster, wherever cores and GPUs are free (docs/cluster.md).

    driver (lar study)  ── the run as it is ─►  Arm, an actor with cores and perhaps a GPU  ──►  a job, in a process
                        ◄── what changed in its folder, every few seconds ──┘

A machine that sees the study's folder works in it, and nothing is sent. Any other one is sent the run folder, its blind
control and the demonstrations, works in a folder of its own, and what it makes is fetched. So a job whose machine is lost
begins again, on another one, from what the study's folder holds by then. That is why the jobs are actors and not tasks:
Ray begins a task again with what it was first given, and a task can neither be looked at while it runs nor be asked to save.

Of a study with several placements, those of a run are rolled out at the same time, each an Arm of its own. They work in
folders of their own on every machine, and the driver alone writes in the run's: each row is fetched into it once.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from . import engine
from .engine import STOPPED, Each, Job, Making, Outcome
from .run.errors import LarError, first_line
from .run.files import build_once, remove, temporary_folder
from .run.folder import Run, provenance
from .run.parcel import pack, stamps, unpack
from .run.processes import cores, on_stop, stop
from .run.runtime import ANSWER

LOOK = 10.0  # seconds between two looks at what a run has made
AT_ONCE = 1000  # runs, or jobs of them, that Ray is told of
TRIES, PAUSE = 3, 30.0  # times that a job whose machine was lost is begun, and seconds before: Ray may not know it is gone


@contextmanager
def on_ray(folder: Path, data: Path, runs: int, workers: int | None = None, address: str | None = None) -> Iterator[Each]:
    """Make runs in `folder` on the cluster at `address` (None: a Ray of this machine's own, open to nobody else).

    runs: how many there will be; workers: at most so many at the same time. Raises LarError where there is no Ray.
    """
    ray = _connect(address)
    mark = f".seen-{secrets.token_hex(8)}"
    for place in (folder, data):
        place.mkdir(parents=True, exist_ok=True)
        (place / mark).touch()
    share = _share([node["Resources"] for node in ray.nodes() if node["Alive"]], runs, workers)
    fleet = Fleet(ray, share, data, mark, workers or AT_ONCE)
    with on_stop(stop):  # Ray has put handlers of its own
        try:
            yield fleet.each
        except KeyboardInterrupt:
            fleet.stop()
            raise
        finally:
            fleet.threads.shutdown()
            ray.shutdown()
            for place in (folder, data):
                (place / mark).unlink(missing_ok=True)


def _connect(address: str | None) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    own: dict[str, Any] = {}
    if address is None:
        own = {"num_cpus": cores(), "include_dashboard": False, "object_store_memory": 10**8}
        if "ray" not in sys.modules:  # it reads these once
            os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as there: every port on loopback only
                           "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError as error:
        raise LarError("--engine ray needs Ray, which is not installed: type `pip install ray`, on every machine of the "
                       "cluster, or leave --engine out.") from error
    try:
        host, _, port = (address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdecimal():  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=ANSWER).close()
        ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **own)
    except Exception as error:  # Ray raises what it likes
        cure = ("start one with `ray start --head`, or leave --address out (docs/cluster.md)" if address else
                "try again, or leave --engine out")
        where, said = address or "this machine", first_line(error)
        cause = str(error).strip().splitlines()[-1] if said.endswith(":") else said  # Ray Client's: a traceback's last line
        raise LarError(f"No Ray answers at {where} ({cause.rstrip('.')}): {cure}.") from error
    return ray


def _share(nodes: Sequence[dict[str, float]], runs: int, workers: int | None) -> dict[str, int]:
    """The cores and GPUs of each run, the same for all: as many cores as let the runs that may go side by side do so.

    nodes: what each machine has. Where some have GPUs, only these are used, one GPU a run.
    """
    gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if gpus:
        return {"num_cpus": max(1, int(min(node.get("CPU", 1) // node["GPU"] for node in gpus))), "num_gpus": 1}
    found = [int(node.get("CPU", 0)) for node in nodes]
    workers = workers or min(runs, sum(engine.usual_workers(runs, own) for own in found))
    return {"num_cpus": max((size for size in range(1, max(found, default=1) + 1)
                             if sum(own // size for own in found) >= workers), default=1)}


class Fleet:
    """The driver's side: every run has a thread here, which begins its jobs somewhere and fetches what they make.

    ray: the module, connected; share: what each job is given; mark: the file that whoever shares our folders sees there;
    at_once: jobs at the same time.
    """

    def __init__(self, ray: Any, share: dict[str, int], data: Path, mark: str, at_once: int = AT_ONCE):
        self.ray, self.threads_of_a_job, self.data, self.mark = ray, share["num_cpus"], data.absolute(), mark
        self.kind = ray.remote(Arm).options(max_concurrency=2, **share)  # 2: `stop` is heard while `look` waits
        self.threads, self.at_once, self.places = ThreadPoolExecutor(AT_ONCE), at_once, threading.Semaphore(at_once)
        self.stopping, self.packing = threading.Event(), threading.Lock()
        self.arms: dict[Any, bool] = {}  # each, and whether Ray has found a place for it
        self.sent: Any = None  # the demonstrations, once a machine needed them

    def each(self, making: Making, runs: Iterable[Run], needs: Sequence[Path]) -> Iterator[Outcome]:
        """As every engine. Without `workers` Ray is told of all runs at once, so that a cluster that can grow does."""
        return engine.side_by_side(lambda run: self.threads.submit(self.make, making, run, needs), self.at_once, runs)

    def stop(self) -> None:
        """Ask every job to save and stop; those that wait for a place are not begun."""
        self.stopping.set()
        for arm, begun in list(self.arms.items()):
            arm.stop.remote() if begun else self.ray.kill(arm)

    def make(self, making: Making, run: Run, needs: Sequence[Path]) -> str | None:
        """One run, rollouts that may be apart on several machines; returns the sentence of its failure."""
        run = Run(run.path.absolute(), run.config)
        try:
            if making.apart(run) and (failure := self._tried(making.first, run, needs) or self._apart(making, run)):
                return failure
            return self._tried(making.whole, run, needs)
        except LarError as error:
            return str(error)

    def _apart(self, making: Making, run: Run) -> str | None:
        jobs = making.apart(run)
        with run.alone(), ThreadPoolExecutor(max(1, len(jobs))) as threads:
            failures = [*threads.map(lambda name: self._tried(jobs[name], run, apart=name), jobs)]
            making.gather(run)
        return next(filter(None, failures), None)

    def _tried(self, job: Job, run: Run, needs: Sequence[Path] = (), apart: str = "") -> str | None:
        """One job, begun again where its machine was lost; returns the sentence of its failure.

        apart: its name, where others are at the same run.
        """
        lost = ""
        for number in range(1, TRIES + 1):
            with self.places:
                if self.stopping.wait(PAUSE if number > 1 else 0):
                    return STOPPED
                try:
                    return self._once(job, run, needs, apart)
                except self.ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, LarError):
                        return str(error.cause)
                    if not isinstance(error.cause, BrokenProcessPool):
                        raise
                    lost = "its process was killed, perhaps for lack of memory"
                except self.ray.exceptions.RayError as error:
                    lost = first_line(error)
                except LarError as error:
                    return str(error)
            tqdm.write(f"{run.path}: lost, try {number} of {TRIES} ({lost})")
        return f"It was lost {TRIES} times, the last time because: {lost.rstrip('.')}."

    def _once(self, job: Job, run: Run, needs: Sequence[Path], apart: str) -> str | None:
        ray, arm = self.ray, self.kind.remote(self.threads_of_a_job)
        self.arms[arm] = False
        try:
            shared, theirs = ray.get(arm.meet.remote([run.path.parent / self.mark, self.data / self.mark]))
            self.arms[arm] = True
            _refuse_others(theirs)
            with nullcontext() if shared or apart else run.alone():
                luggage = self._luggage(run, needs) if apart or not shared else ()
                log = f"log-{apart}.txt" if apart else engine.LOG
                ray.get(arm.begin.remote(job, run, self.data, log, *luggage))
                while True:
                    packed, kept, done, failure = ray.get(arm.look.remote(LOOK))
                    if packed:
                        self._receive(packed, run, kept)
                    if done:
                        return failure
        finally:
            del self.arms[arm]
            ray.kill(arm)

    def _receive(self, packed: bytes, run: Run, kept: Sequence[str]) -> None:
        with self.packing:
            unpack(packed, run.path.parent)
        for old in run.checkpoints():
            if old.name not in kept:
                remove(old)

    def _luggage(self, run: Run, needs: Sequence[Path]) -> tuple[bytes, list[Any]]:
        """What a machine needs that does not see our folders: runs, packed, and where Ray keeps the demonstrations."""
        folders = {run.path, run.control} if run.control.exists() else {run.path}
        with self.packing:
            if needs:
                self.sent = self.sent or self.ray.put(pack([path.absolute() for path in needs], self.data))
            packed = pack([path for folder in folders for path in stamps(folder)], run.path.parent)
        return packed, [self.sent] if needs else []  # in a list Ray does not unpack it before it is asked for


class Arm:
    """One job of a run, on the machine where Ray has put this actor."""

    def __init__(self, threads: int):
        self.pool = engine.pool([({*engine.available_cores()}, threads)])
        self.known: dict[Path, tuple[int, int]] | None = None  # the files that the driver has too; None: it sees all
        self.stopped = False

    def meet(self, marks: Sequence[Path]) -> tuple[bool, dict[str, str]]:
        """Whether this machine shares the driver's folders, and what it has installed."""
        return all(mark.exists() for mark in marks), _kind()

    def begin(self, job: Job, run: Run, data: Path, log: str, packed: bytes | None = None,
              demos: Sequence[Any] = ()) -> None:
        """Start the job: in the driver's own folders or, with packed runs and demonstrations, in some of this machine."""
        base = temporary_folder("ray")
        if demos:
            import ray
            brought = ray.get(demos[0])
            data = build_once(base / f"data-{hashlib.sha256(brought).hexdigest()[:12]}", partial(unpack, brought))
        if packed is not None:
            self.own = tempfile.TemporaryDirectory(prefix="run-", dir=base, ignore_cleanup_errors=True)
            unpack(packed, Path(self.own.name))
            run = Run(Path(self.own.name, run.path.name), run.config)
            self.known = stamps(run.path)
        self.run, self.future = run, self.pool.submit(engine.interruptible, job, run, data, log)
        if self.stopped:
            self.stop()

    def look(self, seconds: float) -> tuple[bytes | None, list[str], bool, str | None]:
        """Wait so long, or for the end; what changed, packed; names of checkpoints; whether it ended; its failure."""
        done = bool(wait([self.future], seconds).done)
        changed = None
        if self.known is not None:
            with nullcontext() if done else suppress(OSError):  # a checkpoint was just replaced: next time, then
                now = stamps(self.run.path)
                changed = pack([path for path in now if self.known.get(path) != now[path]], self.run.path.parent)
                self.known = now
        kept = [path.name for path in self.run.checkpoints()]  # asked for last: none that is sent may be missing here
        if done and self.known is not None:
            self.own.cleanup()
        return changed, kept, done, self.future.result() if done else None

    def stop(self) -> None:
        """As Ctrl-C: the run saves and stops."""
        self.stopped = True
        engine.interrupt_children()


def _kind() -> dict[str, str]:
    """What may differ between machines and changes numbers; builds for other GPUs count as the same version."""
    return {name: version.split("+")[0] for name, version in provenance().items() if name not in ("machine", "python")}


def _refuse_others(theirs: dict[str, str]) -> None:
    """Raise LarError where a machine has other versions than this one."""
    ours = _kind()
    if other := [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
        name = other[0]
        raise LarError(f"A machine of the cluster has {name} {theirs.get(name, '(none)')} where this one has "
                       f"{ours.get(name, '(none)')}, which may change numbers: install the same versions on both.")
