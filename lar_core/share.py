"""Policies for others: a trained run -> a folder or a hub repository -> the same policy again.

    README.md           the model card
    config.json         condition, profile, seed; the backbone's hub id and revision where it has one
    model.safetensors   what the checkpoint holds: all weights, or only what was trained on top of the hub's
    stats.json          normalisation of actions and proprioception
    backbone/           the backbone's configuration and processor, in transformers' own format

Nothing else leaves this machine: no optimiser state, no token, no weights that the hub has already.
"""

from __future__ import annotations

import errno
import json
import shutil
import tempfile
from pathlib import Path

import torch
from huggingface_hub import HfApi, constants, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # of httpx or httpx2, whichever the library stands on
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from .data.dataset import Stats
from .data.hub import Entry, load_manifest
from .measure.results import load_results, read_episodes
from .model.backbone import Backbone
from .model.paligemma import settle
from .model.policy import Policy, acting, make_policy
from .model.saliency import ATTENTION
from .model.tiny import prepare_backbone, prepare_vae
from .model.weights import read_config, read_processor
from .run.config import RunConfig
from .run.errors import Damaged, LarError, first_line, unknown, unreadable, unwritable
from .run.files import atomic_path, write_json, write_text
from .run.folder import Run
from .run.settings import MINIATURES
from .show.report import model_card

FORMAT = 1  # of config.json
REQUIRED = ("config.json", "model.safetensors", "stats.json", "backbone/config.json", "backbone/processor_config.json",
            "backbone/tokenizer.json", "backbone/tokenizer_config.json")
FILES = (*REQUIRED, "README.md", "backbone/model.safetensors")  # all that is ever uploaded or downloaded


def export(run: Run, folder: Path | str, source: str | None = None) -> Path:
    """Make `folder` out of a trained run; source: what the model card says to load (default: the folder's name).

    Raises LarError for a run that is not trained, a backbone that others cannot have, or a folder that is not empty.
    """
    folder = Path(folder)
    if not run.trained:
        raise LarError(f"{run.path} holds no finished training: run `lar train` with the same settings first.")
    if folder.exists() and any(folder.iterdir()):
        raise LarError(f"{folder} is not empty: choose another folder, or delete it.")
    base = base_model(run.config)
    with atomic_path(folder) as temporary:
        _write_backbone(run, temporary / "backbone")
        shutil.copyfile(run.final_checkpoint / "model.safetensors", temporary / "model.safetensors")
        Stats.load(run.stats).save(temporary / "stats.json")
        write_json(temporary / "config.json", {"format": FORMAT, **run.config.model_dump(), "base_model": _named(base)})
        write_text(temporary / "README.md", _card(run, base, source or folder.name))
    return folder


def push(run: Run, repo_id: str, private: bool = True) -> str:
    """Export and upload to the hub, with the token that huggingface_hub finds; returns the commit's address.

    Raises LarError when there is no token, or the upload fails.
    """
    if get_token() is None:
        raise LarError("There is no Hugging Face token: make one that may write on huggingface.co/settings/tokens, "
                       "then run `hf auth login` or set HF_TOKEN.")
    with tempfile.TemporaryDirectory() as parent:
        return upload(export(run, Path(parent) / "policy", source=repo_id), repo_id, private)


def upload(folder: Path, repo_id: str, private: bool = True) -> str:
    """Upload an exported folder. Raises LarError for a file that is none of FILES, before anything is sent."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.relative_to(folder).as_posix() not in FILES:
            raise LarError(f"{path} is not part of a policy for others, so nothing was uploaded: remove it.")
    api = HfApi()
    try:
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, allow_patterns=list(FILES),
                                     commit_message="A policy made with LA-ReconVLA"))
    except (TransportError, OSError, ValueError) as error:
        raise LarError(f"{repo_id} could not be uploaded ({_told(error)}): check the connection, the name "
                       "OWNER/NAME, and that the token may write there.") from error


def from_pretrained(source: str | Path, *, revision: str | None = None,
                    device: torch.device | str = "cpu") -> tuple[Policy, Stats]:
    """The policy, ready to act, and its scales, from an exported folder or a hub id (at `revision`).

    Raises LarError when it cannot be had, is damaged, or is something else.
    """
    folder = Path(source) if Path(source).is_dir() else _download(str(source), revision)
    config = _read_config(folder)
    missing = [name for name in _required(config) if not (folder / name).is_file()]
    if missing:
        raise LarError(f"{folder} is not a whole policy ({missing[0]} is missing): export or download it again.")
    policy = _untrained(folder, acting(config, torch.device(device)), device)
    try:
        policy.load(folder / "model.safetensors")
    except Damaged as error:
        raise Damaged(f"The weights in {folder} are damaged or of another model: export or download them again."
                       ) from error
    settle(policy.backbone)
    return policy.eval(), Stats.load(folder / "stats.json")


def base_model(config: RunConfig) -> Entry | None:
    """The manifest's entry of the backbone; None for one of ours (`MINIATURES`).

    Raises LarError for a folder: nobody else has it, and its licence is not known.
    """
    name = config.profile.backbone
    listed = {entry.id: entry for entry in load_manifest().values() if entry.kind == "weights"}
    if not config.profile.miniature and name not in listed:
        raise unknown("backbone of a policy for others", name, [*MINIATURES, *listed])
    return listed.get(name)


def _write_backbone(run: Run, folder: Path) -> None:
    """Configuration and processor; weights only where they are frozen and nobody else has them."""
    source = prepare_backbone(run)
    PaliGemmaConfig.from_pretrained(source).save_pretrained(folder)
    PaliGemmaProcessor.from_pretrained(source).save_pretrained(folder)
    if "backbone/model.safetensors" in _required(run.config):
        shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")


def _required(config: RunConfig) -> tuple[str, ...]:
    frozen_here = config.profile.miniature and config.profile.tune != "all"
    return (*REQUIRED, "backbone/model.safetensors") if frozen_here else REQUIRED


def _named(base: Entry | None) -> dict[str, str] | None:
    return {"id": base.id, "revision": base.pinned_revision()} if base else None


def _card(run: Run, base: Entry | None, source: str) -> str:
    results = load_results(run.results) if run.results.exists() else None
    rollouts = [row for folder in (run.path, run.control)
                for row in read_episodes(folder / "rollouts.jsonl", run.config.profile.tasks)]
    return model_card(run.config, base, results, rollouts, source)


def _read_config(folder: Path) -> RunConfig:
    """Of an exported folder. Raises LarError for any other folder, and for another revision of the backbone."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}")
        config = RunConfig(**{part: values[part] for part in RunConfig.model_fields})
        base = values["base_model"]
    except (OSError, ValueError, KeyError, TypeError, LarError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # which says nothing of the content
            raise unreadable(path, error, "export or download the policy again") from error
        raise LarError(f"{folder} holds no policy of this version of lar_core (config.json: {_told(error)}): "
                       "`lar push --to FOLDER --run-dir RUN` makes one.") from error
    pinned = _named(base_model(config))
    if base != pinned:
        raise LarError(f"{folder} was trained on {base}, but this version of lar_core pins {pinned}: use the version "
                       "that made it.")
    return config


def _untrained(folder: Path, config: RunConfig, device: torch.device | str) -> Policy:
    """The policy around its backbone; where everything was trained, the weights that it began with are not needed."""
    if config.profile.tune != "all":
        return make_policy(config, prepare_backbone(Run(folder, config)), device, prepare_vae(config))
    backbone = _unloaded_backbone(folder / "backbone", config.condition.saliency_layers)
    return Policy(backbone, config.condition, config.profile, prepare_vae(config)).to(device)


def _unloaded_backbone(folder: Path, saliency_layers: int) -> Backbone:
    """As `load_backbone` makes it, but for the numbers in the weights."""
    try:
        config = read_config(folder)
        processor = read_processor(folder, config)
    except OSError as error:
        raise LarError(f"{folder} could not be read ({error}): mend that cause; nothing there has to be deleted.") from error
    vlm = PaliGemmaForConditionalGeneration._from_config(
        config, dtype=torch.float32, attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"})
    return Backbone(vlm, processor, saliency_layers)


def _download(repo_id: str, revision: str | None) -> Path:
    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=list(FILES)))
    except RevisionNotFoundError as error:
        raise LarError(f"{repo_id} has no revision {revision!r}: its page on the hub lists its commits.") from error
    except (HFValidationError, RepositoryNotFoundError) as error:
        raise LarError(f"{repo_id!r} is neither a folder here nor a model on the hub that you may read: check the "
                       "spelling; for a private or gated one, set HF_TOKEN.") from error
    except OSError as error:
        if error.errno is not None:
            raise unwritable(error.filename or constants.HF_HUB_CACHE, error, "set HF_HOME to another folder") from error
        raise LarError(f"{repo_id} could not be downloaded ({type(error).__name__}): check the connection and the "
                       "free space on this disk.") from error


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"
