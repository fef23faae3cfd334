"""One condition from nothing to a results page. Every function here is one command and one notebook cell.

    demonstrations -> train -> saliency -> rollout -> latency -> report

The blind control (same recipe, trained without images) lives in `control/` inside the run folder, or beside it.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .measure.costs import measure_latency, measure_training
from .measure.maps import PHRASES, score_photographs
from .measure.probes import probe_heldout
from .measure.results import gather_results
from .measure.rollout import episodes_of, roll_out, rolled_out
from .model.policy import load_policy
from .model.train import train
from .run.config import RunConfig
from .run.errors import LarError, unknown
from .run.folder import DATA, Run, blind_twin, without
from .run.processes import Stopped, end_with_parent, interrupt, on_stop, stop
from .run.runtime import device, forget_launch, group, quiet, use_cores
from .scene.bench import elsewhere
from .scene.demonstrations import demonstrations, other_sentence
from .scene.episode import kinds_of
from .show.report import write_report


def make_demos(config: RunConfig, data: Path = DATA, workers: int | None = None) -> list[Path]:
    """Record, or fetch and convert, the demonstrations that `config` asks for; those that are there are kept."""
    return demonstrations(config, data, workers=workers)


def copy_demos(paths: Sequence[Path], form: str, folder: str) -> Path:
    """Copy demonstration files of ours into the new folder, in another format; returns the folder."""
    from .data.lerobot_writer import write_lerobot

    if form != "lerobot":
        raise unknown("format", form, ("lerobot",))
    return write_lerobot(paths, folder, other_sentence)


def train_policy(run: Run, data: Path = DATA, workers: int | None = None) -> None:
    """Train the run's policy (demonstrations are recorded first where they are missing)."""
    with group().main_process_first():  # one of several processes records, the others wait
        demos = make_demos(run.config, data, workers)
    train(run, demos, data)


def train_control(run: Run, data: Path = DATA) -> Run:
    """Train the blind control of a run with the same recipe and seed; returns its run."""
    config = blind_twin(run.config)
    control = Run.open(config, run.control)
    train(control, make_demos(config, data), data, line=1)
    return control


def train_side_by_side(run: Run, data: Path = DATA, workers: int | None = None) -> None:
    """Train the run's policy and its blind control at the same time, half of the cores each.

    Two small models on half of the cores each are faster than one after the other on all of them; a GPU is given to one
    after the other, because its memory may not hold both.
    Raises LarError when the control's training failed; its own message stands above.
    """
    demos = make_demos(run.config, data, workers)
    if torch.cuda.is_available():
        train(run, demos, data)
        train_control(run, data)
        return
    control = multiprocessing.get_context("spawn").Process(target=_train_control, args=(run.path, data))
    control.start()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(max(1, threads // 2))
        train(run, demos, data)
    except KeyboardInterrupt:
        interrupt(control)  # a terminal's Ctrl-C has reached it already, a plain `kill` has not
        raise
    except BaseException:
        control.terminate()
        raise
    finally:
        control.join()
        torch.set_num_threads(threads)
    if control.exitcode:
        raise LarError("The blind control could not be trained, see above: mend that and run the same command again.")


def _train_control(path: Path, data: Path) -> None:
    """In a process of its own."""
    end_with_parent()
    quiet()
    forget_launch()
    use_cores()
    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    try:
        with on_stop(stop):
            train_control(Run.load(path), data)
    except LarError as error:
        sys.exit(f"lar: {error}")
    except Stopped as stopped:
        sys.exit(stopped.status)


def train_both(run: Run, data: Path = DATA, workers: int | None = None) -> None:
    """Train what of the run's policy and its blind control is not trained yet."""
    control = Run(run.control, run.config)
    alone = run.config.condition.blind or control.trained or control.results.exists()  # kept without its weights
    if not (run.trained and alone):
        (train_policy if alone else train_side_by_side)(run, data, workers)


def show_saliency(run: Run, data: Path = DATA, workers: int | None = None) -> dict:
    """Saliency, action and reconstruction scores on held-out demonstrations, with pictures for the report."""
    policy, stats = load_policy(run, device())
    return probe_heldout(run, policy, stats, make_demos(run.config, data, workers))


def scores(run: Run, data: Path = DATA, workers: int | None = None) -> dict:
    """What `show_saliency` finds; what an earlier call has left of it is read."""
    kept = run.path / "heldout.json"
    found = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() and (run.path / "gallery.npz").exists() else {}
    return found if "cause" in found else show_saliency(run, data, workers)  # earlier versions have left less


def show_photographs(run: Run, name: str, folder: Path, split: str = "val", limit: int = PHRASES) -> list[dict]:
    """Saliency scores on photographs with phrases, a data set of `data/phrases.py` in `folder`."""
    return score_photographs(run, load_policy(run, device())[0], name, folder, split, limit)


def roll_out_policy(run: Run, instructions: tuple[str, ...] | None = None, placement: str | None = None,
                    workers: int | None = None, cut: str = "") -> list[dict]:
    """Roll out the run's policy, and its blind control where that is trained, in `workers` scenes at the same time.

    instructions: kinds of `scene/episode.py`; None: all that the run's tasks have, and, without a placement, also the right
    one at the placements to which a policy of LIBERO's own scene goes on (`bench.elsewhere`). cut: the policy alone, without
    a path of attention (one of PATHS), in a folder inside the run's.
    """
    if cut:
        policy, stats = load_policy(run, device())
        return roll_out(without(run, cut), policy, stats, instructions=instructions or ("right",), placement=placement,
                        workers=workers, cut=cut)
    there = elsewhere(run.config.profile) if instructions is None and placement is None else []
    asked = {placement: instructions or kinds_of(run.config.profile.tasks), **dict.fromkeys(there, ("right",))}
    rows = _episodes(run, asked, workers)
    if (run.control / "config.yaml").exists() and (control := Run.load(run.control)).trained:
        rows = rows + _episodes(control, dict.fromkeys(asked, ("right",)), workers)
    return rows


def _episodes(run: Run, asked: dict[str | None, tuple[str, ...]], workers: int | None) -> list[dict]:
    """Kinds of instruction by placement (None: the run's own).

    The policy is loaded only where episodes are missing, and let go at once: a small GPU has no room for two.
    """
    if not run.trained or not all(rolled_out(run, kinds, placement) for placement, kinds in asked.items()):
        policy, stats = load_policy(run, device())
        for placement, kinds in asked.items():
            roll_out(run, policy, stats, instructions=kinds, placement=placement, workers=workers)
    return episodes_of(run)


def time_policy(run: Run) -> dict:
    """Latency of one policy step."""
    return measure_latency(run, load_policy(run, device())[0])


def time_training(run: Run) -> dict:
    """Parameters, operations, time and memory of one training step, beside those of `action_only`."""
    return measure_training(run)


def times(run: Run) -> None:
    """Time one policy step, and one training step beside one of `action_only`; what was timed before is kept."""
    if not (run.path / "latency.json").exists():
        time_policy(run)
    if not (run.path / "training_cost.json").exists():
        time_training(run)


def make_report(run: Run) -> tuple[dict, Path]:
    """results.json and report.html from what is there."""
    return gather_results(run), write_report(run)


def reproduce(run: Run, data: Path = DATA, workers: int | None = None,
              instructions: tuple[str, ...] | None = None) -> tuple[dict, Path]:
    """All steps in order, each skipped where it is done; returns the results and the report's path.

    workers: scenes that are simulated at the same time, one process each; None: one a core. instructions: as
    `roll_out_policy` has them.
    """
    train_both(run, data, workers)
    scores(run, data, workers)
    roll_out_policy(run, instructions, workers=workers)
    times(run)
    return make_report(run)
