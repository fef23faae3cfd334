"""The command line: `lar STEP`, one step of the experiment at a time, or all of them with `lar reproduce`."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from .options import build_parser
from .run.config import RunConfig, make_config
from .run.conventions import stated_conventions
from .run.errors import LarError, cause, unknown
from .run.folder import Run
from .run.processes import on_stop, processes, stop


def main(argv: list[str] | None = None) -> int:
    """Run one command; foreseeable failures become one sentence and exit code 2, a signal (Ctrl-C is 2) 128 more than it."""
    arguments = build_parser().parse_args(argv)
    try:
        with on_stop(stop):
            if arguments.step != "doctor":  # which must not need what it examines
                _prepare()
            processes(getattr(arguments, "workers", None))  # refuses none
            COMMANDS[arguments.step](arguments)
        return 0
    except LarError as error:
        print(f"lar: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"lar: {error.strerror or error}: {error.filename or ''} ({cause(error) or 'mend that'}). Then run the same "
              "command again; finished work is kept.", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print("lar: stopped. Finished work is kept: run the same command again to go on.", file=sys.stderr)
        return getattr(stopped, "status", 130)


def _prepare() -> None:
    from .run.runtime import quiet, use_cores
    quiet()
    use_cores()


def config_of(arguments: argparse.Namespace) -> RunConfig:
    """The run configuration that the options describe. Raises LarError for anything that is not one."""
    if _brings_settings(arguments):
        return Run.load(arguments.run_dir).config
    return make_config(arguments.condition or "attention_mask", arguments.profile or "tiny", arguments.seed or 0,
                       **_changes(arguments))


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that differ from the presets."""
    changes = _stated(arguments.changes)
    if own := changes.keys() & {"condition", "profile", "seed"}:
        raise LarError(f"--set changes single fields, not {min(own)}: say --{min(own)} {changes[min(own)]}.")
    if arguments.tasks:
        changes["tasks"] = tuple(arguments.tasks)
    if arguments.placement:
        changes["placement"] = arguments.placement
    return changes


def _stated(words: Sequence[str]) -> dict[str, Any]:
    """What --set says, FIELD=VALUE as YAML. Raises LarError for what is not."""
    stated = {}
    for word in words:
        name, separator, value = word.partition("=")
        try:
            stated[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            separator = ""
        if not separator:
            raise LarError(f"--set takes FIELD=VALUE, not {word!r}: for example --set samples=48000.")
    return stated


def _run_of(arguments: argparse.Namespace) -> Run:
    """The run folder; one that exists is used with its own settings when no others are named."""
    if _brings_settings(arguments):
        return Run.load(arguments.run_dir)
    return Run.open(_settled(arguments), arguments.run_dir)


def _settled(arguments: argparse.Namespace) -> RunConfig:
    from .scene.bench import settled
    return settled(config_of(arguments), arguments.run_dir, arguments.data_dir)


def _brings_settings(arguments: argparse.Namespace) -> bool:
    """Whether a run folder that exists is named, and no settings are."""
    named = (arguments.condition, arguments.profile, arguments.seed, arguments.tasks, arguments.placement)
    exists = arguments.run_dir is not None and (arguments.run_dir / "config.yaml").exists()
    return exists and not arguments.changes and all(value is None for value in named)


def _reproduce(arguments: argparse.Namespace) -> None:
    from . import steps
    _print_report(steps.reproduce(_run_of(arguments), arguments.data_dir, arguments.workers))


def _look(arguments: argparse.Namespace) -> None:
    from .show.look import look, write_look
    asked = {name: value for name, value in vars(arguments).items() if name not in ("step", "out")}
    print(write_look(arguments.out, look(**asked)))


def _demos(arguments: argparse.Namespace) -> None:
    from . import steps
    paths = steps.make_demos(_settled(arguments), arguments.data_dir, arguments.workers)
    for path in [steps.copy_demos(paths, *arguments.to)] if arguments.to else paths:
        print(path)


def _check_demos(arguments: argparse.Namespace) -> None:
    from .scene.check_demos import check_demos
    changes = _stated(arguments.changes)
    if foreign := set(changes) - {"demos_conventions"}:
        raise unknown("setting of check-demos", min(foreign), ["demos_conventions"])
    check_demos(arguments.path, stated_conventions(str(changes.get("demos_conventions", ""))), arguments.picture_dir)


def _pretrain(arguments: argparse.Namespace) -> None:
    from .measure.sight import table
    from .pretrain import pretrain, pretrained, pretraining_config
    from .show.pictures import write_picture
    if _brings_settings(arguments) and arguments.recipe is None:
        run = Run.load(arguments.run_dir)
    elif arguments.condition:
        raise LarError("Pre-training has recipes of its own instead of conditions: say --recipe places or --recipe words.")
    else:
        config = pretraining_config(arguments.recipe or "places", arguments.profile or "pretrain", arguments.seed or 0,
                                    **_changes(arguments))
        run = Run.open(config, arguments.run_dir)
    found = pretrain(run, arguments.data_dir, arguments.workers)
    print(table({name: found[name] for name in ("before", "early", "after", "centre")}))
    print(f"\nPicture: {write_picture(run).resolve()}\nUse it in any condition: --set backbone={pretrained(run)}")


def _train(arguments: argparse.Namespace) -> None:
    from . import steps
    run = _run_of(arguments)
    steps.train_policy(run, arguments.data_dir, arguments.workers)
    print(run.final_checkpoint)


def _measure(arguments: argparse.Namespace) -> None:
    """The steps that only add to the report."""
    from . import steps
    run = _run_of(arguments)
    match arguments.step:
        case "saliency":
            steps.show_saliency(run, arguments.data_dir, arguments.workers)
        case "photographs":
            if arguments.limit < 1:
                raise LarError(f"--limit is {arguments.limit}, but must be at least 1.")
            steps.show_photographs(run, arguments.set, arguments.folder, arguments.split, arguments.limit)
        case "rollout":
            steps.roll_out_policy(run, tuple(arguments.instructions), arguments.on, arguments.workers, arguments.cut)
        case "latency":
            steps.time_policy(run)
            steps.time_training(run)
    _print_report(steps.make_report(run))


def _print_report(made: tuple[dict, Path]) -> None:
    from .measure.kept import beside_kept
    from .show.report import kept_table, summary_table
    results, report = made
    print(summary_table(results), kept_table(beside_kept(results)), f"Report: {report.resolve()}", sep="\n\n")


def _study(arguments: argparse.Namespace) -> None:
    from .measure.study import Study
    from .show.report import study_table
    from .studies import compare_so_far, run_study
    asked = Study.load(arguments.study), arguments.run_dir, arguments.data_dir
    comparison, page = compare_so_far(*asked) if arguments.so_far else run_study(
        *asked, arguments.workers, arguments.engine, arguments.address)
    print(study_table(comparison), f"\nComparison: {page.resolve()}", sep="\n")


def _serve(arguments: argparse.Namespace) -> None:
    from .model.policy import load_policy
    from .run.runtime import device
    from .vla import serving
    with serving(*load_policy(Run.load(arguments.run_dir), device()), arguments.host, arguments.port) as address:
        print(f"Serving {arguments.run_dir} at {address} (Ctrl-C ends it)", flush=True)
        threading.Event().wait()


def _audit(arguments: argparse.Namespace) -> None:
    from .audit import audit
    changes = _stated(arguments.changes) | ({"tasks": tuple(arguments.tasks)} if arguments.tasks else {})
    _print_report(audit(arguments.server, arguments.run_dir, changes, arguments.instructions, arguments.on,
                        arguments.pictures, arguments.timeout, arguments.workers))


def _push(arguments: argparse.Namespace) -> None:
    from . import share
    if (arguments.repo_id is None) == (arguments.to is None):
        raise LarError("Say where the policy goes: either a name on the hub, OWNER/NAME, or --to FOLDER.")
    run = _run_of(arguments)
    print(share.export(run, arguments.to) if arguments.to else
          share.push(run, arguments.repo_id, private=not arguments.public))


def _doctor(arguments: argparse.Namespace) -> None:
    from . import doctor
    asked = (arguments.full_size, arguments.profile, arguments.machine, arguments.condition, arguments.changes,
             arguments.tasks, arguments.placement, _brings_settings(arguments))
    if not any(asked):
        if not doctor.examine():
            raise LarError("Something above is missing: follow the line beside it, then run `lar doctor` again.")
        return
    from .estimate import T4
    _prepare()
    if arguments.full_size:
        from .full_size import full_size_config
        if arguments.profile not in (None, "t4"):
            raise LarError("--full-size runs what profile t4 does: leave --profile out, and change fields by --set.")
        config = full_size_config(arguments.condition or "attention_mask", arguments.seed or 0, **_changes(arguments))
        doctor.full_size(config, arguments.data_dir)
    else:
        doctor.show_plan(config_of(arguments), T4 if arguments.machine else None)
        if not arguments.machine:
            doctor.ask(config_of(arguments))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "reproduce": _reproduce, "look": _look, "demos": _demos, "check-demos": _check_demos, "pretrain": _pretrain,
    "train": _train, "study": _study, "push": _push, "doctor": _doctor, "serve": _serve, "audit": _audit,
    **dict.fromkeys(("saliency", "photographs", "rollout", "latency", "report"), _measure),
}

if __name__ == "__main__":
    sys.exit(main())
