"""Pre-training: language and sight from rendered scenes with generated captions, before any demonstration.

In every picture words of the caption and patches of the image are hidden at once, and predicted from what is left of
both (joint masked vision and language modelling, Kwon et al. 2023); there are no boxes. The trained backbone is saved in
transformers' own format, and `--set backbone=RUN_DIR/pretrained` gives it to any condition. Training itself, with its
checkpoints, is `train.Trainer`.

    RUN_DIR/pretrained/          the backbone and its processor
    RUN_DIR/pretraining.json     what is measured at the end of this file, before and after
    RUN_DIR/pretraining.npz      maps of stored scenes, before and after, for `show/pictures.py`
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .data.dataset import channels_first
from .measure.metrics import Truth, centre_map, in_context, patch_coverage
from .measure.statistics import over_episodes
from .model.backbone import Backbone, normalise_pixels
from .model.mae import normalise_patches, reconstruction_loss
from .model.masking import make_mask
from .model.paligemma import load_for
from .model.policy import Policy, make_policy
from .model.regularisers import hide_words, word_logits, word_loss
from .model.tiny import prepare_backbone
from .model.train import Trainer
from .run.config import CONDITIONS, RunConfig
from .run.draws import Draws
from .run.errors import LarError
from .run.files import atomic_path, produce, write_json
from .run.folder import DATA, Run, provenance
from .run.runtime import device
from .scene.captioned import Pictures, captions, render_scenes

CONDITION = "joint_mask"
FREE = ("mask_ratio", "lambda_recon", "language", "saliency_layers")  # what of the condition may be changed


def pretrain(run: Run, data: Path = DATA, workers: int | None = None) -> dict:
    """Render scenes, train, save the backbone, and measure it before and after; what is done already is skipped.

    Returns what `pretraining.json` holds. Raises LarError for settings that cannot be pre-training.
    """
    _refuse(run.config)
    path = run.path / "pretraining.json"
    if not path.exists():
        scenes = render_scenes(run.config, data, workers=workers)
        if not run.trained:
            Pretrainer(run, Captioned(scenes)).finish()
        produce(pretrained(run), "saving the pre-trained backbone", partial(_export, run))
        write_json(path, _before_and_after(run, scenes))
    return json.loads(path.read_text(encoding="utf-8"))


def pretrained(run: Run) -> Path:
    """The folder of the trained backbone."""
    return run.path / "pretrained"


class Captioned:
    """Every picture with every caption of its scene, in the face of a `DemoDataset`."""

    def __init__(self, scenes: Sequence[Pictures]):
        self.images = np.concatenate([pictures.images for pictures in scenes])  # (N, H, W, 3)
        tasks = [pictures.task for pictures in scenes for _ in pictures.images]
        self.pairs = [(number, sentence) for number, task in enumerate(tasks) for sentence in captions(task)]

    def __len__(self) -> int:
        return len(self.pairs)

    def batch(self, indices: Sequence[int]) -> dict[str, Tensor | list[str]]:
        """images (B, 3, H, W) uint8; instructions, B captions."""
        numbers, sentences = zip(*[self.pairs[index] for index in indices])
        return {"images": channels_first(self.images[list(numbers)]), "instructions": list(sentences)}


class JointMasking(Policy):
    """A policy that is asked for hidden words and patches instead of actions; its head stays as it is."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.head.requires_grad_(False)

    @property
    def weights(self) -> dict[str, float]:
        """Of the two losses."""
        return {"language": self.condition.regularisers["language"], "recon": self.condition.lambda_recon}

    def forward(self, batch: dict, draws: Draws) -> dict[str, Tensor]:
        """`loss` and its parts: `language`, nats a token, and `recon`, as in any condition."""
        backbone, pixels = self.backbone, self.target_pixels(batch["images"])
        whole = backbone.tokenise(batch["instructions"])
        cut, words = hide_words(backbone, whole, draws)
        mask = make_mask("random", saliency=pixels[..., 0], coverage=None, ratio=self.condition.mask_ratio, draws=draws)
        encoding, = self.see_again(batch, [cut], hidden=mask, saliency=False)
        losses = {"language": word_loss(backbone, encoding.text, whole, words),
                  "recon": reconstruction_loss(self.decoder(encoding.patches, mask), normalise_patches(pixels), mask)}
        return {"loss": sum(weight * losses[name] for name, weight in self.weights.items()), **losses}


class Pretrainer(Trainer):
    """A Trainer of words and patches, on captioned pictures."""

    kind = JointMasking


def _refuse(config: RunConfig) -> None:
    condition = config.condition
    values = condition.model_dump()
    preset = CONDITIONS[CONDITION].replace(**{name: values[name] for name in FREE if name in values})
    if condition != preset:
        raise LarError(f"Pre-training hides words and random patches, as condition {CONDITION} does: leave --condition "
                       f"out, and change nothing of it but {', '.join(FREE)} (language above 0).")
    if config.profile.tune != "all":
        raise LarError(f"Pre-training trains every weight, but tune is {config.profile.tune}: choose a profile with "
                       "tune=all, such as tiny.")


def _export(run: Run) -> None:
    """Save the trained backbone and its processor as `from_pretrained` reads them."""
    policy = make_policy(run.config, prepare_backbone(run), kind=JointMasking)
    policy.load(run.final_checkpoint / "model.safetensors")
    with atomic_path(pretrained(run)) as temporary:
        policy.backbone.processor.save_pretrained(temporary)
        policy.backbone.vlm.save_pretrained(temporary)


def _before_and_after(run: Run, scenes: Sequence[Pictures]) -> dict:
    folders, config = {"before": prepare_backbone(run), "after": pretrained(run)}, run.config
    backbones = {name: load_for(config.profile, folder, config.condition.saliency_layers, device()).eval()
                 for name, folder in folders.items()}
    heldout = Heldout.of(scenes, backbones["after"].patches)
    maps = {name: look(backbone, heldout) for name, backbone in backbones.items()}
    with atomic_path(run.path / "pretraining.npz") as temporary:
        np.savez_compressed(temporary, images=heldout.images, regions=heldout.regions,
                            instructions=np.array(heldout.instructions), **maps)
    return {"config": config.model_dump(mode="json"), "provenance": provenance(),
            "pictures": sum(len(pictures.images) for pictures in scenes), "heldout": len(heldout.images),
            **{name: grounding(maps[name], heldout) | word_scores(backbones[name], heldout) for name in maps},
            "centre": grounding(centre(heldout), heldout)}


# What pre-training gave a backbone: where it looks in stored scenes, and how many hidden words it guesses.

MEASURES = ("aos", "auc", "pointing", "on_target", "on_other", "target_minus_distractor")
BATCH = 32


@dataclass(frozen=True)
class Heldout:
    """Stored scenes: images (M, H, W, 3) uint8, M instructions, pixels of the named bowl and of the other one, regions
    (M, 2, H, W), and the shares of the patches that they cover, coverage (M, 2, P).
    """

    images: np.ndarray
    instructions: list[str]
    regions: np.ndarray
    coverage: np.ndarray

    @classmethod
    def of(cls, scenes: Sequence[Pictures], patches: int) -> Heldout:
        """The stored scenes of some tasks, for a backbone with so many patches."""
        grid = round(patches**0.5)
        regions = np.concatenate([pictures.heldout_regions for pictures in scenes])  # (M, 2, H, W)
        return cls(np.concatenate([pictures.heldout_images for pictures in scenes]),
                   [sentence for pictures in scenes for sentence in pictures.heldout_instructions], regions,
                   np.stack([patch_coverage(regions[:, side], grid) for side in range(2)], axis=1))


@torch.no_grad()
def look(backbone: Backbone, heldout: Heldout) -> np.ndarray:
    """The backbone's saliency (M, P)."""
    return torch.cat([backbone.encode(images, sentences).saliency
                      for images, sentences in _parts(backbone, heldout)]).cpu().numpy()


@torch.no_grad()
def word_scores(backbone: Backbone, heldout: Heldout) -> dict:
    """The share of hidden words' tokens that the backbone guesses: `words`, and `words_without_picture`, with grey in its
    place. Means over scenes with their bootstrap intervals.
    """
    return {"words": _guessed(backbone, heldout), "words_without_picture": _guessed(backbone, heldout, blank=True)}


def grounding(saliency: np.ndarray, heldout: Heldout) -> dict:
    """Each of MEASURES of maps (M, P): means over scenes with their bootstrap intervals."""
    scores = in_context(saliency, Truth.of_shares(heldout.coverage))
    return {name: _mean(scores[name]) for name in MEASURES}


def centre(heldout: Heldout) -> np.ndarray:
    """Maps (M, P) that never look."""
    patches = heldout.coverage.shape[2]
    return np.broadcast_to(centre_map(round(patches**0.5)), (len(heldout.images), patches))


def table(found: dict) -> str:
    """Columns of measures, by name, for the terminal."""
    def cell(column: dict, name: str) -> str:
        value = column.get(name)
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]" if value else "-"
    lines = [f"{'':24}" + "".join(f"{name:24}" for name in found)]
    names = dict.fromkeys(name for column in found.values() for name in column)
    lines += [f"{name:24}" + "".join(f"{cell(column, name):24}" for column in found.values()) for name in names]
    return "\n".join(line.rstrip() for line in lines)


def _guessed(backbone: Backbone, heldout: Heldout, blank: bool = False) -> dict | None:
    """The same words are hidden in every call."""
    draws, shares = Draws(0), []
    for images, sentences in _parts(backbone, heldout):
        whole = backbone.tokenise(sentences)
        cut, hidden = hide_words(backbone, whole, draws)
        seen = backbone.lower(torch.zeros_like(images) if blank else images, cut)
        guesses = word_logits(backbone, backbone.upper(seen, cut, saliency=False).text, hidden).argmax(-1)
        right = torch.zeros(hidden.shape, device=hidden.device)
        right[hidden] = (guesses == whole.ids[:, backbone.patches:][hidden]).float()
        shares += (right.sum(1) / hidden.sum(1)).tolist()
    return _mean(shares)


def _parts(backbone: Backbone, heldout: Heldout) -> Iterator[tuple[Tensor, list[str]]]:
    """Images (B, 3, H, W) in [-1, 1] and their instructions, BATCH at a time."""
    for start in range(0, len(heldout.images), BATCH):
        images = channels_first(heldout.images[start : start + BATCH]).to(backbone.vlm.device)
        yield normalise_pixels(images), heldout.instructions[start : start + BATCH]


def _mean(values: Sequence[float]) -> dict | None:
    return over_episodes(np.array(values), np.arange(len(values)))
