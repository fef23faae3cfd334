"""Whether what the policy looks at is why it acts: something is taken away, and the action is compared with what it was.

    occlusion    each block of the picture gets the mean colour of the blocks around it: a map of what mattered
    curves       blocks are taken away, or brought back, in the order of a map: the sooner the action changes, the better
                 the map says what it depends on (deletion and insertion: Petsiuk et al. 2018)
    knockouts    a path of attention is cut (`model/knockout.py`): what the action loses, the path carried

A change is measured in the head's distribution of actions (Jensen-Shannon divergence in nats, mean over valid steps and
degrees of freedom; none for a head that answers with numbers) and in the decoded chunk: by how much the sum of its commanded
motions differs, in millimetres and degrees. Only the camera's picture is changed, the wrist camera's stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ..data.conventions import METRES, RADIANS
from ..data.dataset import DemoDataset, Stats, to_device
from ..model.backbone import Seen
from ..model.losses import each
from ..model.masking import Clues, area_resample, mask_top, pixel_mask
from ..model.policy import Policy
from ..model.regularisers import divergence
from ..run.registry import MASK_SOURCES
from ..run.runtime import Draws
from ..run.settings import PATHS
from .maps import agreement, truth_of
from .metrics import METRICS
from .statistics import over_episodes

BATCH = 20
SIDE = 8  # blocks a side at most: a larger grid of patches is taken in blocks of 2 x 2
STEPS = 8  # of a curve
SCORED = ("auc", "energy", "target_minus_distractor")  # of the occlusion map, as of one of saliency

Changes = dict[str, Tensor]  # (B,) by unit: nats (of heads that answer with a distribution), mm, degrees


class Answer:
    """What a policy answers to a batch, to compare other answers to the same frames with."""

    def __init__(self, policy: Policy, stats: Stats, batch: dict):
        self.policy, self.stats, self.batch = policy, stats, batch
        self.valid = (~batch["action_pad"]).float()  # (B, K)
        self.seen = policy.look(batch)
        self.own = self.ask(batch, self.seen)

    def changed(self, **others: Tensor) -> Changes:
        """How much the answer changes when `others` take the place of entries of the batch."""
        return self.compare(self.ask(self.batch | others))

    def without(self, path: str, layers: Sequence[int]) -> Changes:
        """How much it changes without a path of attention in some layers; `loss` beside it, by how much that grows."""
        with self.policy.without(self.batch, path, layers):
            answer = self.ask(self.batch, self.seen if min(layers) >= self.policy.backbone.join else None)
        truth = (self.batch["actions"], self.batch["action_pad"])
        after, before = (each(self.policy.head.loss, said, *truth) for said in (answer, self.own))
        return self.compare(answer) | {"loss": after - before}

    def ask(self, batch: dict, seen: Seen | None = None) -> Tensor:
        """What the head says: numbers (B, K, 7) or logits (B, K, 7, 256); seen: what `look` gave, where it has looked."""
        return self.policy.head(self.policy.encode(batch, seen, saliency=False))

    def compare(self, other: Tensor) -> Changes:
        """How much another answer differs from this one."""
        motion = self.motion(self.own) - self.motion(other)  # (B, 6)
        nats = {} if self.policy.head.l1 else {"nats": self._mean(_nats(self.own, other).mean(dim=-1))}
        return nats | {"mm": motion[:, :3].norm(dim=1) * 1000, "degrees": motion[:, 3:].norm(dim=1).rad2deg()}

    def motion(self, answer: Tensor) -> Tensor:
        """What the valid steps of its chunk command together: metres and radians (B, 6), in the world's axes."""
        actions = self.stats.denormalise_actions(self.policy.head.decode(answer).cpu().numpy())
        units = torch.from_numpy(actions[..., :6]).to(self.valid) * self.valid[..., None]
        return units.sum(dim=1) * torch.tensor([METRES] * 3 + [RADIANS] * 3).to(units)

    def _mean(self, values: Tensor) -> Tensor:
        """(B, K) -> (B,), over valid steps."""
        return (values * self.valid).sum(dim=1) / self.valid.sum(dim=1)


def _nats(one: Tensor, other: Tensor) -> Tensor:
    """Jensen-Shannon divergence (...) of distributions given as logits (..., C): 0 = the same, ln 2 at most."""
    return divergence(*(answer.float().softmax(dim=-1) for answer in (one, other))) * math.log(2)


# What is taken away of a picture

def blocks(policy: Policy) -> int:
    """How many blocks a side."""
    grid = round(policy.backbone.patches**0.5)
    return grid // -(-grid // SIDE)


def surroundings(images: Tensor, side: int) -> Tensor:
    """Images (B, 3, H, W) uint8 in which every block has the mean colour of the up to eight blocks around it."""
    means = F.adaptive_avg_pool2d(images.float(), side)  # (B, 3, n, n)
    inside = torch.ones_like(means[:, :1])
    def around(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, 3, stride=1, padding=1, divisor_override=1) - values
    filled = around(means) / around(inside)
    return F.interpolate(filled, images.shape[-2:], mode="nearest").round().to(torch.uint8)


def hide(images: Tensor, hidden: Tensor, filling: Tensor) -> Tensor:
    """The images with the blocks hidden (B, N) bool taken from `filling`, which is of their shape or broadcasts to it."""
    return torch.where(pixel_mask(hidden, images.shape[-1]), filling, images)


def occlusion(answer: Answer, side: int) -> Changes:
    """How much the action changes when one block is hidden: (B, N) for each unit."""
    images = answer.batch["images"]
    filling, single = surroundings(images, side), torch.eye(side * side, dtype=torch.bool, device=images.device)
    changes = [answer.changed(images=hide(images, one.expand(len(images), -1), filling)) for one in single]
    return {unit: torch.stack([change[unit] for change in changes], dim=1) for unit in changes[0]}


def curves(answer: Answer, scores: Tensor, unit: str) -> dict[str, Tensor]:
    """How much the action changes, (B, STEPS + 1), with the highest blocks of scores (B, N) hidden, `deletion`, or with
    only those shown, `insertion`: none of them, an eighth, ... all. What is hidden gets the picture's mean colour.
    """
    images, count = answer.batch["images"], scores.shape[1]
    filling = images.float().mean(dim=(2, 3), keepdim=True).round().to(torch.uint8)
    nothing = answer.compare(answer.own)[unit]
    everything = answer.changed(images=filling.expand_as(images))[unit]
    tops = [mask_top(scores, round(step * count / STEPS)) for step in range(1, STEPS)]
    deletion, insertion = ([answer.changed(images=hide(images, top ^ shown, filling))[unit] for top in tops]
                           for shown in (False, True))
    return {"deletion": torch.stack([nothing, *deletion, everything], dim=1),
            "insertion": torch.stack([everything, *insertion, nothing], dim=1)}


def knockouts(answer: Answer) -> Iterator[tuple[tuple[str, int, bool], Changes]]:
    """Every path cut in a single layer, and from each layer onwards: (path, layer, onwards), and what it changed.

    The head's tokens are there from the layer on where they join.
    """
    layers = answer.policy.backbone.layers
    for path in PATHS:
        first = answer.policy.backbone.join if path.startswith("action") else 0
        for layer in range(first, layers):
            yield (path, layer, False), answer.without(path, (layer,))
            yield (path, layer, True), answer.without(path, range(layer, layers))


# All of it on held-out frames: the section `cause` of results.json

@torch.no_grad()
def cause(policy: Policy, stats: Stats, dataset: DemoDataset, frames: np.ndarray,
          maps: dict[str, np.ndarray]) -> tuple[dict, np.ndarray]:
    """What the actions in `frames` depend on. maps (B, P): of these frames by name, to be compared with that.

    Returns the section, and the occlusion maps (B, N), in the section's unit.
    """
    rows = []
    for first in tqdm(range(0, len(frames), BATCH), desc="what the actions depend on", unit="batch", leave=False):
        part = slice(first, first + BATCH)
        batch = to_device(dataset.batch(frames[part]), policy.device)
        seen = {name: torch.tensor(values[part]) for name, values in maps.items()}
        rows.append(_measure(Answer(policy, stats, batch), seen))
    found = {place: np.concatenate([row[place] for row in rows]) for place in rows[0]}
    mattered, episode = found.pop(("occlusion",)), dataset.episode[frames]
    return {"frames": len(frames), "episodes": len(np.unique(episode)), "blocks": mattered.shape[1],
            "unit": unit_of(policy), "occlusion": _scored(policy, dataset, frames, mattered),
            **_sections(found, episode)}, mattered


def unit_of(policy: Policy) -> str:
    """In which changes are measured where one number is asked for."""
    return "mm" if policy.head.l1 else "nats"


def _measure(answer: Answer, maps: dict[str, Tensor]) -> dict[tuple, np.ndarray]:
    """Everything of one batch, by what it is: arrays with a row a frame."""
    unit, side = unit_of(answer.policy), blocks(answer.policy)
    mattered = occlusion(answer, side)[unit]
    found: dict[tuple, Tensor] = {("occlusion",): mattered}
    maps = {name: area_resample(values.to(mattered), side) for name, values in maps.items()} | {"occlusion": mattered}
    for name, scores in (maps | controls(answer, mattered)).items():
        found["agreement", name] = torch.from_numpy(agreement(scores.cpu().numpy(), mattered.cpu().numpy()))
        found |= {("curves", name, way): values for way, values in curves(answer, scores, unit).items()}
    for place, changes in knockouts(answer):
        found |= {("knockout", *place, measured): values for measured, values in changes.items()}
    return {place: values.float().cpu().numpy() for place, values in found.items()}


def _sections(found: dict[tuple, np.ndarray], episode: np.ndarray) -> dict:
    """`agreement`, `curves` and `knockout` as results.json has them."""
    agreed, maps = {}, {}
    cut: dict[tuple, dict] = {}
    for (kind, *place), values in found.items():
        if kind == "agreement":
            agreed[place[0]] = over_episodes(values, episode)
        elif kind == "curves":
            area = over_episodes(np.trapezoid(values, dx=1 / STEPS), episode)
            maps.setdefault(place[0], {})[place[1]] = {"area": area, "points": values.mean(axis=0).tolist()}
        else:
            cut.setdefault(tuple(place[:3]), {})[place[3]] = over_episodes(values, episode)
    names = ("path", "layer", "onwards")
    return {"agreement": agreed, "curves": maps,
            "knockout": [dict(zip(names, place)) | lost for place, lost in cut.items()]}


def _scored(policy: Policy, dataset: DemoDataset, frames: np.ndarray, mattered: np.ndarray) -> dict | None:
    """Which object the occlusion maps lie on, by the metrics of saliency; None without segmentation."""
    if dataset.segmentation is None:
        return None
    truth = replace(truth_of(dataset, frames, policy), grid=round(mattered.shape[1] ** 0.5))
    shares = (mattered + 1e-12) / (mattered + 1e-12).sum(axis=1, keepdims=True)
    return {name: over_episodes(METRICS[name](shares, truth), dataset.episode[frames]) for name in SCORED}


def controls(answer: Answer, mattered: Tensor) -> dict[str, Tensor]:
    """Maps (B, N) that do not ask the policy, by their names as mask sources; the named object's where it is known."""
    coverage = None
    if "regions" in answer.batch:
        coverage = area_resample(answer.batch["regions"][:, 0].flatten(1).float(), round(mattered.shape[1] ** 0.5))
    clues = Clues(mattered, 1, Draws(0), coverage)
    names = ("centre", "random") if coverage is None else ("centre", "random", "gaze")
    return {name: MASK_SOURCES[name](clues).float() for name in names}
