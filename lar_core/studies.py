"""Run a study: every arm is the run that `lar reproduce` makes, several at a time where there are several cores.

    demonstrations -> for each seed: blind control -> every condition -> study.json, study.html of the seeds so far

Killed at any moment and started again, it goes on: finished runs are only read, unfinished ones continue. Of a finished run
`KEPT` is enough, so that a study can go on on another machine, from what `keep` has put aside on the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial, wraps
from pathlib import Path
from typing import Any

from tqdm import tqdm

from .engine import Job, Making, Outcome, local, usual_workers
from .measure.plan import UNDECIDED
from .measure.results import PLANNED, load_results
from .measure.rollout import rolled_out
from .measure.study import Study, compare_arms
from .ray_engine import on_ray
from .run.config import RunConfig
from .run.errors import LarError
from .run.files import read_jsonl, write_json, write_jsonl, write_text
from .run.folder import DATA, RUNS, Run, blind_twin
from .run.parcel import ROLLOUTS
from .run.processes import processes
from .scene.bench import settled
from .scene.episode import kinds_of
from .show.report import write_study_page
from .steps import make_demos, make_report, reproduce, roll_out_policy, scores, train_both

Runs = dict[tuple[str, int], Run]  # of a condition and a seed
KEPT = ("config.yaml", PLANNED, "results.json", ROLLOUTS)  # files of a finished run that a study needs


def run_study(study: Study, folder: Path | None = None, data: Path = DATA, workers: int | None = None,
              engine: str = "local", address: str | None = None) -> tuple[dict, Path]:
    """Make every run of `study` in `folder` (default: runs/NAME), compare them; returns study.json and the page's path.

    They are made seed by seed, and compared after each, so that there is something to read early; in a planned study a
    condition is left alone when all that was asked of it is decided.
    workers: runs at the same time; None: what the machine has (one on a GPU). They share its cores.
    engine: "local", or "ray" for the machines of the Ray cluster at `address` (None: a Ray of this machine's own).
    Raises LarError, after the other runs were finished, when some could not be made.
    """
    processes(workers)  # refuses none
    if address and engine != "ray":
        raise LarError(f"--address {address} is of a Ray cluster: say --engine ray too, or leave --address out.")
    folder, count = folder or RUNS / study.name, len(study.conditions)
    runs = {arm: Run.open(config, folder / config.name) for arm, config in _configs(study, folder, data).items()}
    if not (todo := [run for run in runs.values() if not _finished(study, run)]):
        return _compare_so_far(study, runs, folder)
    failed, made = [], None
    with (on_ray(folder, data, count, workers, address) if engine == "ray" else
          local(workers or usual_workers(count), data)) as each:
        demos = make_demos(todo[0].config, data)  # one for all: they depend on the profile only
        with tqdm(total=len(todo), unit="run", desc=study.name) as bar:
            finish = partial(_finish, lambda wave: each(making(study), wave, demos), bar)
            for seed, among in _order(study):
                failed += _make_seed(study, runs, seed, among, finish, made and made[0])
                made = _compare(study, runs, folder)
    _refuse(failed)
    return made or _compare_so_far(study, runs, folder)


def _order(study: Study) -> Iterator[tuple[int, set[str]]]:
    """Seeds, each with the conditions whose turn it is: what the deciding questions of a plan need comes first."""
    asked = {name for question in study.plan.questions for name in question} if study.plan else set()
    blind = {blind_twin(config).condition.name for (condition, _), config in study.configs().items() if condition in asked}
    yield from ((seed, asked | blind) for seed in study.seeds if asked)
    yield from ((seed, {*study.arms} - asked - blind) for seed in study.seeds)


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


def keep(study: Study, folder: Path, into: Path) -> list[Path]:
    """Copy what a study needs of its finished runs in `folder` to folders of the same names in `into`; returns these."""
    runs = [Run.load(folder / config.name) for config in _configs(study, folder, DATA).values()
            if (folder / config.name / "config.yaml").exists()]
    finished = [run for run in runs if _finished(study, run)]
    for run in finished:
        for file in filter(Path.exists, (run.path / name for name in KEPT)):
            write_text(into / run.path.name / file.name, file.read_text(encoding="utf-8"))
    return [into / run.path.name for run in finished]


def _finished(study: Study, run: Run) -> bool:
    """Whether it is rolled out everywhere, and its results say so."""
    return run.results.exists() and not _lacking(study, run) and {*study.placement} <= {
        row["placement"] for row in load_results(run.results).get("rollouts") or ()}


def _lacking(study: Study, run: Run) -> list[str]:
    """The placements of which the run has not all episodes."""
    return [placement for placement in study.placement if not rolled_out(run, _told(study, run), placement)]


def _told(study: Study, run: Run) -> tuple[str, ...]:
    return study.instructions or kinds_of(run.config.profile.tasks)


def _make_seed(study: Study, runs: Runs, seed: int, among: set[str], finish: Callable[[list[Run]], list[Outcome]],
               so_far: dict | None) -> list[Outcome]:
    """The runs of one seed, the blind controls first, which the others need; returns those that failed.

    Beside the others go the blind controls of the seed after, so that no core waits for those alone.
    """
    asked, after = still_asked(study, so_far) & among, study.seeds[study.seeds.index(seed) + 1:][:1]
    mine = [(its, run) for (condition, its), run in runs.items()
            if its in (seed, *after) and condition in asked and not _finished(study, run)]
    _refuse(finish([run for its, run in mine if its == seed and run.config.condition.blind]))
    return finish([run for its, run in mine if (its != seed) == run.config.condition.blind])


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


def making(study: Study) -> Making:
    """How the runs of a study are made; with several placements, the rollouts at each may be apart."""
    return Making(partial(make_arm, study=study), partial(_learn, study=study), partial(_rollouts, study),
                  partial(_in_order, study))


def _foreseen(job: Callable) -> Callable:
    """The job returns the sentence of a foreseeable failure, so that others can go on."""
    @wraps(job)
    def made(*words: Any, **named: Any) -> str | None:
        try:
            job(*words, **named)
        except LarError as error:
            return str(error)
        return None
    return made


@_foreseen
def make_arm(run: Run, data: Path, study: Study) -> None:
    """One run from nothing to its report."""
    _write_plan(run, study)
    reproduce(run, data, instructions=_told(study, run))
    for placement in study.placement[1:]:
        roll_out_policy(run, _told(study, run), placement)
        make_report(run)


@_foreseen
def _learn(run: Run, data: Path, study: Study) -> None:
    """What `make_arm` does before rollouts."""
    _write_plan(run, study)
    train_both(run, data)
    scores(run, data)


@_foreseen
def _roll_out(run: Run, data: Path, study: Study, placement: str) -> None:
    roll_out_policy(run, _told(study, run), placement)


def _rollouts(study: Study, run: Run) -> dict[str, Job]:
    """A job for each placement whose rollouts are missing; none where all would be one."""
    lacking = _lacking(study, run) if len(study.placement) > 1 else ()
    return {placement: partial(_roll_out, study=study, placement=placement) for placement in lacking}


def _write_plan(run: Run, study: Study) -> None:
    if study.plan and not (run.path / PLANNED).exists():
        write_json(run.path / PLANNED, {"plan": study.plan.sha256})


def _in_order(study: Study, run: Run) -> None:
    """Rows of rollouts by placement, as `make_arm` would have made them; those of no placement of the study first."""
    order = {placement: place for place, placement in enumerate(study.placement)}
    rows = sorted(read_jsonl(run.path / ROLLOUTS), key=lambda row: order.get(row["placement"], -1))
    write_jsonl(run.path / ROLLOUTS, rows)


def _finish(each: Callable[[list[Run]], Iterator[Outcome]], bar: tqdm, wave: list[Run]) -> list[Outcome]:
    """Wait for a wave of runs; returns those that failed, each with why."""
    failed = []
    for run, failure in each(wave):
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
