"""Access to PaliGemma's gated weights: whose token, and whether its owner has accepted the licence.

The token is kept in the memory of this process and nowhere else; it is never printed or saved.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getpass

from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import RepositoryNotFoundError

PATIENCE = 60  # seconds that a question for a token waits
WEIGHTS = "google/paligemma-3b-pt-224"
LICENCE = f"""PaliGemma's weights are free but gated. Three steps, once:
  1. accept the licence on https://huggingface.co/{WEIGHTS} (an account is needed),
  2. make a token that may read at https://huggingface.co/settings/tokens,
  3. put it into Colab's secrets (the key on the left) as HF_TOKEN, or set the environment variable HF_TOKEN."""


def on_colab() -> bool:
    """Whether this is a Google Colab runtime."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def sign_in(name: str = "HF_TOKEN", patience: float = PATIENCE) -> bool:
    """Make the token `name` known to this process: Colab's secrets, else the environment, else a question.

    The question gives up after `patience` seconds, and at once where nobody can answer. Returns whether there is a
    token that may read the weights; if not, says how to get one.
    """
    token = _colab_secret(name, patience) or os.environ.get(name) or _ask(name, patience)
    if not token:
        print(LICENCE)
        return False
    os.environ[name] = token.strip()
    if not _may_read():
        print(f"The token {name} may not read {WEIGHTS}. {LICENCE}")
        return False
    return True


def _may_read() -> bool:
    """Whether the hub gives the weights to this token; without a network yes, because they may be here already."""
    try:
        get_hf_file_metadata(hf_hub_url(WEIGHTS, "config.json"), timeout=10)
    except RepositoryNotFoundError:  # a gated one without a licence is one of these
        return False
    except Exception:  # no network, the hub is down: the download will say so, if there has to be one
        return True
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
