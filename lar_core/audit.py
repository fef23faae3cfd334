"""`lar audit`: whatever policy a vla-eval model server serves, under the tests of this package that need no training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measure.results import AUDIT, SHOWN_GREY
from .measure.rollout import roll_out_plan
from .run.config import CONDITIONS, RunConfig
from .run.folder import Run
from .run.settings import Profile
from .scene.bench import settled
from .scene.episode import kinds_of
from .steps import make_report

SHOWN = ("seen", "grey")
IN_GREY = ("right", "blank")  # with grey pictures no other sentence asks anything


def audit(server: str, folder: Path, changes: dict[str, Any], instructions: Sequence[str] | None = None,
          placement: str | None = None, pictures: Sequence[str] = SHOWN, timeout: float = 60,
          workers: int | None = None) -> tuple[dict, Path]:
    """Roll out the policy served at `server` (ws://HOST:PORT); results and the report's path, as of a run of ours.

    changes: fields of the profile. instructions: kinds of `scene/episode.py`; None: all that the tasks have. placement:
    None: the profile's. pictures: those of SHOWN; grey ones are rolled out as the run's control, a folder in it. timeout:
    seconds for one answer.
    Raises LarError for all that a server can do wrong; finished episodes are kept, and not repeated.
    """
    from .vla import Asked

    with Asked(server, timeout) as plan:
        run = Run.open(_config(plan, folder, changes), folder)
        instructions = tuple(instructions or kinds_of(run.config.profile.tasks))
        if "seen" in pictures:
            roll_out_plan(run, plan, instructions=instructions, placement=placement, workers=workers)
        told = tuple(kind for kind in IN_GREY if kind in instructions)
        if "grey" in pictures and told:
            plan.grey = True
            roll_out_plan(_grey(run), plan, instructions=told, placement=placement, workers=workers)
    return make_report(run)


def _config(plan: Any, folder: Path, changes: dict[str, Any]) -> RunConfig:
    from .vla import sizes
    name = str(plan.info.get("model_server") or "served")
    fixed = {"name": AUDIT, "backbone": "served", "patch_size": 1, "chunk": 1, "execute": 1}
    profile = Profile(**{"tasks": tuple(range(10))} | fixed | sizes(plan.asked) | changes)
    return settled(RunConfig(condition=CONDITIONS["action_only"].replace(name=name), profile=profile), folder)


def _grey(run: Run) -> Run:
    """The folder of the same policy shown grey pictures: where a run of ours has its blind control."""
    condition = run.config.condition
    return Run.open(run.config.replace(condition=condition.replace(name=condition.name + SHOWN_GREY, blind=True)),
                    run.path / "control")
