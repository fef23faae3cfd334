"""What a policy is told in a rollout, and which bowl then counts: one kind of instruction at a time.

    right       the scene's own sentence
    blank       a full stop
    other_task  the sentence of another of the profile's tasks, one that names no bowl of this scene
    other_bowl  the same scene, but the sentence that names its other bowl: success is *that* bowl on the plate, and the
                scene's own bowl on the plate is counted as "did not listen"

Under the first three success is that of the scene's own sentence. Not every scene has every kind: `kinds` says which.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..run.config import INSTRUCTIONS
from ..run.errors import LarError
from .env import instruction
from .placements import OTHER_SENTENCE, RELATIONS, Scene

BLANK = "."  # the shortest sentence that is not empty


def told(kind: str, scene: Scene, tasks: Sequence[int]) -> str:
    """The sentence of a kind that `scene` has (`kinds`); tasks: those of the profile."""
    if kind == "blank":
        return BLANK
    if kind == "other_task":
        return instruction(other_task(scene.task, tasks))
    return scene.of_other_bowl().instruction if kind == "other_bowl" else scene.instruction


def other_task(task: int, tasks: Sequence[int]) -> int | None:
    """The task of `tasks` whose sentence is told in the scene of `task`, or None: the first one from three further on.

    A sentence that is true of either bowl of this scene would be another question, so those are passed over.
    """
    others = [other for other in tasks if other != task and RELATIONS[other][0] not in RELATIONS[task]]
    return min(others, key=lambda other: (other - task - 3) % len(RELATIONS), default=None)


def kinds(task: int, tasks: Sequence[int]) -> tuple[str, ...]:
    """Those of `INSTRUCTIONS` that the scene of `task` has in a profile of `tasks`."""
    missing = {"other_task": other_task(task, tasks) is None, "other_bowl": task not in OTHER_SENTENCE}
    return tuple(kind for kind in INSTRUCTIONS if not missing.get(kind))


def kinds_of(tasks: Sequence[int]) -> tuple[str, ...]:
    """The kinds that at least one task of a profile has: what is rolled out unless others are asked for."""
    return tuple(kind for kind in INSTRUCTIONS if any(kind in kinds(task, tasks) for task in tasks))


def check_kinds(asked: Sequence[str], tasks: Sequence[int]) -> None:
    """Raise LarError for a kind that no task of the profile has; say which tasks lack one that others have."""
    for kind in asked:
        without = [task for task in tasks if kind not in kinds(task, tasks)]
        names = ", ".join(map(str, without))
        if len(without) == len(tasks):
            raise LarError(f"There is no {kind} instruction for task {names}: {_WHY[kind]} "
                           f"Kinds to ask for here: {', '.join(kinds_of(tasks))}.")
        if without:
            print(f"Task {names} is left out under {kind} instructions: {_WHY[kind]}")


_WHY = {"other_task": "it takes the sentence of another task of the profile that names neither bowl of the scene.",
        "other_bowl": "in its scene no sentence of LIBERO-Spatial names the other bowl alone."}
