"""Where the code runs: device, number type, threads, quiet libraries."""

from __future__ import annotations

import os
import warnings

import torch
import transformers


def device() -> torch.device:
    """The GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name() -> str:
    """The name that goes with every absolute time."""
    from .run import provenance
    return torch.cuda.get_device_name() if torch.cuda.is_available() else provenance()["machine"]


def quiet() -> None:
    """Silence progress bars and notices of libraries that a reader of our output cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*enable_nested_tensor.*")
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="transformers")
