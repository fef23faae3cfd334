"""What every notebook needs before its story begins: where it runs, how big, whose token, which folder.

    profile = choose_profile("auto")          # says which machine this is, and why this profile
    run = open_run("attention_mask", profile)       # says what is done already; on Colab, kept on Drive
    with step(run, "training"): ...           # says what is expected before, and what it took after

Everything here answers with plain sentences and falls back rather than fail.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from getpass import getpass
from pathlib import Path

import psutil
import torch

from . import pace, reproduce
from .config import PROFILES, make_config
from .data.dataset import DemoDataset, load_split
from .data.demos import Episode
from .data.stats import Stats
from .errors import LarError
from .evaluate.snapshots import keep_snapshots
from .files import read_jsonl
from .mirror import Mirror
from .reproduce import make_demos
from .run import DATA, RUNS, Run, provenance
from .runtime import device, native_bf16, quiet
from .train import make_dataset
from .view.show import clip, film, live_curves, say, show, table  # noqa: F401  (for the notebooks)

GPU_PROFILE, CPU_PROFILE = "t4", "tiny"
DRIVE = Path(os.environ.get("LAR_CONTENT", "/content")) / "drive"  # the variable is for tests of what Colab does
PATIENCE = 60  # seconds that a question for a token waits
# The smallest training whose heatmaps and rollouts can be talked about, for a notebook opened on its own.
QUICK = {"demos_per_task": 12, "samples": 6_000, "episodes_per_task": 4}
LICENCE = """PaliGemma's weights are free but gated. Three steps, once:
  1. accept the licence on https://huggingface.co/google/paligemma-3b-pt-224 (an account is needed),
  2. make a token that may read at https://huggingface.co/settings/tokens,
  3. put it into Colab's secrets (the key on the left) as HF_TOKEN, or set the environment variable HF_TOKEN."""

_mirrors: dict[Path, Mirror] = {}


def on_colab() -> bool:
    """Whether this is a Google Colab runtime."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def choose_profile(wanted: str = "auto") -> str:
    """Say what this machine is and how big to work on it; returns the profile's name.

    "auto": what LAR_PROFILE says; else PaliGemma on a GPU if its weights may be had, else the tiny model.
    Raises LarError for a profile that does not exist.
    """
    quiet()
    print(f"{'Colab' if on_colab() else 'Jupyter'} on {_machine()}; PyTorch {torch.__version__}.")
    profile, why = _choose(wanted)
    make_config(profile=profile)  # refuses a misspelt name
    print(f"Profile {profile}: {why} Another one: set PROFILE in the form above and run again.")
    return profile


def _choose(wanted: str) -> tuple[str, str]:
    if wanted != "auto":
        return wanted, "you chose it."
    if os.environ.get("LAR_PROFILE"):
        return os.environ["LAR_PROFILE"], "the environment variable LAR_PROFILE says so."
    if not torch.cuda.is_available():
        if on_colab():
            print("No GPU here. Runtime > Change runtime type > T4 GPU gives one, free; then run all again.")
        return CPU_PROFILE, "a small model that a CPU trains in minutes, with nothing to download."
    if GPU_PROFILE not in PROFILES:
        return CPU_PROFILE, "the GPU makes it quick."
    if sign_in():
        return GPU_PROFILE, "PaliGemma-3B, which fits this GPU in 8 bit."
    return CPU_PROFILE, "PaliGemma-3B would fit this GPU, but there is no token for its weights."


def _machine() -> str:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        numbers = "bf16" if native_bf16(device()) else "fp16 (no bf16 in hardware)"
        return f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, {numbers}"
    memory = psutil.virtual_memory()
    return (f"{provenance()['machine']}, no GPU, {len(os.sched_getaffinity(0))} cores, "
            f"{memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB free, fp32")


# --- secrets ----------------------------------------------------------------------------------------------------------

def sign_in(name: str = "HF_TOKEN", patience: float = PATIENCE) -> bool:
    """Make the token `name` known to this process: Colab's secrets, else the environment, else a question.

    The question gives up after `patience` seconds, and at once where nobody can answer. The token is neither printed
    nor saved. Returns whether there is one; if not, says how to get one.
    """
    token = _colab_secret(name, patience) or os.environ.get(name) or _ask(name, patience)
    if not token:
        print(LICENCE)
        return False
    os.environ[name] = token.strip()
    return True


def _colab_secret(name: str, patience: float) -> str | None:
    if not on_colab():
        return None
    try:
        from google.colab import userdata
        with time_limit(patience):
            return userdata.get(name)
    except Exception:  # no such secret, no access granted, no browser to ask: each has its own exception
        return None


def _ask(name: str, patience: float) -> str | None:
    try:
        with time_limit(patience):
            return getpass(f"{name} (Enter for none, waits {patience:.0f} seconds): ")
    except Exception:  # too late, or a front end without keyboard
        return None


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after `seconds`; without effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    def late(*_: object) -> None:
        raise TimeoutError(f"nothing happened for {seconds:.0f} seconds")
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- run folder -------------------------------------------------------------------------------------------------------

def work_folder() -> Path:
    """Where runs and data go: LAR_WORK, else /content on Colab, else the checkout, else the present folder."""
    if os.environ.get("LAR_WORK"):
        return Path(os.environ["LAR_WORK"])
    if on_colab():
        return DRIVE.parent if DRIVE.parent.exists() else Path.cwd()
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").exists() else Path.cwd()


def open_run(condition: str, profile: str, *, drive: bool = False, name: str | None = None, **changes: object) -> Run:
    """Go to the work folder, open or create a run there, and say what of it is done.

    drive: on Colab, keep a copy on Google Drive and begin with what an earlier session left there; where that cannot be
    had, say so once and work locally. name: of the run's folder, when it is not the usual one.
    """
    folder = work_folder()
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if drive and on_colab():
        _keep_on_drive(folder)
    config = make_config(condition, profile, **changes)
    run = Run.open(config, RUNS / name if name else None)
    print(f"Run folder {run.path}, in {folder.name or folder}. {_done(run)}")
    return run


def trained_run(condition: str, profile: str, *, drive: bool = False, data: Path = DATA) -> Run:
    """A run whose policy is trained: what an earlier notebook left, or else a small one, trained here and now."""
    run = open_run(condition, profile, drive=drive)
    if run.trained:
        return run
    config = run.config if profile == "micro" else make_config(condition, profile, **QUICK)
    quick = run if config == run.config else open_run(condition, profile, name=f"{config.name}-quick", **QUICK)
    if not quick.trained:
        print(f"No trained {condition} was found. A small one is trained now: {config.profile.demos_per_task} "
              f"demonstrations, {config.profile.samples} samples. Notebook 00 makes the full one.")
        with step(quick, "training"):
            train_all(quick, data)
    return quick


def _done(run: Run) -> str:
    """What of a run is there, in a sentence."""
    if not any(run.path.glob("*.json*")) and not run.checkpoints():
        return "It is new."
    steps = int(run.checkpoints()[-1].name.removeprefix("step_")) if run.checkpoints() else 0
    parts = [f"training {steps} of {run.config.steps} steps"]
    parts += ["saliency"] if (run.path / "heldout.json").exists() else []
    parts += [f"{count} rollouts"] if (count := len(read_jsonl(run.path / "rollouts.jsonl"))) else []
    parts += ["latency"] if (run.path / "latency.json").exists() else []
    return f"Done so far: {', '.join(parts)}."


def _keep_on_drive(folder: Path) -> None:
    if folder in _mirrors:
        return
    try:
        from google.colab import drive
        drive.mount(str(DRIVE))
        there = DRIVE / "MyDrive" / "la-reconvla"
        there.mkdir(parents=True, exist_ok=True)
    except Exception as error:  # refused, timed out, no space for the folder: each has its own exception
        print(f"Google Drive is not there ({error}). Work goes on in {folder}, which Colab forgets at a disconnect.")
        _mirrors[folder] = None
        return
    mirrors = [Mirror(folder / part, there / part) for part in (RUNS, DATA / "demos")]
    brought = sum(mirror.restore() for mirror in mirrors)
    print(f"Kept on Google Drive, in {there}; {brought} files were brought back from there.")
    for mirror in mirrors:
        mirror.start()
    _mirrors[folder] = mirrors


# --- what several notebooks do ----------------------------------------------------------------------------------------

def train_all(run: Run, data: Path = DATA) -> None:
    """Train the run's policy and its blind control: at the same time on CPU cores, one after the other on a GPU.

    What the decoder makes of two held-out frames is kept on the way (see `evaluate.snapshots`).
    """
    with keep_snapshots(run, heldout_dataset(run, data)):
        if run.trained and (run.config.condition.blind or Run(run.control, run.config).trained):
            return
        if run.config.condition.blind:
            reproduce.train_policy(run, data)
        elif torch.cuda.is_available():
            reproduce.train_policy(run, data)
            reproduce.train_control(run, data)
        else:
            reproduce.train_side_by_side(run, data)


def heldout_episodes(run: Run, data: Path = DATA) -> list[Episode]:
    """Demonstrations that the run is never trained on, without no-op steps."""
    return load_split(make_demos(run.config, data), run.config.profile.heldout_fraction, run.config.seed)[1]


def heldout_dataset(run: Run, data: Path = DATA) -> DemoDataset:
    """The frames of `heldout_episodes`, on the scales of the training episodes."""
    config = run.config
    train, heldout = load_split(make_demos(config, data), config.profile.heldout_fraction, config.seed)
    return make_dataset(heldout, Stats.of(train), config)


# --- long steps -------------------------------------------------------------------------------------------------------

@contextmanager
def step(run: Run, name: str) -> Iterator[None]:
    """Say what time and memory the long step `name` (one of pace.STEPS) will take; after it, what it took.

    Raises LarError when memory runs out, with the estimate and the setting to lower.
    """
    expected = pace.expected(run)[name]
    print(f"{name.capitalize()}: {expected} expected.")
    began = time.perf_counter()
    with pace.PeakMemory() as peak:
        try:
            yield
        except (torch.cuda.OutOfMemoryError, MemoryError) as error:
            profile = run.config.profile
            raise LarError(f"Memory ran out during {name} (expected: {expected}): lower batch_size (it is "
                           f"{profile.batch_size}), or choose a smaller profile; finished work is kept.") from error
        finally:
            for mirror in _mirrors.get(Path.cwd()) or ():
                mirror.sync()
    took = replace(expected, seconds=time.perf_counter() - began, gib=peak.gib)
    print(f"{name.capitalize()}: it took {took}; expected were {expected}.")
