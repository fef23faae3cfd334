"""How long a step will take and how much memory it needs, said before it begins.

For the tiny model, scaled from what one core of a 2-core Xeon took (most CPUs are within a factor of two of it; a GPU
is faster, so there these are upper bounds); a run that has begun is judged by its own speed. For PaliGemma, the
planner's figures.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import psutil
import torch

from . import estimate
from .run import processes
from .run.config import Profile, RunConfig
from .run.files import read_jsonl
from .run.folder import DATA, Run
from .scene.collect import demo_paths
from .scene.episode import kinds

STEPS = ("demonstrations", "training", "saliency", "rollouts", "latency")
DEMO, FRAMES = 4.4, 110  # seconds of one demonstration on one core, and the steps it has
SAMPLE = {"micro": 0.004, "tiny": 0.016}  # seconds of one training sample on one core
CONTROL = 0.016  # seconds of one control step of one environment on one core, two pictures and the policy included
STEPS_NEEDED = 0.6  # share of max_steps that an episode takes on average
TIMED = 22  # training steps that are timed, half of them the condition's, half those of action_only
LIBRARIES, START = 1.0, 8.0  # GiB and seconds of a process before it has done anything
POLL = 0.2  # seconds


@dataclass(frozen=True)
class Cost:
    """Seconds, and peak memory in GiB: of the GPU where there is one, else of this process and its workers.

    None: unknown.
    """

    seconds: float | None
    gib: float | None

    def __str__(self) -> str:
        return f"{duration(self.seconds)} and {'unknown memory' if self.gib is None else f'{self.gib:.1f} GiB'}"


UNKNOWN = Cost(None, None)


def duration(seconds: float | None) -> str:
    """`40 s`, `12 min`, `1 h 20 min`, `unknown time`."""
    if seconds is None:
        return "unknown time"
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def expected(run: Run, cores: int | None = None) -> dict[str, Cost]:
    """What is still to be done of each step of `run`, by name; training includes the blind control beside it.

    An estimate is advice: where there is none, for whatever reason, the cost is UNKNOWN, the reason is said, and the
    experiment goes on.
    """
    try:
        return _expected(run, cores or processes.cores())
    except Exception as error:  # a model without a plan, a GPU that is full, a log of another version, ...
        print(f"There is no estimate of time and memory: {str(error).strip() or type(error).__name__}")
        return dict.fromkeys(STEPS, UNKNOWN)


def _expected(run: Run, cores: int) -> dict[str, Cost]:
    config, profile = run.config, run.config.profile
    frames = profile.demos_per_task * len(profile.tasks) * FRAMES
    data = frames * (4 * profile.image_size**2 + 3 * profile.wrist_size**2) / 2**30  # rgb and segmentation, wrist
    if profile.backbone != "tiny":
        return _planned(config, cores)
    episodes = profile.episodes_per_task * round(_trials(profile) * _with_control(profile))
    episodes -= sum(len(read_jsonl(folder / "rollouts.jsonl")) for folder in (run.path, run.control))
    recorded = profile.demos == "expert" and all(path.exists() for path in demo_paths(config, DATA))
    rollout = CONTROL * STEPS_NEEDED * profile.max_steps
    return {
        "demonstrations": Cost(1.0 if recorded else START + DEMO * frames / FRAMES / cores, LIBRARIES * cores),
        "training": Cost(START + _sample_seconds(run) * _samples_left(run, config) * 2 / min(2, cores),
                         2 * (LIBRARIES + 2 * data)),  # episodes and data set are in memory at the same time
        "saliency": Cost(START + 0.1 * profile.grounding_frames, LIBRARIES + 2 * data),
        "rollouts": Cost((4 * START + rollout * episodes / cores) if episodes > 0 else 1.0, LIBRARIES * (1 + cores)),
        "latency": Cost(5.0 + TIMED * profile.batch_size * _sample_seconds(run), 1.5 * LIBRARIES),
    }


def _planned(config: RunConfig, cores: int) -> dict[str, Cost]:
    """For large models: the planner's figures; the blind control is trained and rolled out after the policy."""
    plan, profile = estimate.plan(config, estimate.this_machine(config)), config.profile
    gib, recorded = plan.peak / 2**30, profile.demos_per_task * len(profile.tasks) * DEMO / cores
    training = sum(seconds for step, seconds in plan.seconds.items() if step != "rollouts")
    return {"demonstrations": Cost(START + recorded, LIBRARIES * cores), "training": Cost(2 * training, gib),
            "saliency": Cost(profile.grounding_frames * plan.step_seconds / profile.batch_size, gib),
            "rollouts": Cost(plan.seconds["rollouts"] * _with_control(profile), gib), "latency": Cost(60.0, gib)}


def _trials(profile: Profile) -> int:
    """Kinds of instruction, over all tasks."""
    return sum(len(kinds(task, profile.tasks)) for task in profile.tasks)


def _with_control(profile: Profile) -> float:
    """How many times the policy's own rollouts are made, those of the blind control included: one kind a task."""
    return 1 + len(profile.tasks) / _trials(profile)


def _sample_seconds(run: Run) -> float:
    rows = read_jsonl(run.metrics)
    if rows:
        return rows[-1]["seconds"] / rows[-1]["step"] / run.config.profile.batch_size
    return SAMPLE["micro" if run.config.profile.text_width < 64 else "tiny"]


def _samples_left(run: Run, config: RunConfig) -> int:
    rows = read_jsonl(run.metrics)
    return 0 if run.trained else (config.steps - (rows[-1]["step"] if rows else 0)) * config.profile.batch_size


class PeakMemory:
    """`with PeakMemory() as peak: ...; peak.gib`: of the GPU, else of this process and the ones it started."""

    def __enter__(self) -> PeakMemory:
        self.gib, self._done = 0.0, threading.Event()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.look()

    def _watch(self) -> None:
        while not self._done.wait(POLL):
            self.look()

    def look(self) -> float:
        """The highest so far, in GiB."""
        now = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident()
        self.gib = max(self.gib, now / 2**30)
        return self.gib


def _resident() -> int:
    """Bytes in memory of this process and of all that it started."""
    own, total = psutil.Process(), 0
    for process in (own, *own.children(recursive=True)):
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:  # it has just ended
            continue
    return total
