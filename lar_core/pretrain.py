"""Pre-training a backbone on rendered scenes, before any demonstration: what PaliGemma brings, in miniature.

| recipe | what it learns from | |
|---|---|---|
| `places` | PaliGemma's tasks with the simulator's boxes (`model/places.py`) | the shipped `tabletop` was made by it |
| `words` | hidden words and patches, told from what is left of both (Kwon et al. 2023) | no coordinate anywhere |

The trained backbone is saved in transformers' own format, and `--set backbone=RUN_DIR/pretrained` gives it to any
condition. Training itself, with its checkpoints, is `train.Trainer`.

    RUN_DIR/pretrained/          the backbone and its processor; `pretrained-early/`: after a quarter of the training
    RUN_DIR/pretraining.json     what is measured in `measure/sight.py`, before, early and after
    RUN_DIR/pretraining.npz      maps of stored scenes, before and after, for `show/pictures.py`
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .data.dataset import channels_first
from .measure import sight
from .model.backbone import Backbone
from .model.mae import normalise_patches, reconstruction_loss
from .model.masking import make_mask
from .model.paligemma import load_for
from .model.places import Places
from .model.policy import Policy, make_policy
from .model.regularisers import hide_words, word_loss
from .model.tiny import prepare_backbone
from .model.train import Trainer
from .run.config import CONDITIONS, RunConfig, make_config
from .run.errors import LarError, unknown
from .run.files import atomic_path, produce, write_json
from .run.folder import DATA, Run, provenance
from .run.runtime import Draws, device
from .scene.captioned import Scenes, render_scenes, settled_scenes
from .scene.sentences import Said, detect, instruct, nameable, question

BASES = {"places": "action_only", "words": "joint_mask"}  # the condition that each recipe's settings begin with
FREE = ("mask_ratio", "lambda_recon", "language", "saliency_layers")  # what of it may be changed
KINDS = {instruct: 0.5, detect: 0.35, question: 0.15}  # of sentences, and how often
EARLY = 0.25  # share of the training after which the backbone is saved as well


def pretraining_config(recipe: str = "places", profile: str = "pretrain", seed: int = 0, **changes: Any) -> RunConfig:
    """What `lar pretrain` runs. Raises LarError as `make_config` does, and for an unknown recipe."""
    if recipe not in BASES:
        raise unknown("recipe", recipe, BASES)
    config = make_config(BASES[recipe], profile, seed, **changes)
    return config.replace(condition=config.condition.replace(name=recipe))


def pretrain(run: Run, data: Path = DATA, workers: int | None = None) -> dict:
    """Render scenes, train, save the backbone, and measure it before and after; what is done already is skipped.

    Returns what `pretraining.json` holds. Raises LarError for settings that cannot be pre-training.
    """
    _refuse(run.config)
    path = run.path / "pretraining.json"
    if not path.exists():
        *shards, settled = render_scenes(run.config, data, run.config.profile.scenes, workers=workers)
        if not run.trained:
            TRAINERS[run.config.condition.name](run, Described(Scenes(shards), run.config)).finish()
        for name, checkpoint in (("", run.final_checkpoint), ("-early", run.path / "early")):
            produce(pretrained(run, name), "saving the pre-trained backbone", partial(_export, run, name, checkpoint))
        write_json(path, _before_and_after(run, settled))
    return json.loads(path.read_text(encoding="utf-8"))


def pretrained(run: Run, name: str = "") -> Path:
    """The folder of the trained backbone, or of the one called `-early`."""
    return run.path / f"pretrained{name}"


class Described:
    """Scenes with what can be said of them, in the face of a `DemoDataset`: as many samples as training sees."""

    def __init__(self, scenes: Scenes, config: RunConfig):
        self.scenes, self.seed, self.samples = scenes, config.seed, max(config.profile.samples, len(scenes))

    def __len__(self) -> int:
        return self.samples

    def said(self, index: int) -> Said:
        """A sentence for sample number `index`, always the same."""
        rng = np.random.default_rng([self.seed, index])
        facts = self.scenes.facts(index % len(self.scenes))
        ask = rng.choice(list(KINDS), p=list(KINDS.values())) if nameable(facts) else question
        return ask(facts, int(rng.choice(nameable(facts) or [0])), rng)

    def batch(self, indices: list[int]) -> dict[str, Any]:
        """images (B, 3, H, W), wrist (B, 3, h, w), labels (B, H/2, W/2), wrist_labels (B, h/2, w/2) uint8; boxes
        (B, 7, 4) pixels; said, B sentences with what they name; instructions, their texts."""
        numbers, said = [index % len(self.scenes) for index in indices], [self.said(index) for index in indices]
        arrays = {name: torch.from_numpy(self.scenes.rows(name, numbers)) for name in ("labels", "wrist_labels", "boxes")}
        pictures = {name: channels_first(self.scenes.rows(name, numbers)) for name in ("images", "wrist")}
        return {**pictures, **arrays, "said": said, "instructions": [one.text for one in said]}


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


class WordsTrainer(Trainer):
    """A Trainer of hidden words and patches that keeps an early checkpoint."""

    kind: type[Policy] = JointMasking

    def save(self) -> None:
        """As any training does; the first checkpoint behind EARLY is kept for good."""
        super().save()
        early = self.run.path / "early"
        if self.step >= EARLY * self.config.steps and not early.exists() and self.accelerator.is_main_process:
            with atomic_path(early) as temporary:
                temporary.mkdir()
                self.bare.save(temporary / "model.safetensors")


class PlacesTrainer(WordsTrainer):
    """The same of places."""

    kind = Places


TRAINERS = {"places": PlacesTrainer, "words": WordsTrainer}


def _refuse(config: RunConfig) -> None:
    condition, recipe = config.condition, config.condition.name
    if recipe not in BASES:
        raise LarError(f"Pre-training has its own recipes, but the condition is {recipe!r}: leave --condition out, and "
                       f"choose with --recipe {' or '.join(BASES)}.")
    values = condition.model_dump()
    preset = CONDITIONS[BASES[recipe]].replace(name=recipe, **{name: values[name] for name in FREE if name in values})
    if condition != preset or (recipe == "words") != ("language" in condition.regularisers):
        raise LarError(f"Pre-training with recipe {recipe} is a condition of its own: change nothing of it but "
                       f"{', '.join(FREE)} (language above 0 with recipe words).")
    if config.profile.tune != "all":
        raise LarError(f"Pre-training trains every weight, but tune is {config.profile.tune}: choose a profile with "
                       "tune=all, such as pretrain.")


def _export(run: Run, name: str, checkpoint: Path) -> None:
    """Save the trained backbone and its processor as `from_pretrained` reads them."""
    policy = make_policy(run.config, prepare_backbone(run), kind=TRAINERS[run.config.condition.name].kind)
    policy.load(checkpoint / "model.safetensors")
    with atomic_path(pretrained(run, name)) as temporary:
        policy.backbone.processor.save_pretrained(temporary)
        policy.backbone.vlm.save_pretrained(temporary)


def _before_and_after(run: Run, settled: Path) -> dict:
    config = run.config
    folders = {"before": prepare_backbone(run), "early": pretrained(run, "-early"), "after": pretrained(run)}
    backbones = {name: load_for(config.profile, folder, config.condition.saliency_layers, device()).eval()
                 for name, folder in folders.items()}
    stored = sight.Stored.of(settled_scenes(settled), backbones["after"].patches)
    maps = {name: sight.look(backbone, stored) for name, backbone in backbones.items()}
    with atomic_path(run.path / "pretraining.npz") as temporary:
        np.savez_compressed(temporary, images=stored.images, regions=stored.regions,
                            instructions=np.array(stored.sentences), **maps)
    return {"config": config.model_dump(mode="json"), "provenance": provenance(), "stored": len(stored.images),
            **{name: measure(backbones[name], stored, maps[name], config.condition.name) for name in maps},
            "centre": sight.grounding(sight.centre(stored), stored)}


def measure(backbone: Backbone, stored: sight.Stored, maps: np.ndarray, recipe: str) -> dict:
    """What `sight` can measure of one backbone whose maps (M, P) are known: hidden words only where the recipe hides any,
    boxes only where it asks for them; `unheard_`: with forms of words that are new to it."""
    if recipe == "words":
        return sight.grounding(maps, stored) | sight.word_scores(backbone, stored)
    unheard = {f"unheard_{name}": value for name, value in sight.located(backbone, stored, stored.unheard).items()}
    return sight.located(backbone, stored, stored.sentences) | unheard | sight.grounding(maps, stored)
