"""Run a study: every arm is the run that `lar reproduce` makes, several at a time where there are several cores.

    demonstrations -> for each seed: blind control -> every condition -> study.json, study.html of the seeds so far

Killed at any moment and started again, it goes on: finished runs are only read, unfinished ones continue.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from .measure.plan import UNDECIDED
from .measure.results import PLANNED
from .measure.rollout import rolled_out
from .measure.study import Study, compare_arms
from .run.config import RunConfig
from .run.errors import LarError
from .run.files import write_json
from .run.folder import DATA, RUNS, Run
from .run.processes import STOPS, cores, end_with_parent, interrupt, on_stop, processes, stop
from .run.runtime import forget_launch, quiet
from .scene.bench import settled
from .scene.episode import kinds_of
from .show.report import write_study_page
from .steps import make_demos, make_report, reproduce, roll_out_policy

Runs = dict[tuple[str, int], Run]  # of a condition and a seed
Job = Callable[[Run], "str | None"]
Outcome = tuple[Run, "str | None"]  # a run, and the sentence of its failure


def run_study(study: Study, folder: Path | None = None, data: Path = DATA,
              workers: int | None = None) -> tuple[dict, Path]:
    """Make every run of `study` in `folder` (default: runs/NAME), compare them; returns study.json and the page's path.

    They are made seed by seed, and compared after each, so that there is something to read early; in a planned study a
    condition is left alone when all that was asked of it is decided.
    workers: runs at the same time; None: what the machine has (one on a GPU). They share its cores.
    Raises LarError, after the other runs were finished, when some could not be made.
    """
    processes(workers)  # refuses none
    folder = folder or RUNS / study.name
    runs = {arm: Run.open(config, folder / config.name) for arm, config in _configs(study, folder, data).items()}
    make_demos(next(iter(runs.values())).config, data)  # one for all: they depend on the profile only
    job, failed, made = partial(make_arm, study=study, data=data), [], None
    with (_workers(workers or _default_workers(len(study.conditions))) as each,
          tqdm(total=len(runs), unit="run", desc=study.name) as bar):
        for seed in study.seeds:
            failed += _make_seed(study, runs, seed, partial(_finish, each, job, bar), made and made[0])
            made = _compare(study, runs, folder)
    _refuse(failed)
    return made or _compare_so_far(study, runs, folder)


def compare_so_far(study: Study, folder: Path | None = None, data: Path = DATA) -> tuple[dict, Path]:
    """Compare the runs of `study` that are finished in `folder`; makes none. Raises LarError where there is too little."""
    folder = folder or RUNS / study.name
    configs = {arm: config for arm, config in _configs(study, folder, data).items() if (folder / config.name).exists()}
    return _compare_so_far(study, {arm: Run.open(config, folder / config.name) for arm, config in configs.items()}, folder)


def _compare_so_far(study: Study, runs: Runs, folder: Path) -> tuple[dict, Path]:
    finished = {arm: run for arm, run in runs.items() if _finished(study, run)}
    return compare_arms(study, finished, folder), write_study_page(folder)


def _compare(study: Study, runs: Runs, folder: Path) -> tuple[dict, Path] | None:
    """None where the reference has no finished run yet, because it failed."""
    there = any(_finished(study, run) for (condition, _), run in runs.items() if condition == study.reference)
    return _compare_so_far(study, runs, folder) if there else None


def _finished(study: Study, run: Run) -> bool:
    kinds = study.instructions or kinds_of(run.config.profile.tasks)
    return run.results.exists() and all(rolled_out(run, kinds, placement) for placement in study.placement)


def _make_seed(study: Study, runs: Runs, seed: int, finish: Callable[[list[Run]], list[Outcome]],
               so_far: dict | None) -> list[Outcome]:
    """The runs of one seed, the blind controls first, which the others need; returns those that failed."""
    asked = still_asked(study, so_far)
    mine = {condition: run for (condition, its), run in runs.items() if its == seed and condition in asked}
    failed = finish([run for run in mine.values() if run.config.condition.blind])
    _refuse(failed)
    return finish([run for run in mine.values() if not run.config.condition.blind])


def still_asked(study: Study, so_far: dict | None) -> set[str]:
    """The conditions of which a planned question is open, and those that stand beside them; all where nothing was planned.

    so_far: study.json of the seeds before.
    """
    decided = {(row["condition"], row["beside"]) for row in (so_far or {}).get("answers", ()) if row["verdict"] != UNDECIDED}
    still = [question for question in study.questions if question not in decided]
    if study.questions and not still:
        return set()
    settled = {name for question in study.questions for name in question} - {name for question in still for name in question}
    return {*study.arms} - settled


def _configs(study: Study, folder: Path, data: Path) -> dict[tuple[str, int], RunConfig]:
    """The runs of a study, all at the bench that the first one was or is given: others could not be compared with it."""
    configs = study.configs()
    first = next(iter(configs.values()))
    bench = settled(first, folder / first.name, data).profile.bench
    return {arm: settled(config.replace(bench=bench)) for arm, config in configs.items()}


def make_arm(run: Run, study: Study, data: Path) -> str | None:
    """One run from nothing to its report; returns the sentence of a foreseeable failure, so that others can go on."""
    try:
        if study.plan and not (run.path / PLANNED).exists():
            write_json(run.path / PLANNED, {"plan": study.plan.sha256})
        reproduce(run, data, instructions=study.instructions)
        for placement in study.placement[1:]:
            roll_out_policy(run, study.instructions, placement)
            make_report(run)
    except LarError as error:
        return str(error)
    return None


def _finish(each: Callable[[Job, Iterable[Run]], Iterator[Outcome]], job: Job, bar: tqdm, wave: list[Run]) -> list[Outcome]:
    """Wait for a wave of runs; returns those that failed, each with why."""
    failed = []
    for run, failure in each(job, wave):
        bar.write(f"{run.path}: {failure or 'done'}")
        bar.update()
        failed += [(run, failure)] if failure else []
    return failed


def _refuse(failed: list[Outcome]) -> None:
    """Raises LarError when some failed, naming the first."""
    if failed:
        run, failure = failed[0]
        more = f" (and {len(failed) - 1} more, see above)" if len(failed) > 1 else ""
        raise LarError(f"{run.path} failed{more}: {failure} Then run the study again, or take the condition out of it; "
                       "finished runs are kept.")


# Processes. A GPU is given to one run after the other, because its memory may not hold two.

def _default_workers(runs: int) -> int:
    """Small models gain little from more than two cores each."""
    return 1 if torch.cuda.is_available() else min(runs, max(min(2, cores()), cores() // 2))


@contextmanager
def _workers(count: int) -> Iterator[Callable[[Job, Iterable[Run]], Iterator[Outcome]]]:
    """Yield a function that makes runs, `count` at a time, and yields each with its outcome when it is done.

    On Ctrl-C every run stops as `lar reproduce` does, and none is begun any more. Raises LarError when one was killed.
    """
    if count == 1:
        yield lambda job, runs: ((run, job(run)) for run in runs)
        return
    context = multiprocessing.get_context("spawn")
    shares = context.SimpleQueue()
    for share in _shares(count):
        shares.put(share)
    executor = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker, initargs=(shares,))
    try:
        yield partial(_side_by_side, executor, count)
    except BrokenProcessPool as error:
        raise LarError("A run of the study was killed, perhaps for lack of memory: run it again, with fewer --workers; "
                       "what was finished is kept.") from error
    except KeyboardInterrupt:
        for process in multiprocessing.active_children():
            interrupt(process)
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _side_by_side(executor: ProcessPoolExecutor, count: int, job: Job, runs: Iterable[Run]) -> Iterator[Outcome]:
    """No more runs are handed over than there are processes, so that after Ctrl-C none begins."""
    waiting, running = list(runs), {}
    while waiting or running:
        while waiting and len(running) < count:
            run = waiting.pop(0)
            running[executor.submit(_interruptible, job, run)] = run
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(future), future.result()


def _interruptible(job: Job, run: Run) -> str | None:
    """In a worker process: what the run says goes to its `log.txt`, where it does not mix with that of others.

    Between two runs the process ignores Ctrl-C, which is the parent's to handle.
    """
    with (run.path / "log.txt").open("ab", buffering=0) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    with on_stop(stop):
        return job(run)


def _start_worker(shares: multiprocessing.SimpleQueue) -> None:
    for number in STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    end_with_parent()
    quiet()
    forget_launch()
    share, threads = shares.get()
    os.environ["LAR_CORES"] = str(threads)  # the scenes' processes of its rollouts are then as many
    torch.set_num_threads(threads)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, share)


def _shares(count: int) -> list[tuple[set[int], int]]:
    """The processor cores of each of `count` processes, and how many of them it may load.

    Where there are fewer cores than processes, some share one; where a quota allows fewer than there are, not all of
    them are loaded.
    """
    available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))
    if count > len(available):
        return [({available[i % len(available)]}, 1) for i in range(count)]
    return [(set(part.tolist()), max(1, cores() * len(part) // len(available)))
            for part in np.array_split(available, count)]
