"""Versions: which packages are installed, and which ones the scene needs (`scene/requirements.txt` pins them).

`lar doctor` asks here where everything else may be missing, so nothing but the standard library is imported.
"""

from __future__ import annotations

import importlib.metadata
from importlib.resources import files

RECORDED = ("torch", "transformers", "tokenizers", "accelerate", "peft", "bitsandbytes", "diffusers", "safetensors",
            "huggingface_hub", "numpy", "gymnasium", "h5py", "mujoco", "robosuite", "libero", "bddl", "PyOpenGL")
_SAME = {("libero", "0.1.0")}  # what LIBERO's repository calls the same code


def installed(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Installed versions of everything that can change a result."""
    return {name: found for name in RECORDED if (found := installed(name))}


def pins() -> dict[str, str]:
    """The versions that the scene needs, by package."""
    lines = files("lar_core.scene").joinpath("requirements.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)


def wrong_versions() -> list[str]:
    """A sentence for each package of the scene that is missing or of another version than the pinned one."""
    found = {name: installed(name) for name in pins()}
    return [f"{name} {found[name] or 'is not'} {'is ' * bool(found[name])}installed, but the scene needs {wanted}: type "
            f"`pip install --no-deps {name}=={wanted}`."
            for name, wanted in pins().items() if found[name] != wanted and (name, found[name]) not in _SAME]
