"""The policy: backbone -> saliency -> mask -> decoder -> loss, and backbone -> head -> actions.

Batch keys and shapes (see `lar_core.data.dataset`): images uint8 (B, 3, H, W); wrist uint8 (B, 3, h, w); proprio
(B, 8) normalised; instructions, B sentences; actions (B, K, 7) in [-1, 1]; action_pad (B, K) bool; regions uint8
(B, 2, H, W), pixels of the named object and of the other bowl; previous and following uint8 (B, 3, H, W), the frames
before and after; mask_ratio, the share of patches to mask at this step; others, B sentences that name the other bowl,
or None. From the feature cache come, instead of a run through the frozen layers, the fields of `backbone.Seen`. `valid` is
the number of valid steps to divide L_action by, where several processes share a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import DynamicCache

from ..data.dataset import Stats
from ..run.config import RunConfig
from ..run.errors import LarError
from ..run.folder import Run
from ..run.registry import HEADS, RECONSTRUCTORS, REGULARISERS
from ..run.runtime import Draws, act_precision
from ..run.settings import BLANK, Condition, Profile
from .aggregation import GENERIC, localising_heads
from .backbone import Backbone, Encoding, Prefix, Seen, normalise_pixels
from .diffusion import Denoising, DiffusionDecoder, densest_boxes, object_boxes
from .heads import Head, Trunk
from .knockout import Knockout
from .losses import each
from .mae import MAEDecoder, Reconstruction, normalise_patches, patchify
from .masking import ESSAY_GRID, ESSAY_PATCH, area_resample, make_mask, pixel_mask
from .paligemma import load_for, settle
from .regularisers import Given
from .saliency import Rows
from .tiny import prepare_backbone, prepare_vae
from .weights import check_trained_on, first_not_finite, reading

DECAY = 0.996  # teacher = DECAY * teacher + (1 - DECAY) * student after every step


class Policy(nn.Module):
    """A backbone, an action head and, where the condition asks for one, a reconstruction decoder."""

    def __init__(self, backbone: Backbone, condition: Condition, profile: Profile, vae: Path | None = None):
        super().__init__()
        self.condition, self.profile = condition, profile
        self.backbone = backbone
        backbone.aggregation = backbone.make_aggregation(condition.aggregation)
        self.head = make_head(condition, profile, Trunk(backbone.width, backbone.layers - backbone.join,
                                                        backbone.vision_width))
        if condition.saliency_rows == "bos" and backbone.processor.tokenizer.bos_token is None:
            raise LarError("saliency_rows is bos, but this backbone's tokenizer has no such token: choose text or action.")
        self.rows = Rows(condition.saliency_rows, self.head.tokens)
        self.grid = ESSAY_GRID if condition.mask_grid == "essay" else round(backbone.patches**0.5)
        self.patch_size = ESSAY_PATCH if condition.mask_grid == "essay" else backbone.image_size // self.grid
        self.teacher: Teacher | None = None  # given by the trainer, where the condition asks for one
        self.decoder = make_decoder(condition, profile, grid=self.grid, patch_size=self.patch_size,
                                    feature_width=backbone.width, vae=vae)
        self.readers = make_readers(condition, backbone.width)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.backbone.vlm.device

    @property
    def weights(self) -> dict[str, float]:
        """What each part of the loss is multiplied by."""
        recon = {} if self.decoder is None else {"recon": self.condition.lambda_recon}
        return {"action": 1.0, **recon, **self.condition.regularisers}

    def forward(self, batch: dict, draws: Draws | None = None) -> dict[str, Tensor]:
        """Losses of a batch: `loss` = L_action + lambda * L_recon + the regularisers' weighted sum, and each part by
        itself, `action`, `recon` (0 without a decoder) and the regularisers that are on.
        """
        draws, regularised = draws or Draws(0), bool(self.condition.regularisers)
        reads = self.decoder is not None or regularised  # whether anything asks where the instruction looks
        seen = self.look(batch)  # states (B, P + L, D) of image and text, at the layer where the head's tokens join
        encoding = self.encode(batch, seen, saliency=reads, differentiable=regularised)  # final states, and attention
        answer = self.head(encoding)
        action = self.head.loss(answer, batch["actions"], batch["action_pad"], batch.get("valid"))
        losses, mask = {"action": action, "recon": torch.zeros_like(action)}, None
        if self.decoder is not None:
            saliency = self.saliency(batch, encoding)  # (B, P)
            mask = self.mask(batch, saliency, draws)  # (B, P), True = masked
            losses["recon"] = self.reconstruct(batch, encoding, mask, draws).loss
        if regularised:
            losses |= self.regularise(batch, encoding, answer, mask, draws)
        return {"loss": sum(weight * losses[name] for name, weight in self.weights.items()), **losses}

    @torch.no_grad()
    def act(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Predict a chunk: normalised actions (B, K, 7) and the saliency (B, P) behind them."""
        seen, prefix = self.look(batch), self.prefix(batch)
        past = DynamicCache() if self.head.writes else None
        encoding = self.backbone.upper(seen, prefix, self.head.suffix(seen.wrist_tokens, batch["proprio"]), past=past,
                                       every_layer=self.head.reads_layers, rows=self.rows)
        if self.condition.guidance:
            return self.head.decode(self.guide(batch, self.head(encoding))), encoding.saliency
        return self.head.act(encoding, partial(self.backbone.extend, prefix=prefix, past=past)), encoding.saliency

    def without(self, batch: dict, path: str, layers: Collection[int] | None = None) -> Knockout:
        """A path of attention to be cut in passes over a batch, in some layers of the backbone; None: in all."""
        text = self.prefix(batch, saliency=False).instruction.shape[1]
        return Knockout.of(path, layers or range(self.backbone.layers), self.backbone.patches, text)

    def guide(self, batch: dict, answer: Tensor) -> Tensor:
        """The answer pushed away from that under a blank sentence, in one more pass: blank + (1 + guidance) (own - blank).

        Counterfactual action guidance (Fang et al. 2026), in the manner of classifier-free guidance. Of logits this is the
        same as of log-probabilities: what differs is one number a distribution, which its softmax takes no notice of.
        """
        blank = self.head(self.encode(batch | {"instructions": [BLANK] * len(answer)}, saliency=False))
        return torch.lerp(blank, answer, 1 + self.condition.guidance)

    def look(self, batch: dict, hidden: Tensor | None = None) -> Seen:
        """What the layers below `join` make of the pixels and words, or what the feature cache has kept of it.

        hidden (B, P) bool: patches of the image to grey out.
        """
        if "states" in batch:
            return Seen(batch["states"], batch.get("wrist_tokens"), batch.get("vision"))
        wrist = self.see(batch["wrist"]) if "wrist" in batch else None
        return self.backbone.lower(self.see(batch["images"], hidden), self.prefix(batch, saliency=False), wrist,
                                   vision=self.head.reads_vision)

    def encode(self, batch: dict, seen: Seen | None = None, *, saliency: bool = True,
               differentiable: bool = False) -> Encoding:
        """The layers from `join` on, with the head's tokens behind the prefix.

        seen: what `look` gave, where it has looked already; the other options as in `Backbone.upper`.
        """
        seen = seen or self.look(batch)
        suffix = self.head.suffix(seen.wrist_tokens, batch["proprio"], batch.get("actions"))  # (B, S, D)
        return self.backbone.upper(seen, self.prefix(batch, saliency), suffix, saliency=saliency,
                                   differentiable=differentiable, every_layer=self.head.reads_layers, rows=self.rows)

    def saliency(self, batch: dict, encoding: Encoding) -> Tensor:
        """Where the instruction looks, (B, P): in the eyes of the policy itself, or of its teacher if it has one."""
        return encoding.saliency if self.teacher is None else self.teacher.saliency(self, batch)

    def mask(self, batch: dict, saliency: Tensor, draws: Draws, source: str | None = None) -> Tensor:
        """Choose the patches to reconstruct: (B, P) bool on the mask's grid, True = masked.

        source: another mask source than the condition's.
        """
        coverage = motion = None  # (B, P): what of a patch the named object covers, and how much it changed
        if "regions" in batch:
            coverage = area_resample(batch["regions"][:, 0].flatten(1).float(), self.grid)
        if "previous" in batch:
            change = (batch["images"].float() - batch["previous"].float()).abs().mean(dim=1)  # (B, H, W)
            motion = area_resample(change.flatten(1), self.grid)
        return make_mask(source or self.condition.mask_source, saliency=area_resample(saliency, self.grid),
                         coverage=coverage, motion=motion, ratio=self.ratio(batch), draws=draws)

    def ratio(self, batch: dict) -> float:
        """The share of patches that is masked; in training it may grow."""
        return batch.get("mask_ratio", self.condition.mask_ratio)

    def reconstruct(self, batch: dict, encoding: Encoding, mask: Tensor, draws: Draws) -> Reconstruction | Denoising:
        """Fill in what `mask` hides, or denoise the region around it."""
        assert self.decoder is not None, "nothing is reconstructed without a reconstructor"
        if self.condition.mask_input:
            encoding = self.encode(batch, self.look(batch, hidden=mask), saliency=False)
        states = area_resample(encoding.patches, self.grid)  # (B, P, D), on the mask's grid
        if self.condition.reconstructor == "diffusion":
            is_gaze = self.condition.mask_source == "gaze"
            boxes = object_boxes(batch["regions"][:, 0]) if is_gaze else densest_boxes(mask)
            return self.decoder(self.see(batch["images"]), mask, boxes, states, draws)
        pixels = self.target_pixels(batch["images"])
        target = normalise_patches(pixels) if self.condition.recon_target == "normalised" else pixels
        return Reconstruction(mask, self.decoder(states, mask), target, pixels)

    def regularise(self, batch: dict, encoding: Encoding, answer: Tensor, mask: Tensor | None,
                   draws: Draws) -> dict[str, Tensor]:
        """The regularisers that are on, by name. answer: what the head made of `encoding`."""
        batch = batch | {"instructions": self.hear(batch["instructions"])}
        given = Given(self.backbone, batch, encoding.saliency, self.ratio(batch),
                      mask if self.condition.mask_input else None, draws, partial(self.see_again, batch),
                      partial(self.surprise, batch, answer), self.readers)
        return {name: REGULARISERS[name](given) for name in self.condition.regularisers}

    def see(self, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """uint8 pixels -> [-1, 1]; patches where hidden (B, P) is True, and all that a blind policy gets, are grey (0)."""
        images = normalise_pixels(images)
        if hidden is not None:
            images = images.masked_fill(pixel_mask(hidden, images.shape[-1]), 0.0)
        return torch.zeros_like(images) if self.condition.blind else images

    def hear(self, sentences: Sequence[str]) -> list[str]:
        """The sentences as they are; a deaf policy gets BLANK in the place of each."""
        return [BLANK] * len(sentences) if self.condition.deaf else list(sentences)

    def see_again(self, batch: dict, prefixes: Sequence[Prefix], *, hidden: Tensor | None = None, frame: str = "images",
                  saliency: bool = True) -> list[Encoding]:
        """One more pass over the batch's images for each of `prefixes`, as `regularisers.Given` has it."""
        images = self.see(batch[frame], hidden)
        features = self.backbone.image_features(images)
        return [self.backbone.upper(self.backbone.lower(images, prefix, features=features), prefix, saliency=saliency,
                                    differentiable=True, rows=self.rows) for prefix in prefixes]

    def surprise(self, batch: dict, answer: Tensor, sentences: Sequence[str] | None = None) -> Tensor:
        """L_action of every frame by itself, (B,), of an answer, or after one more pass that is told other `sentences`."""
        if sentences is not None:
            answer = self.head(self.encode(batch | {"instructions": sentences}, saliency=False))
        return each(self.head.loss, answer, batch["actions"], batch["action_pad"])

    def prefix(self, batch: dict, saliency: bool = True) -> Prefix:
        """The instructions as tokens, with a generic prompt's map where the aggregation of saliency divides by it."""
        prefix = self.backbone.tokenise(self.hear(batch["instructions"]))
        if saliency and self.backbone.aggregation.relative:
            with torch.no_grad():  # where a prompt that names nothing looks
                prefix.reference = self.backbone.encode(self.see(batch["images"]), [GENERIC] * len(prefix.ids),
                                                        rows=self.rows).saliency
        return prefix

    def target_pixels(self, images: Tensor) -> Tensor:
        """images uint8 -> pixels of the mask grid's patches (B, P, 3pp) in [-1, 1], resized where the grid asks."""
        size = self.grid * self.patch_size
        images = self.see(images)
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return patchify(images, self.grid)

    @torch.no_grad()
    def choose_heads(self, batches: Iterable[dict]) -> list[tuple[int, int]]:
        """The heads that localise best in these frames: (layer, head), counted from the first tapped layer."""
        attention = []  # (B, N, H, P) each, mean over those who are asked
        for batch in batches:
            encoding = self.encode(batch)
            asked = encoding.asked.float()
            mean = torch.einsum("bnhrp,br->bnhp", encoding.attention, asked / asked.sum(dim=1, keepdim=True))
            attention.append(mean.cpu().numpy())
        return localising_heads(np.concatenate(attention))

    def trained(self) -> dict[str, Tensor]:
        """Every tensor that training changes, by name: for a tiny profile all weights, for a 3 B one a few per cent."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def kept(self) -> dict[str, Tensor]:
        """What a checkpoint holds: what is trained, and which heads were chosen for the saliency."""
        return self.trained() | {name: buffer for name, buffer in self.named_buffers() if ".aggregation." in name}

    def save(self, path: Path) -> None:
        """Write `kept` as safetensors, whose metadata remember which backbone weights it was trained on."""
        # One entry only: safetensors writes several in any order, and equal policies should be equal files.
        remembered = {"backbone": self.backbone.identity} if self.backbone.identity else None
        save_file({name: tensor.detach().contiguous() for name, tensor in self.kept().items()}, path, remembered)

    def load(self, path: Path) -> None:
        """Read what `save` wrote. Raises LarError when it is damaged, of another model, or of other backbone weights."""
        with reading(f"The checkpoint {path}", "delete its folder to go on from the one before"):
            check_trained_on(path, self.backbone.identity)
            state = load_file(path)
            if foreign := set(state) ^ set(self.kept()):
                raise KeyError(f"{min(foreign)} is in only one of the two")
            if wild := first_not_finite(state):
                raise ValueError(f"{wild} holds NaN or infinity")
            self.load_state_dict(state, strict=False)


class Teacher:
    """A copy of the backbone that follows it slowly, and whose attention chooses the mask.

    The mask then does not change with every step of what it trains (as in AttMask, Kakogeorgiou et al. 2022, and DINO,
    Caron et al. 2021). The teacher belongs to training: its weights lie beside the optimiser's in the checkpoint, and a
    trained policy does without it. weights: the exponential moving average of every tensor of the backbone that training
    changes, by name.
    """

    def __init__(self, policy: Policy, decay: float = DECAY):
        self._average = get_ema_multi_avg_fn(decay)
        self.weights = {name: tensor.detach().clone() for name, tensor in policy.trained().items()
                        if name.startswith("backbone.")}

    def follow(self, policy: Policy) -> None:
        """Come nearer to the policy's weights, after an optimiser step."""
        student = policy.trained()
        self._average(list(self.weights.values()), [student[name].detach() for name in self.weights], None)

    @torch.no_grad()
    def saliency(self, policy: Policy, batch: dict) -> Tensor:
        """Where the instructions of a batch look with the teacher's weights in the policy's place: (B, P)."""
        weights = {f"policy.{name}": tensor for name, tensor in self.weights.items()}
        return functional_call(_Looking(policy), weights, (batch,))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self.weights

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on with the weights of a checkpoint."""
        for name, tensor in state.items():
            self.weights[name].copy_(tensor)


class _Looking(nn.Module):
    """What `functional_call` wants: a module whose forward pass is the saliency of a policy."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, batch: dict) -> Tensor:
        return self.policy.encode(batch).saliency


# Policies and their parts, untrained, and a run's trained one.

def make_policy(config: RunConfig, backbone: str | Path, device: torch.device | str = "cpu",
                vae: Path | None = None, kind: type[Policy] = Policy) -> Policy:
    """Build an untrained policy around the backbone in `backbone`; new weights depend on the seed alone.

    vae: folder of the autoencoder, where the reconstruction target is latents. kind: a subclass, for other losses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        loaded = load_for(config.profile, backbone, config.condition.saliency_layers, device)
        return kind(loaded, config.condition, config.profile, vae).to(device)


def load_policy(run: Run, on: torch.device | str = "cpu") -> tuple[Policy, Stats]:
    """The trained policy of a run, ready to act. Raises LarError when training is not finished."""
    if not run.trained:
        raise LarError(f"{run.path} holds no finished training: run `lar train` with the same settings first.")
    policy = make_policy(acting(run.config, torch.device(on)), prepare_backbone(run), on, prepare_vae(run.config))
    policy.load(run.final_checkpoint / "model.safetensors")
    settle(policy.backbone)
    return policy.eval(), Stats.load(run.stats)


def acting(config: RunConfig, on: torch.device) -> RunConfig:
    """The configuration at the precision in which its policy acts on this device."""
    precision = act_precision(config.profile.act_precision, config.profile.precision, on)
    return config.replace(precision=precision, checkpointing=False)


def make_head(condition: Condition, profile: Profile, trunk: Trunk) -> Head:
    """The untrained head; what is its own are the settings of the condition that begin with its name, as `focus_keep`."""
    own = {name.removeprefix(f"{condition.head}_"): value for name, value in vars(condition).items()
           if name.startswith(f"{condition.head}_")}
    return HEADS[condition.head](trunk, chunk=profile.chunk, l1=condition.action_loss == "l1", proprio=profile.proprio,
                                 **own)


def make_readers(condition: Condition, width: int) -> nn.ModuleDict:
    """What of their own the condition's regularisers learn, by name. width: the backbone's."""
    made = {name: REGULARISERS.about(name).reader for name in condition.regularisers}
    return nn.ModuleDict({name: make(width) for name, make in made.items() if make})


def make_decoder(condition: Condition, profile: Profile, *, grid: int, patch_size: int, feature_width: int,
                 vae: Path | None = None) -> MAEDecoder | DiffusionDecoder | None:
    """The untrained decoder of grid * grid patches, from states of width `feature_width`; None to reconstruct nothing.

    vae: folder of the autoencoder, where the target is latents.
    """
    if condition.reconstructor == "none":
        return None
    return RECONSTRUCTORS[condition.reconstructor](condition, profile, grid, patch_size, feature_width, vae)
