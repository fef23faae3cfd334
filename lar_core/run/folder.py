"""The run folder: the one thing that passes between commands, notebooks and machines.

    config.yaml                what was asked for
    backbone/                  the untrained backbone (tiny profiles only), in transformers' own format
    stats.json                 normalisation of actions and proprioception
    checkpoints/step_000250/   model.safetensors, trainer.pt (optimiser and step), complete only when renamed; the metadata
                               of the weights name the identity of the backbone that they were trained on
    metrics.jsonl              one line a logged training step
    rollouts.jsonl, rollouts/  one line an episode; videos
    heldout.json, gallery.npz  scores and pictures on held-out demonstrations; latency.json; training_cost.json
    control/                   the blind control, a run folder of its own (runs of a study share one beside them)
    results.json, report.html
    .lock, .lock-owner         held by the process that trains or rolls out, and which one that is

Each step reads what it needs from here and skips what is already done.
"""

from __future__ import annotations

import math
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .config import CONDITIONS, RunConfig
from .errors import LarError
from .files import locked
from .versions import versions

RUNS = Path("runs")
DATA = Path("data")
PATIENCE = 5  # seconds: what was killed a moment ago may not be quite gone


class Run:
    """A run folder, its configuration, and where what it holds lies, made already or not."""

    def __init__(self, path: Path, config: RunConfig):
        self.path, self.config = path, config
        self.backbone, self.stats, self.metrics = path / "backbone", path / "stats.json", path / "metrics.jsonl"
        self.results, self.report = path / "results.json", path / "report.html"
        self.final_checkpoint = path / "checkpoints" / f"step_{config.steps:06d}"

    @classmethod
    def open(cls, config: RunConfig, path: Path | str | None = None) -> Run:
        """Open or create the folder for `config` (default: runs/<name>).

        Raises LarError when the folder belongs to another configuration, naming the first difference.
        """
        path = Path(path) if path else RUNS / config.name
        existing = path / "config.yaml"
        if existing.exists():
            if (old := RunConfig.load(existing)) != config:
                raise _other_run(old, config, path)
        elif path.exists() and any(not entry.name.startswith(".") for entry in path.iterdir()):
            raise LarError(f"{path} is not empty and has no config.yaml: choose another --run-dir.")
        else:
            config.save(existing)
        return cls(path, config)

    @classmethod
    def load(cls, path: Path | str) -> Run:
        """Open an existing run folder. Raises LarError when there is none."""
        path = Path(path)
        if not (path / "config.yaml").exists():
            raise LarError(f"There is no run in {path}: make one with `lar train --run-dir {path}`.")
        return cls(path, RunConfig.load(path / "config.yaml"))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Train or roll out inside this, so that no other process adds to the same files. A kill ends it.

        Raises LarError where another process is at it. A blind control, which several runs share, is waited for instead.
        """
        patience = math.inf if self.config.condition.blind else PATIENCE
        with locked(self.path / ".lock", f"training or rolling out {self.config.name}", patience):
            yield

    @property
    def control(self) -> Path:
        """The run folder of this run's blind control: its own, or one of the same settings that lies beside it.

        Cached or not, grey pictures give the same: so an arm that cannot use a cache shares the control of those that do.
        """
        own, twin = self.path / "control", blind_twin(self.config)
        shared = self.path.parent / twin.name / "config.yaml"
        if own.exists() or self.config.condition.blind or not shared.exists():
            return own
        beside = RunConfig.load(shared).replace(cache=False)
        return shared.parent if beside == twin.replace(cache=False) else own

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(path for path in (self.path / "checkpoints").glob("step_*") if path.is_dir())

    @property
    def trained(self) -> bool:
        """Whether the last checkpoint is there."""
        return self.final_checkpoint.exists()


def blind_twin(config: RunConfig) -> RunConfig:
    """The blind control's configuration: the same recipe and seed, trained without images; as deaf as the policy is."""
    layers = config.condition.saliency_layers  # what the profile allows
    control = CONDITIONS["blind_deaf" if config.condition.deaf else "blind"]
    return config.replace(condition=control.replace(saliency_layers=layers))


def without(run: Run, path: str) -> Run:
    """The folder, inside a run's, of rollouts without a path of attention; no films, which show saliency."""
    return Run.open(run.config.replace(videos_per_task=0), run.path / f"without_{path}")


def provenance() -> dict[str, str]:
    """Versions, machine and commit that a result was made with."""
    return {"commit": _commit(), "python": platform.python_version(), "machine": _processor(), **versions()}


def _processor() -> str:
    """The processor's model name where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, with '+' when files differ from it; 'unknown' outside a checkout."""
    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _other_run(old: RunConfig, new: RunConfig, path: Path) -> LarError:
    """The sentence on a folder of another configuration, naming the first difference."""
    before, after = ({"seed": config.seed} | {f"{part}.{name}": value for part in ("condition", "profile")
                                              for name, value in config.model_dump()[part].items()} for config in (old, new))
    name = next(name for name in after | before if before.get(name, 0) != after.get(name, 0))
    return LarError(f"{path} holds a run of another configuration ({name} is {before.get(name, 0)!r} there and "
                    f"{after.get(name, 0)!r} now): choose another --run-dir, or the same settings as before.")
