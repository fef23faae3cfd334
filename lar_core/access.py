"""Access to PaliGemma's gated weights: whose token, and whether the hub lets its owner read them.

huggingface_hub finds the token (HF_TOKEN, `hf auth login`, Colab's secrets) and asks the hub. A token that is typed in
here is kept in the memory of this process and nowhere else; none is ever printed or saved.
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

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from .data.hub import here

PATIENCE = 60  # seconds that a question for a token waits
ANSWER = 20  # seconds that the hub has to answer
WEIGHTS = "google/paligemma-3b-pt-224"
LICENCE = f"""PaliGemma's weights are free but gated. Three steps, once:
  1. accept the licence on https://huggingface.co/{WEIGHTS} (an account is needed),
  2. make a token that may read at https://huggingface.co/settings/tokens,
  3. put it into Colab's secrets (the key on the left) as HF_TOKEN, or set the environment variable HF_TOKEN;
     then restart the session, which asks for both only once."""


def on_colab() -> bool:
    """Whether this is a Google Colab runtime."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


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
