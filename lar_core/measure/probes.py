"""What the trained policy knows of held-out demonstrations: actions, saliency, reconstruction, each beside baselines.

The shortcut probe asks what actions lose without the right image, the denoising probe what a denoiser loses without the
right states. Intervals are bootstrapped over episodes, because the frames of one episode are not independent. Pictures of
reconstructions are made here too, of the trained policy and while it learns.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data.dataset import DemoDataset, Stats, load_split, make_dataset, to_device
from ..data.demos import read_origin
from ..model.backbone import Encoding
from ..model.diffusion import Denoising, paste
from ..model.losses import absolute_error, each
from ..model.mae import Reconstruction, denormalise_patches, reconstruction_loss, unpatchify
from ..model.masking import pixel_mask
from ..model.policy import Policy, make_policy
from ..model.tiny import prepare_backbone
from ..run.errors import LarError
from ..run.files import atomic_path, write_json
from ..run.folder import Run
from ..run.runtime import Draws
from .cause import cause
from .maps import FRAMES, aggregation_rows, layer_rows, robustness_rows, truth_of
from .mechanism import positions, pull
from .metrics import METRICS, Truth, aos_best, aos_uniform, centre_map, mean_map, patch_coverage, score, top_patches
from .pixels import pixels
from .robustness import GREY
from .statistics import evenly, over_episodes

BATCH = 32
GALLERY = 6  # pictures
CAMERAS = ("images", "wrist")
KINDS = ("blank", "shuffled")  # of images in the shortcut probe
SNAPPED = 2  # frames of a snapshot
EVERY = 1.0  # seconds between looks at the checkpoint folder
RECON = ("loss", "mean_patch", "neighbours")  # of the decoder, of the mean visible patch, of the visible patches around


@torch.no_grad()
def probe_heldout(run: Run, policy: Policy, stats: Stats, demos: list[Path]) -> dict:
    """Measure `policy` on up to `grounding_frames` frames, evenly spread over the held-out episodes.

    Writes `heldout.json` (returned) and `gallery.npz` (pictures for the report). Reconstruction is None for conditions
    that reconstruct nothing, what is said of saliency for demonstrations without segmentation.
    """
    train_episodes, heldout_episodes = load_split(demos, run.config.profile.heldout_fraction, run.config.seed)
    train, heldout = (make_dataset(episodes, stats, run.config) for episodes in (train_episodes, heldout_episodes))
    frames = evenly(len(heldout), run.config.profile.grounding_frames)
    measured = _measure(policy, heldout, frames, _mean_action(train))
    few, episode = evenly(len(frames), FRAMES), heldout.episode[frames]
    saliency, mattered = _saliency(run, policy, stats, (train, heldout), frames, few, measured["saliency"])
    saliency["cause"]["pixels"], scenes = pixels(policy, stats, heldout, heldout_episodes, run.config.profile)
    parts = (train, train_episodes), (heldout, heldout_episodes)
    result = {
        "demonstrations": read_origin(demos[0]),
        "frames": len(frames), "train_episodes": len(train_episodes), "heldout_episodes": len(heldout_episodes),
        "action": _counted(episode)
        | {name: over_episodes(measured[name], episode) for name in ("l1", "l1_mean_action")}
        | {"cross_entropy": None if policy.head.l1 else float(measured["loss"].mean())},
        "shortcut": shortcut(policy, heldout, frames),
        "reconstruction": {"frames": len(frames)} | {name: float(measured[f"recon_{name}"].mean()) for name in RECON}
        if "recon_loss" in measured else None,
        "denoising": denoising(policy, heldout, frames) if policy.condition.reconstructor == "diffusion" else None,
        **saliency,
        "mechanism": {"positions": positions(policy, parts), "pull": pull(run.metrics)},
    }
    write_json(run.path / "heldout.json", result)
    shown = evenly(len(few), GALLERY)
    _save_gallery(run, policy, heldout, frames[few[shown]], {"occlusion_maps": mattered[shown]}
                  | ({} if scenes is None else {"scenes": scenes}))
    return result


def _measure(policy: Policy, dataset: DemoDataset, frames: np.ndarray, mean_action: Tensor) -> dict[str, np.ndarray]:
    """Run the policy over `frames`; every array has one row a frame, N in all."""
    rows, draws = [], Draws(0)
    for batch, in _batches(policy, dataset, frames):
        encoding, truth = policy.encode(batch), (batch["actions"], batch["action_pad"])
        constant = mean_action.to(policy.device).expand_as(batch["actions"])
        rows.append({"saliency": encoding.saliency, "loss": each(policy.head.loss, policy.head(encoding), *truth),
                     "l1": each(absolute_error, policy.act(batch)[0], *truth),
                     "l1_mean_action": each(absolute_error, constant, *truth)})
        if policy.condition.reconstructor not in ("none", "diffusion"):
            rows[-1] |= _recon_losses(reconstructed(policy, batch, encoding, draws))
    return _joined(rows)


def _joined(rows: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    return {name: torch.cat([row[name] for row in rows]).cpu().numpy() for name in rows[0]}


def _batches(policy: Policy, dataset: DemoDataset, *frames: np.ndarray) -> Iterator[tuple[dict, ...]]:
    """Samples BATCH at a time, on the policy's device: a batch of each of `frames`, which are equally many."""
    for start in range(0, len(frames[0]), BATCH):
        yield tuple(to_device(dataset.batch(rows[start : start + BATCH]), policy.device) for rows in frames)


def _others(frames: np.ndarray) -> np.ndarray:
    """Frames to put in the place of these, far away: of another episode, and of several tasks often of another task."""
    return np.roll(frames, len(frames) // 2)


def _counted(episode: np.ndarray) -> dict[str, int]:
    return {"frames": len(episode), "episodes": len(np.unique(episode))}


def reconstructed(policy: Policy, batch: dict, encoding: Encoding, draws: Draws) -> Reconstruction | Denoising:
    """What the policy makes of the patches that it masks."""
    return policy.reconstruct(batch, encoding, policy.mask(batch, encoding.saliency, draws), draws)


def _recon_losses(recon: Reconstruction) -> dict[str, Tensor]:
    """Loss (N,) of the decoder, of the image's mean visible patch, and of interpolation between visible patches."""
    guesses = (recon.prediction, mean_patch(recon.target, recon.mask), neighbours(recon.target, recon.mask))
    return {f"recon_{name}": each(reconstruction_loss, guess, recon.target, recon.mask)
            for name, guess in zip(RECON, guesses)}


def mean_patch(target: Tensor, mask: Tensor) -> Tensor:
    """Guess every patch as the mean of the image's visible patches; target (B, P, C), mask (B, P), True = masked."""
    visible = (~mask).to(target.dtype)[..., None]
    return ((target * visible).sum(1, keepdim=True) / visible.sum(1, keepdim=True)).expand_as(target)


def neighbours(target: Tensor, mask: Tensor) -> Tensor:
    """Guess every patch by interpolating between the visible ones, weighted by 1 / distance^4 (in patches)."""
    grid = round(mask.shape[1] ** 0.5)
    line = torch.arange(grid, device=mask.device, dtype=target.dtype)
    places = torch.cartesian_prod(line, line)  # (P, 2)
    weight = torch.cdist(places, places).clamp_min(0.5) ** -4  # (P, P)
    weight = weight[None] * (~mask)[:, None].to(target.dtype)  # (B, P to guess, P visible)
    return weight @ target / weight.sum(dim=-1, keepdim=True)


def _mean_action(train: DemoDataset) -> Tensor:
    """The mean normalised action of the training frames, (7,); the gripper takes the commoner command."""
    mean = train.actions.mean(axis=0)
    mean[6] = np.sign(mean[6]) or 1.0
    return torch.from_numpy(mean)


def _saliency(run: Run, policy: Policy, stats: Stats, datasets: tuple[DemoDataset, DemoDataset], frames: np.ndarray,
              few: np.ndarray, saliency: np.ndarray) -> tuple[dict, np.ndarray]:
    """Where the instruction looks in `frames`, beside baselines; and in a `few` of them, (B,) places in `frames`, what the
    actions depend on, and where it looks by every aggregation, when the frames are changed, and layer by layer.

    datasets: to train on, and held out. Returns the sections, and the occlusion maps (B, N) of the few.
    """
    train, heldout = datasets
    maps, seen = {"model": saliency[few]}, heldout.segmentation is not None and train.segmentation is not None
    if seen:
        places = train.batch(evenly(len(train), 500))["regions"][:, 0].numpy()
        prior = mean_map(patch_coverage(places, round(policy.backbone.patches**0.5)))
        maps["mean_map"] = np.broadcast_to(prior, maps["model"].shape)
    found, mattered = cause(policy, stats, heldout, frames[few], maps)
    if not seen:
        return {"cause": found} | dict.fromkeys(("grounding", "aggregations", "robustness", "layers")), mattered
    return {"cause": found,
            "grounding": _grounding(saliency, truth_of(heldout, frames, policy), prior, heldout.episode[frames]),
            "aggregations": aggregation_rows(run, policy, train, heldout, frames[few], mattered),
            "robustness": robustness_rows(policy, heldout, frames[few]),
            "layers": layer_rows(policy, heldout, frames[few], mattered)}, mattered


def _grounding(saliency: np.ndarray, truth: Truth, prior: np.ndarray, episode: np.ndarray) -> dict:
    """Each metric for the model's saliency and for three maps that never look at the image."""
    shape = saliency.shape
    maps = {"model": saliency, "uniform": np.full(shape, 1 / shape[1]), "mean_map": np.broadcast_to(prior, shape),
            "centre": np.broadcast_to(centre_map(truth.grid), shape)}
    scores = {name: score(values, truth) for name, values in maps.items()}
    scores["uniform"]["aos"] = aos_uniform(truth)
    series = {metric: {name: over_episodes(scores[name][metric], episode) for name in maps} for metric in METRICS}
    series["aos"]["best"] = over_episodes(aos_best(truth), episode)
    return _counted(episode) | series


def _save_gallery(run: Run, policy: Policy, dataset: DemoDataset, frames: np.ndarray, more: dict[str, np.ndarray]) -> None:
    """Pictures for the report, and `more`; see docs/results.md for the arrays."""
    batch = to_device(dataset.batch(frames), policy.device)
    encoding = policy.encode(batch)
    saliency = encoding.saliency.cpu().numpy()
    arrays = {"saliency_images": dataset.images[frames], "saliency_maps": saliency,
              "saliency_instructions": np.array(batch["instructions"]),
              "saliency_masks": top_patches(saliency), **more}
    if "regions" in batch:
        arrays["saliency_regions"] = batch["regions"].cpu().numpy()
    if policy.decoder is not None:
        arrays["panels"] = reconstruction_panels(policy, reconstructed(policy, batch, encoding, Draws(0)))
    with atomic_path(run.path / "gallery.npz") as temporary:
        np.savez_compressed(temporary, **arrays)


def reconstruction_panels(policy: Policy, recon: Reconstruction | Denoising) -> np.ndarray:
    """Original, masked, reconstructed, pasted: (B, 4, H, W, 3) uint8."""
    panels = (denoising_panels if isinstance(recon, Denoising) else _patch_panels)(policy, recon)
    pixels = ((panels + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)
    return pixels.permute(0, 1, 3, 4, 2).cpu().numpy()


def _patch_panels(policy: Policy, recon: Reconstruction) -> Tensor:
    """(B, 4, 3, H, W). A decoder of normalised targets predicts no patch's brightness and contrast: they are taken from
    the original."""
    predicted = recon.prediction
    if policy.condition.recon_target == "normalised":
        predicted = denormalise_patches(predicted, recon.pixels)
    original, predicted = unpatchify(recon.pixels, policy.grid), unpatchify(predicted, policy.grid)
    hidden = pixel_mask(recon.mask, original.shape[-1])
    return torch.stack([original, original.masked_fill(hidden, 0.0), predicted,
                        torch.where(hidden, predicted, original)], dim=1)


# The shortcut probe: what the actions lose when the image is taken away, or another frame's is put in its place

@torch.no_grad()
def shortcut(policy: Policy, dataset: DemoDataset, frames: np.ndarray) -> dict:
    """The section `shortcut` of results.json, measured on `frames` of `dataset`."""
    episode, losses, errors = dataset.episode[frames], [], []
    for batch, other in _batches(policy, dataset, frames, _others(frames)):
        answers, truth = dict(_answers(policy, batch, other)), (batch["actions"], batch["action_pad"])
        losses.append({name: each(policy.head.loss, answer, *truth) for name, answer in answers.items()})
        errors.append({name: each(absolute_error, policy.head.decode(answer), *truth) for name, answer in answers.items()})
    loss, error = _joined(losses), _joined(errors)

    def entry(name: str) -> dict:
        return {"loss": over_episodes(loss[name], episode), "l1": over_episodes(error[name], episode),
                "increase": over_episodes(loss[name] - loss["right"], episode)}

    right = entry("right")
    return {**_counted(episode), "unit": "normalised" if policy.head.l1 else "nats",
            "right": {name: right[name] for name in ("loss", "l1")},
            "whole": {kind: entry(kind) for kind in KINDS},
            "head": {kind: entry(f"head {kind}") for kind in KINDS} if policy.head.reads_layers else None}


def _answers(policy: Policy, batch: dict, other: dict) -> Iterator[tuple[str, Tensor]]:
    """The head's answers to the right images and to changed ones."""
    cameras = [name for name in CAMERAS if name in batch]
    changed = {"right": {}, "blank": {name: torch.full_like(batch[name], GREY) for name in cameras},
               "shuffled": {name: other[name] for name in cameras}}
    encodings = {kind: policy.encode(batch | images, saliency=False) for kind, images in changed.items()}
    for kind, encoding in encodings.items():
        yield kind, policy.head(encoding)
        if kind != "right" and policy.head.reads_layers:
            yield f"head {kind}", policy.head(encodings["right"], encoding)


# What a denoiser knows of held-out frames: its loss told by the frame's own states, and told by another frame's

@torch.no_grad()
def denoising(policy: Policy, dataset: DemoDataset, frames: np.ndarray) -> dict:
    """The section `denoising` of results.json, measured on `frames` of `dataset`."""
    episode, rows = dataset.episode[frames], []
    for number, pair in enumerate(_batches(policy, dataset, frames, _others(frames))):
        own, other = (reconstructed(policy, one, policy.encode(one), Draws(number * BATCH)) for one in pair)
        rows.append({"loss": own.errors, "other_frame": policy.decoder.errors(other.states, own.noised)})
    found = _joined(rows)
    found["increase"] = found["other_frame"] - found["loss"]
    return _counted(episode) | {name: over_episodes(values, episode) for name, values in found.items()}


def denoising_panels(policy: Policy, recon: Denoising) -> Tensor:
    """Original, region hidden, region sampled from noise (stretched to the image), put back: (B, 4, 3, H, W)."""
    original, sampled = recon.images, policy.decoder.sample(recon.states, Draws(0))
    whole = torch.tensor([[0.0, 0, 1, 1]], device=original.device).expand(len(original), -1)
    hidden = paste(original, torch.zeros_like(sampled), recon.boxes)
    return torch.stack([original, hidden, paste(original, sampled, whole), paste(original, sampled, recon.boxes)], dim=1)


# Reconstructions while the policy learns: the same held-out frames, drawn again at every checkpoint. This is done beside
# training, from the checkpoints that it writes, so that training itself knows nothing of it, and only for models small
# enough to be loaded a second time.

@contextmanager
def keep_snapshots(run: Run, heldout: DemoDataset) -> Iterator[None]:
    """While the block trains `run`, keep the panels of two held-out frames from before training and each checkpoint."""
    if run.config.condition.reconstructor == "none" or not run.config.profile.miniature:
        yield
        return
    policy = make_policy(run.config, prepare_backbone(run)).eval()
    batch = heldout.batch(np.linspace(0, len(heldout) - 1, SNAPPED + 2).round().astype(int)[1:-1])
    _keep(run, 0, policy, batch)
    done = threading.Event()
    thread = threading.Thread(target=_watch, args=(run, policy, batch, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def snapshots(run: Run) -> dict[int, np.ndarray]:
    """Panels (M, 4, H, W, 3) uint8 by training step, in order."""
    found = {}
    for path in sorted((run.path / "snapshots").glob("step_*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found[int(path.stem.removeprefix("step_"))] = arrays["panels"]
    return found


def _watch(run: Run, policy: Policy, batch: dict, done: threading.Event) -> None:
    last = False
    while not last:
        last = done.wait(EVERY)  # one more look after the end
        for checkpoint in run.checkpoints():
            step = int(checkpoint.name.removeprefix("step_"))
            if not _path(run, step).exists():
                try:
                    policy.load(checkpoint / "model.safetensors")
                    _keep(run, step, policy, batch)
                except LarError:  # it has been replaced by a newer one meanwhile
                    continue


@torch.no_grad()
def _keep(run: Run, step: int, policy: Policy, batch: dict) -> None:
    panels = reconstruction_panels(policy, reconstructed(policy, batch, policy.encode(batch), Draws(0)))
    with atomic_path(_path(run, step)) as temporary:
        np.savez_compressed(temporary, panels=panels)


def _path(run: Run, step: int) -> Path:
    return run.path / "snapshots" / f"step_{step:06d}.npz"
