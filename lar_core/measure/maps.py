"""Saliency in rows: every aggregation on the same held-out frames, and the policy's own one on changed frames.

A row is {"name", "frames", "metrics"}, with every metric of `metrics` as an interval over episodes; the frames are those of
demonstrations, or photographs with phrases. `saliency_maps` makes the maps, whatever the policy was trained with.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from ..data.dataset import DemoDataset, to_device
from ..data.phrases import Phrase, Place, Unusable, phrases
from ..model.aggregation import GENERIC
from ..model.backbone import Encoding
from ..model.masking import area_resample, count_masked, mask_top
from ..model.policy import Policy
from ..model.saliency import Prefix, Rows, SaliencyTap, mean_attention
from ..model.train import HEAD_FRAMES
from ..run.errors import LarError
from ..run.files import write_json
from ..run.folder import Run
from ..run.registry import AGGREGATIONS, HEADS, METRICS, PASSES
from ..run.runtime import Draws
from .metrics import Truth, score
from .robustness import SPLITS, Frames
from .schema import SWEPT
from .statistics import over_episodes

FRAMES = 40  # at most: the aggregations together take some twenty passes, an occlusion map 64
BATCH = 16
KEPT_HEADS = "localisation_heads.json"


def aggregation_rows(run: Run, policy: Policy, train: DemoDataset, heldout: DemoDataset, frames: np.ndarray,
                     mattered: np.ndarray) -> list[dict]:
    """One row an aggregation, on `frames` of the held-out episodes; mattered (B, N): their occlusion maps."""
    images, instructions = _shown(heldout, frames)
    maps = maps_in_batches(policy, images, instructions, available(policy), localisation_heads(run, policy, train))
    truth = truth_of(heldout, frames, policy)
    rows = [row(name, saliency, truth, heldout.episode[frames]) for name, saliency in maps.items()]
    for found, saliency in zip(rows, maps.values()):
        found["metrics"]["agreement"] = over_episodes(agreement(saliency, mattered), heldout.episode[frames])
    return rows


def robustness_rows(policy: Policy, heldout: DemoDataset, frames: np.ndarray) -> list[dict]:
    """One row a split of `robustness`, on `frames`, by the policy's own aggregation."""
    images, instructions = _shown(heldout, frames)
    truth, rows, own = truth_of(heldout, frames, policy), [], policy.condition.aggregation
    shown = Frames(images, instructions, truth.named.astype(bool), truth.other.astype(bool), truth.objects)
    for name, split in SPLITS.items():
        changed = split(shown)
        saliency = maps_in_batches(policy, changed.images, changed.instructions, [own])[own]
        moved = Truth(changed.named, truth.grid, changed.other, changed.objects)
        rows.append(row(name, saliency, moved, heldout.episode[frames]))
    return rows


def layer_rows(policy: Policy, heldout: DemoDataset, frames: np.ndarray, mattered: np.ndarray) -> list[dict]:
    """One row for each layer of the language model and kind of `Rows`, on `frames`: {"layer", "rows", "frames", "metrics"},
    with the metrics in SWEPT, and `agreement` with the occlusion maps `mattered` (B, N).
    """
    parts = [layer_maps(policy, to_device(heldout.batch(frames[start : start + BATCH]), policy.device))
             for start in range(0, len(frames), BATCH)]
    truth, rows = truth_of(heldout, frames, policy), []
    for layer, kind in parts[0]:
        saliency = np.concatenate([part[layer, kind] for part in parts])
        metrics = {name: over_episodes(METRICS[name](saliency, truth), heldout.episode[frames]) for name in SWEPT}
        metrics["agreement"] = over_episodes(agreement(saliency, mattered), heldout.episode[frames])
        rows.append({"layer": layer, "rows": kind, "frames": len(frames), "metrics": metrics})
    return rows


@torch.no_grad()
def layer_maps(policy: Policy, batch: dict) -> dict[tuple[int, str], np.ndarray]:
    """Saliency (B, P) by layer and kind of rows, mean over heads and who is asked; one pass, with every layer tapped.

    The head's queries, where it has any, are there from the layer on at which its tokens join.
    """
    backbone, prefix = policy.backbone, policy.prefix(batch, saliency=False)
    with SaliencyTap(layers=range(backbone.layers), image_tokens=backbone.patches,
                     rows=slice(backbone.patches, None)) as tap:
        policy.encode(batch, saliency=False)
    first = {"text": 0, "bos": 0} | ({"action": backbone.join} if HEADS.about(policy.condition.head).queries else {})
    maps = {}
    for kind in first:
        places, asked = Rows(kind, policy.head.tokens).of(prefix, 0)  # counted from the first text token
        for layer in range(first[kind], backbone.layers):
            attention = tap.captured[layer][:, None, :, places]  # (B, 1, H, R, P)
            maps[layer, kind] = mean_attention(attention, asked.instruction).cpu().numpy()
    return maps


def agreement(saliency: np.ndarray, mattered: np.ndarray) -> np.ndarray:
    """Rank correlation (B,) of maps (B, P) with occlusion maps (B, N); NaN where one of the two is flat."""
    maps = area_resample(torch.tensor(saliency), round(mattered.shape[1] ** 0.5)).numpy()
    flat = (np.ptp(maps, axis=1) <= 1e-12) | (np.ptp(mattered, axis=1) <= 1e-12)
    return np.array([np.nan if level else spearmanr(*pair).statistic for level, *pair in zip(flat, maps, mattered)])


def row(name: str, saliency: np.ndarray, truth: Truth, group: np.ndarray) -> dict:
    """Score saliency (B, P); group (B,): frames of one group, such as an episode, are not independent."""
    metrics = {metric: over_episodes(values, group) for metric, values in score(saliency, truth).items()}
    return {"name": name, "frames": len(saliency), "metrics": metrics}


def maps_in_batches(policy: Policy, images: np.ndarray, instructions: list[str], names: list[str],
                    heads: list[tuple[int, int]] | None = None) -> dict[str, np.ndarray]:
    """`saliency_maps` for images (B, H, W, 3), a few at a time: (B, P) by name."""
    parts = [saliency_maps(policy, torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2),
                           instructions[start : start + BATCH], names, heads) for start in range(0, len(images), BATCH)]
    return {name: np.concatenate([part[name].float().cpu().numpy() for part in parts]) for name in names}


def truth_of(dataset: DemoDataset, frames: np.ndarray, policy: Policy) -> Truth:
    """What is where in frames of demonstrations with segmentation."""
    regions = dataset.batch(frames)["regions"].numpy()
    return Truth(regions[:, 0], round(policy.backbone.patches**0.5), regions[:, 1], _objects(dataset, frames))


def localisation_heads(run: Run, policy: Policy, train: DemoDataset) -> list[tuple[int, int]]:
    """The heads that localise, (layer, head) counted from the first tapped layer.

    Chosen once, on training frames and without their segmentation, and kept in the run folder.
    """
    if kept := kept_heads(run, policy):
        return kept
    frames = np.linspace(0, len(train) - 1, HEAD_FRAMES).round().astype(int)
    places = policy.choose_heads(to_device(train.batch(part), policy.device) for part in np.array_split(frames, 4))
    first = policy.backbone.tapped[0]
    write_json(run.path / KEPT_HEADS, [{"layer": layer + first, "head": head} for layer, head in places])
    return places


def kept_heads(run: Run, policy: Policy) -> list[tuple[int, int]] | None:
    """What `localisation_heads` has chosen before; None where it has not."""
    path, first = run.path / KEPT_HEADS, policy.backbone.tapped[0]
    if not path.exists():
        return None
    return [(place["layer"] - first, place["head"]) for place in json.loads(path.read_text(encoding="utf-8"))]


def _objects(dataset: DemoDataset, frames: np.ndarray) -> np.ndarray:
    """Pixels of every segmented object (B, R, H, W) bool, the named one first."""
    seen = dataset.segmentation[frames]
    named = dataset.region_numbers[dataset.episode[frames]][:, 0].astype(int)
    numbers = np.arange(1, max(2, seen.max() + 1))
    order = np.stack([np.concatenate([[first], numbers[numbers != first]])[: len(numbers)] for first in named])
    return seen[:, None] == order[:, :, None, None]


def _shown(dataset: DemoDataset, frames: np.ndarray) -> tuple[np.ndarray, list[str]]:
    return dataset.images[frames], [dataset.instructions[episode] for episode in dataset.episode[frames]]


# Saliency of images by any aggregation, whatever the policy was trained with.

MASKS, HIDDEN = 8, 0.25  # how many random masks are averaged over; share of the patches that each hides


@torch.no_grad()
def saliency_maps(policy: Policy, images: Tensor, instructions: Sequence[str], names: Sequence[str],
                  heads: list[tuple[int, int]] | None = None) -> dict[str, Tensor]:
    """images (B, 3, H, W) uint8 -> saliency (B, P) by every aggregation in `names`.

    heads: what `localisation_heads` is to take, (layer, head) counted from the first tapped layer. An aggregation that
    the policy has itself is used as the policy has learned or chosen it.
    """
    instructions = policy.hear(instructions)
    encoding, prefix = read(policy, images, instructions)
    if any(name in AGGREGATIONS and AGGREGATIONS[name].relative for name in names):
        prefix.reference = plain_map(policy, images, [GENERIC] * len(images))
    return {name: PASSES[name](policy, images, instructions) if name in PASSES else
            _aggregation(policy, name, heads)(encoding.attention, prefix) for name in names}


def read(policy: Policy, images: Tensor, instructions: Sequence[str],
         hidden: Tensor | None = None) -> tuple[Encoding, Prefix]:
    """The prefix alone through the backbone, with attention; what is hidden (B, P) becomes grey."""
    backbone = policy.backbone
    prefix = backbone.tokenise(list(instructions))
    pixels = policy.see(images.to(policy.device), hidden)
    return backbone.upper(backbone.lower(pixels, prefix), prefix), prefix


def plain_map(policy: Policy, images: Tensor, instructions: Sequence[str], hidden: Tensor | None = None) -> Tensor:
    """The literal saliency (B, P), in a pass of its own."""
    encoding, _ = read(policy, images, instructions, hidden)
    return mean_attention(encoding.attention, encoding.asked)


@PASSES.register("coarse_to_fine")
def coarse_to_fine(policy: Policy, images: Tensor, instructions: Sequence[str]) -> Tensor:
    """Look again, at twice the resolution, at the quarter of the image that held most saliency.

    Inside that window the second look says how the first one's share of saliency is spread; outside nothing changes.
    """
    coarse = plain_map(policy, images, instructions)
    grid = round(coarse.shape[1] ** 0.5)
    half, square = grid // 2, coarse.unflatten(1, (grid, grid))
    mass = F.avg_pool2d(square[:, None], half, stride=1)[:, 0]  # of every window of half x half patches
    densest = torch.unravel_index(mass.flatten(1).argmax(dim=1), mass.shape[1:])
    tops, lefts = (corner.tolist() for corner in densest)
    crops = _crops(images.to(policy.device), tops, lefts, grid, half)
    fine = area_resample(plain_map(policy, crops, instructions), half)
    result = square.clone()
    for row, (top, left) in enumerate(zip(tops, lefts)):
        window = result[row, top : top + half, left : left + half]  # a view
        window.copy_(window.sum() * (fine[row] / fine[row].sum()).view(half, half))
    return result.flatten(1)


@PASSES.register("multi_pass")
def multi_pass(policy: Policy, images: Tensor, instructions: Sequence[str]) -> Tensor:
    """The mean over MASKS passes, each with other patches hidden; a hidden patch does not count in its pass."""
    draws, total, seen = Draws(0), 0.0, 0.0
    for _ in range(MASKS):
        scores = draws.uniform(len(images), policy.backbone.patches).to(policy.device)
        hidden = mask_top(scores, count_masked(scores.shape[1], HIDDEN))
        saliency = plain_map(policy, images, instructions, hidden)
        total, seen = total + saliency.masked_fill(hidden, 0.0), seen + (~hidden).float()
    mean = total / seen.clamp_min(1)
    return mean / mean.sum(dim=1, keepdim=True)


def available(policy: Policy, chosen: bool = True) -> list[str]:
    """The aggregations that mean something for a policy: a gate must have been learned, and the heads that localise
    chosen (`chosen`), unless they are the policy's own.
    """
    missing = {name for name in AGGREGATIONS if AGGREGATIONS[name].learns} | (set() if chosen else {"localisation_heads"})
    return [name for name in (*AGGREGATIONS, *PASSES) if name not in missing - {policy.condition.aggregation}]


def _aggregation(policy: Policy, name: str, heads: list[tuple[int, int]] | None):
    own = policy.backbone.aggregation
    if type(own) is AGGREGATIONS[name]:
        return own
    made = policy.backbone.make_aggregation(name).to(policy.device)
    if name == "localisation_heads" and heads is not None:
        made.choose(heads)
    return made


def _crops(images: Tensor, tops: list[int], lefts: list[int], grid: int, side: int) -> Tensor:
    """Windows of side x side patches, enlarged to the whole image; uint8."""
    size = images.shape[-1]
    patch = size // grid
    crops = torch.stack([image[:, top * patch : (top + side) * patch, left * patch : (left + side) * patch]
                         for image, top, left in zip(images, tops, lefts)])
    return F.interpolate(crops.float(), (size, size), mode="bilinear").round().to(torch.uint8)


# Saliency on photographs with phrases: RefCOCO-M, RefCOCO/+/g, Flickr30k Entities, Visual Genome.

PHRASES = 500  # of a data set, unless more are asked for
RIVALS = 7  # other places of a picture that are ranked against the named one, at most; the largest


def score_photographs(run: Run, policy: Policy, name: str, folder: Path | str, split: str = "val",
                      limit: int = PHRASES) -> list[dict]:
    """The rows of a data set in `phrases.SETS`, on the first `limit` phrases of `split`; also written down.

    Raises LarError as `phrases` and `photograph_rows` do.
    """
    heads = kept_heads(run, policy)
    rows = photograph_rows(policy, phrases(name, folder, split), limit, available(policy, heads is not None), heads)
    write_json(run.path / "photographs" / f"{name}-{split}.json", rows)
    return rows


def photograph_rows(policy: Policy, phrases: Iterable[Phrase], limit: int = PHRASES, names: Sequence[str] | None = None,
                    heads: list[tuple[int, int]] | None = None) -> list[dict]:
    """A row for each aggregation in `names` (None: all), on the first `limit` phrases.

    Phrases that cannot be used are left out, counted by reason, printed, and counted in the rows as `skipped`. Intervals
    are over pictures: phrases of one picture are not independent. heads: what `localisation_heads` takes.
    Raises LarError where there are no phrases, or none of them can be used.
    """
    size, grid = policy.backbone.image_size, round(policy.backbone.patches**0.5)
    chosen, seen, skipped = _usable(policy, islice(phrases, limit), size)
    maps = maps_in_batches(policy, np.stack([image for image, _ in seen]), [phrase.text for phrase in chosen],
                           list(names or available(policy)), heads)
    objects = np.stack([places for _, places in seen])
    truth = Truth(objects[:, 0], grid, objects=objects)
    numbers: dict = {}
    pictures = np.array([numbers.setdefault(phrase.image, len(numbers)) for phrase in chosen])  # a number for each
    return [row(name, saliency, truth, pictures) | {"skipped": skipped} for name, saliency in maps.items()]


def _usable(policy: Policy, phrases: Iterable[Phrase], size: int) -> tuple[list[Phrase], list[tuple], int]:
    """The phrases that can be scored, what `_seen` makes of each, and how many others there were; says why."""
    chosen, seen, reasons, first = [], [], Counter(), ""
    for phrase in tqdm(phrases, desc="reading photographs", unit="phrase", leave=False):
        try:
            seen.append(_seen(policy, phrase, size))
            chosen.append(phrase)
        except Unusable as error:
            first = first or str(error)
            reasons[error.reason] += 1
    skipped = reasons.total()
    counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    if not chosen and skipped:
        raise LarError(f"None of {skipped} phrases can be scored ({counted}). The first: {first} Check that the folder "
                       "holds all of the data set, its pictures as well.")
    if not chosen:
        raise LarError("There are no phrases to score: check the folder and the split.")
    if skipped:
        print(f"{skipped} of {skipped + len(chosen)} phrases were skipped: {counted}.")
    return chosen, seen, skipped


def _seen(policy: Policy, phrase: Phrase, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture (size, size, 3) uint8, and the places (1 + RIVALS, size, size) bool, the named one first.

    Raises Unusable where the text is none or the named one cannot be shown; other places that cannot be are left out.
    """
    try:
        policy.backbone.tokenise([phrase.text])
    except LarError as error:
        raise Unusable("its text is no instruction", error) from error
    picture = phrase.picture()
    def stretched(place: Place) -> np.ndarray:
        mask = Image.fromarray(place.pixels(picture.height, picture.width))
        return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST))
    named, others = stretched(phrase.named), []
    if not named.any():
        raise Unusable("its place is smaller than a pixel of the model's image")
    for place in phrase.others:
        with suppress(Unusable):
            others.append(stretched(place))
    others = sorted(others, key=np.sum, reverse=True)[:RIVALS]
    places = np.zeros((1 + RIVALS, size, size), dtype=bool)
    places[: 1 + len(others)] = [named, *others]
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)), places
