"""What every notebook needs before its story begins: where it runs, how big, whose token, which folder.

    profile = choose_profile("auto")          # says which machine this is, and why this profile
    run = open_run("attention_mask", profile)       # says what is done already; on Colab, kept on Drive
    with step(run, "training"): ...           # says what is expected before, and what it took after
    scores(run)                               # makes what an earlier notebook has not left

Everything here answers with plain sentences and falls back rather than fail. huggingface_hub finds the token for PaliGemma's
gated weights (HF_TOKEN, `hf auth login`, Colab's secrets); one that is typed in here is kept in the memory of this process
and nowhere else, and none is ever printed or saved.
"""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getpass
from pathlib import Path

import psutil
import torch
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from . import estimate, steps
from .data.dataset import DemoDataset, Stats, load_split, make_dataset
from .data.demos import Episode
from .data.hub import here
from .drive import Mirror
from .measure import maps
from .measure.costs import meter
from .measure.probes import keep_snapshots
from .model.policy import Policy
from .run.config import make_config
from .run.errors import LarError
from .run.files import append_jsonl, read_jsonl
from .run.folder import DATA, RUNS, Run, provenance
from .run.processes import cores
from .run.runtime import device, native_bf16, quiet, use_cores
from .scene.bench import settled
from .show.cells import clip, film, live_curves, say, show, table, tell  # noqa: F401  (for the notebooks)
from .steps import scores, times  # noqa: F401

GPU_PROFILE = "t4"
DRIVE = Path(os.environ.get("LAR_CONTENT", "/content")) / "drive"  # the variable is for tests of what Colab does
# The smallest training whose heatmaps and rollouts can be talked about, for a notebook opened on its own.
QUICK = {"demos_per_task": 12, "samples": 6_000, "episodes_per_task": 4}
PATIENCE = 60  # seconds that a question for a token waits
ANSWER = 20  # seconds that the hub has to answer
WEIGHTS = "google/paligemma-3b-pt-224"
LICENCE = f"""PaliGemma's weights are free but gated. Three steps, once:
  1. accept the licence on https://huggingface.co/{WEIGHTS} (an account is needed),
  2. make a token that may read at https://huggingface.co/settings/tokens,
  3. put it into Colab's secrets (the key on the left) as HF_TOKEN, or set the environment variable HF_TOKEN;
     then restart the session, which asks for both only once."""
_mirrors: dict[Path, list[Mirror]] = {}
_refused: dict[Path, str] = {}  # why Drive could not be had


def on_colab() -> bool:
    """Whether this is a Google Colab runtime."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def choose_profile(wanted: str = "auto") -> str:
    """Say what this machine is and how big to work on it; returns the profile's name.

    "auto": what LAR_PROFILE says; else PaliGemma on a GPU, else a small model. PaliGemma only where its weights are here
    or the hub gives them to this user: a notebook goes on with the small model otherwise, and says so.
    Raises LarError for a profile that does not exist.
    """
    quiet()
    use_cores()
    print(f"{'Colab' if on_colab() else 'Jupyter'} on {_machine()}; PyTorch {torch.__version__}.")
    profile, why = _choose(wanted)
    print(f"Profile {profile}: {why} Another one: set PROFILE in the form above and run again.")
    return profile


def _choose(wanted: str) -> tuple[str, str]:
    if wanted != "auto":
        return _allowed(wanted, "you chose it.")
    if os.environ.get("LAR_PROFILE"):
        return _allowed(os.environ["LAR_PROFILE"], "the environment variable LAR_PROFILE says so.")
    if not torch.cuda.is_available():
        if on_colab():
            print("No GPU here. Runtime > Change runtime type > T4 GPU gives one, free; then run all again.")
        return _small(), "a small model that a CPU trains in minutes, with nothing to download."
    return _allowed(GPU_PROFILE, "PaliGemma-3B, which fits this GPU in 8 bit.")


def _allowed(profile: str, why: str) -> tuple[str, str]:
    """The profile, or a small one where its weights are PaliGemma's and may not be had."""
    if make_config(profile=profile).profile.miniature or sign_in():
        return profile, why
    return _small(), (f"{profile} needs PaliGemma-3B, whose weights may not be had (see above), so the small model is "
                      "used.")


def _small() -> str:
    """Colab's two cores are one of other machines, and a first look shall end within a quarter of an hour there."""
    return "colab" if on_colab() else "tiny"


def _machine() -> str:
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        numbers = "bf16" if native_bf16(device()) else "fp16 (no bf16 in hardware)"
        return f"{torch.cuda.get_device_name()}, {memory:.0f} GiB, {numbers}"
    memory = psutil.virtual_memory()
    return (f"{provenance()['machine']}, no GPU, {cores()} cores, "
            f"{memory.available / 2**30:.0f} of {memory.total / 2**30:.0f} GiB free, fp32")


# --- access to PaliGemma's weights: whose token, and whether the hub lets its owner read them --------------------------

def sign_in(patience: float = PATIENCE) -> bool:
    """Whether PaliGemma's weights may be read: they are on this machine, or the hub gives them to this user's token.

    Where no token is known, one is asked for; the question gives up after `patience` seconds, and at once where nobody
    can answer. If the weights may not be had, says why, in the hub's words, and what to do.
    """
    if here("paligemma-3b-pt-224"):
        return True
    known = _known(patience)
    token = known or _ask(patience)
    if not token:
        print(LICENCE)
        return False
    refusal = _refusal(token)
    if refusal:
        print(refusal.replace(token, "(the token)"))
    elif not known:
        os.environ["HF_TOKEN"] = token  # for this process and those that it starts; a refused one is asked for again
    return refusal is None


def _known(patience: float) -> str | None:
    try:
        with time_limit(patience):  # Colab asks its reader for permission
            return get_token()
    except Exception as error:  # a vault that does not answer, an unreadable file: a token may still be typed in
        print(f"No token was found ({type(error).__name__}).")
        return None


def _refusal(token: str) -> str | None:
    """None if the hub gives the weights to this token; otherwise why not, told apart, and what to do."""
    if not re.fullmatch(r"[!-~]+", token):  # the library would complain with the token in its message
        return f"The token holds blanks or letters that no token has: copy it once more, and nothing else. {LICENCE}"
    try:
        with time_limit(ANSWER):
            HfApi().auth_check(WEIGHTS, token=token)
    except HfHubHTTPError as error:
        return _of_the_hub(error, token)
    except Exception as error:  # no network, a proxy, the hub is down, offline mode: nothing is known of the token
        return (f"The hub could not be asked whether {WEIGHTS} may be read ({type(error).__name__}: {error}), and the "
                "weights are not on this machine: check the connection (and that HF_HUB_OFFLINE is not set).")
    return None


def _of_the_hub(error: HfHubHTTPError, token: str) -> str:
    status, words = error.response.status_code, error.server_message or " ".join(str(error).split())
    said = f"The hub refuses {WEIGHTS} (HTTP {status}: {words})"
    if status >= 500 or status == 429:
        return f"{said}. That is no fault of the token: try again later."
    if status == 401 or not _valid(token):
        return f"{said}: the token is invalid, expired or mistyped. Make another one, steps 2 and 3. {LICENCE}"
    if "fine-grained" in words or not isinstance(error, GatedRepoError | RepositoryNotFoundError):
        return (f"{said}: the token is valid but lacks the right. Edit it on https://huggingface.co/settings/tokens and "
                "allow it to read public gated repositories, or make one of the kind \"read\".")
    return f"{said}: the token is valid, but its owner has not accepted the licence, step 1. {LICENCE}"


def _valid(token: str) -> bool:
    """Whether the hub knows the token's owner; where that cannot be asked, yes."""
    try:
        with time_limit(ANSWER):
            HfApi().whoami(token=token)
    except HfHubHTTPError as error:
        return error.response.status_code != 401
    except Exception:  # no answer
        return True
    return True


def _ask(patience: float) -> str | None:
    try:
        with time_limit(patience):
            return getpass(f"HF_TOKEN (Enter for none, waits {patience:.0f} seconds): ").strip()
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
        os.environ["LAR_WORK"] = str(Path(os.environ["LAR_WORK"]).resolve())  # the present folder is about to change
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
    where = RUNS / name if name else None
    run = Run.open(settled(make_config(condition, profile, **changes), where), where)
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
    if folder in _mirrors and all(mirror.mounted for mirror in _mirrors[folder]):
        return
    try:
        from google.colab import drive
        drive.mount(str(DRIVE))
        there = DRIVE / "MyDrive" / "la-reconvla"
        there.mkdir(exist_ok=True)  # MyDrive itself is there, or else nothing is mounted
    except Exception as error:  # refused, timed out, no space for the folder: each has its own exception
        if _refused.get(folder) != str(error):
            print(f"Google Drive is not there ({error}). Work goes on in {folder}, which Colab forgets at a disconnect. "
                  "Run this cell again to try again.")
        _refused[folder] = str(error)
        return
    for mirror in _mirrors.pop(folder, ()):  # Drive was unmounted meanwhile; what they know is kept in the work folder
        mirror.end()
    mirrors = [Mirror(folder / part, there / part) for part in (RUNS, DATA / "demos")]
    brought = sum(mirror.restore() for mirror in mirrors)
    print(f"Kept on Google Drive, in {there}; {brought} files were brought back from there.")
    for mirror in mirrors:
        mirror.start()
    _mirrors[folder] = mirrors


def _sync() -> None:
    """Copy to Drive now; say what is not there yet."""
    mirrors = [mirror for some in _mirrors.values() for mirror in some]  # wherever the notebook has gone meanwhile
    for mirror in mirrors:
        mirror.sync()
    if unsaved := sum(len(mirror.unsaved) for mirror in mirrors):
        print(f"Not on Drive yet: {unsaved} files of this machine.")


# --- what several notebooks do ----------------------------------------------------------------------------------------

def train_all(run: Run, data: Path = DATA) -> None:
    """Train the run's policy and its blind control, what of them is not trained yet.

    What the decoder makes of two held-out frames is kept on the way (see `measure/snapshots.py`).
    """
    with keep_snapshots(run, heldout_dataset(run, data)):
        steps.train_both(run, data)


def localisation_heads(run: Run, policy: Policy, data: Path = DATA) -> list[tuple[int, int]]:
    """The heads that localise, as they were chosen on training frames (`maps.localisation_heads`)."""
    train, _ = _split(run, data)
    return maps.localisation_heads(run, policy, make_dataset(train, Stats.of(train), run.config))


def heldout_episodes(run: Run, data: Path = DATA) -> list[Episode]:
    """Demonstrations that the run is never trained on, without no-op steps."""
    return _split(run, data)[1]


def heldout_dataset(run: Run, data: Path = DATA) -> DemoDataset:
    """The frames of `heldout_episodes`, on the scales of the training episodes; with the frame before each one."""
    train, heldout = _split(run, data)
    dataset = make_dataset(heldout, Stats.of(train), run.config)
    dataset.previous = True
    return dataset


def _split(run: Run, data: Path) -> tuple[list[Episode], list[Episode]]:
    return load_split(steps.make_demos(run.config, data), run.config.profile.heldout_fraction, run.config.seed)


# --- long steps -------------------------------------------------------------------------------------------------------

@contextmanager
def step(run: Run, name: str) -> Iterator[None]:
    """Say what time and memory the long step `name` (one of estimate.STEPS) will take; after it, what it took.

    Both are kept in the run folder (`spent`). Raises LarError when memory runs out, with the estimate and the setting
    to lower.
    """
    expected = estimate.expected(run)[name]
    print(f"{name.capitalize()}: {expected} expected.")
    try:
        with meter(children=True) as reading:
            yield
    except (torch.cuda.OutOfMemoryError, MemoryError) as error:
        raise LarError(f"Memory ran out during {name} (expected: {expected}): lower batch_size (it is "
                       f"{run.config.profile.batch_size}), or choose a smaller profile; finished work is kept.") from error
    finally:
        took = estimate.Cost(reading.seconds, reading.peak_bytes / 2**30)
        append_jsonl(run.path / "steps.jsonl", {"step": name, "seconds": took.seconds, "gib": took.gib,
                                                "expected_seconds": expected.seconds, "expected_gib": expected.gib})
        _sync()
    print(f"{name.capitalize()}: it took {took}; expected were {expected}.")


def spent(run: Run) -> list[tuple[str, str, str]]:
    """(step, what was expected before it was begun, what it took in all sessions together) of each long step."""
    rows: dict[str, list[dict]] = {}
    for row in read_jsonl(run.path / "steps.jsonl"):
        rows.setdefault(row["step"], []).append(row)
    return [(name, str(estimate.Cost(of[0]["expected_seconds"], of[0]["expected_gib"])),
             str(estimate.Cost(sum(row["seconds"] for row in of), max(row["gib"] for row in of))))
            for name, of in rows.items()]
