"""Pre-training: language and sight from rendered scenes with generated captions, before any demonstration.

In every picture words of the caption and patches of the image are hidden at once, and predicted from what is left of
both (joint masked vision and language modelling, Kwon et al. 2023); there are no boxes. The trained backbone is saved in
transformers' own format, and `--set backbone=RUN_DIR/pretrained` gives it to any condition. Training itself, with its
checkpoints, is `train.Trainer`.

    RUN_DIR/pretrained/          the backbone and its processor
    RUN_DIR/pretraining.json     what `evaluate.pretraining` measures, before and after
    RUN_DIR/pretraining.npz      maps of stored scenes, before and after, for `view.pretraining`
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from torch import Tensor

from .data.dataset import channels_first
from .measure.pretraining import Heldout, centre, grounding, look, word_scores
from .model.loading import load_for
from .model.mae import normalise_patches, reconstruction_loss
from .model.masking import make_mask
from .model.policy import Policy, make_policy
from .model.regularisers import hide_words, word_loss
from .model.train import Trainer
from .model.weights import prepare_backbone
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
