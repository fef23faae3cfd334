"""Where a run's untrained backbone comes from: built once, given as a folder, or downloaded at its pinned revision."""

from __future__ import annotations

from pathlib import Path

from ..data.download import download
from ..data.manifest import load_manifest
from ..run.config import RunConfig
from ..run.errors import LarError, unknown
from ..run.files import atomic_path, produce
from ..run.folder import Run
from .offline import build_tiny


def prepare_backbone(run: Run) -> Path:
    """The folder of the run's untrained backbone.

    Raises LarError for a hub id that data_manifest.yaml does not list, and for a download that fails.
    """
    if run.config.profile.backbone != "tiny":
        return find_weights(run.config.profile.backbone)

    def build() -> None:
        with atomic_path(run.backbone) as temporary:
            build_tiny(run.config.profile, temporary, run.config.seed)
    return produce(run.backbone, "building the untrained backbone", build)


def prepare_vae(config: RunConfig) -> Path | None:
    """The folder of the autoencoder, where the condition reconstructs latents. Raises LarError as above."""
    return find_weights(config.profile.vae) if config.condition.recon_target == "latent" else None


def find_weights(name: str) -> Path:
    """A folder as it is, or the files of the hub id `name`, downloaded where they are missing."""
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    keys = {entry.id: key for key, entry in load_manifest().items() if entry.kind == "weights"}
    if Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists():
        raise LarError(f"There is no folder {name}: give the folder that holds the weights (not one of its files), or a hub "
                       "id that data_manifest.yaml lists.")
    if name not in keys:
        raise unknown("backbone", name, ["tiny", *keys])
    return download(keys[name])
