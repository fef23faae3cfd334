"""The policy: backbone -> saliency -> mask -> decoder -> loss, and backbone -> head -> actions.

Batch keys and shapes (see `lar_core.data.dataset`): images uint8 (B, 3, H, W); wrist uint8 (B, 3, h, w); proprio
(B, 8) normalised; instructions, B sentences; actions (B, K, 7) in [-1, 1]; action_pad (B, K) bool; regions uint8
(B, 2, H, W), pixels of the named object and of the other bowl; previous uint8 (B, 3, H, W), the frame before;
mask_ratio, the share of patches to mask at this step; others, B sentences that name the other bowl, or None. From the
feature cache come, instead of a run through the frozen layers, states (B, P + L, D), wrist_tokens (B, W, D) and vision
(B, P + W, V), as `look` gives them. `valid` is the number of valid steps to divide L_action by, where several processes
share a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..config import Condition, Profile, RunConfig
from ..draws import Draws
from ..errors import Damaged, LarError
from .aggregation import GENERIC
from .backbone import Backbone, Encoding, Prefix
from .crops import crop, densest_boxes, object_boxes
from .decoders import make_decoder
from .head import Trunk
from .heads import HEADS
from .loading import load_for
from .localisation import choose_heads
from .mae import normalise_patches, patchify, reconstruction_loss
from .masking import ESSAY_GRID, ESSAY_PATCH, area_resample, make_mask, pixel_mask
from .regularisers import REGULARISERS, Given
from .teacher import Teacher
from .weight_files import check_trained_on, first_not_finite

if TYPE_CHECKING:
    from .diffusion import Denoising


@dataclass
class Reconstruction:
    """mask (B, P) bool, True = masked; prediction and target (B, P, 3pp); pixels (B, P, 3pp), the raw target."""

    mask: Tensor
    prediction: Tensor
    target: Tensor
    pixels: Tensor

    @property
    def loss(self) -> Tensor:
        return reconstruction_loss(self.prediction, self.target, self.mask)


class Policy(nn.Module):
    """A backbone, an action head and, where the condition asks for one, a reconstruction decoder."""

    def __init__(self, backbone: Backbone, condition: Condition, profile: Profile, vae: Path | None = None):
        super().__init__()
        self.condition, self.profile = condition, profile
        self.backbone = backbone
        backbone.aggregation = backbone.make_aggregation(condition.aggregation)
        self.head = HEADS[condition.head](condition, profile, Trunk(backbone.width, backbone.layers - backbone.join,
                                                                    backbone.vision_width))
        self.grid = ESSAY_GRID if condition.mask_grid == "essay" else round(backbone.patches**0.5)
        self.patch_size = ESSAY_PATCH if condition.mask_grid == "essay" else backbone.image_size // self.grid
        self.teacher: Teacher | None = None  # given by the trainer, where the condition asks for one
        self.decoder = make_decoder(condition, profile, grid=self.grid, patch_size=self.patch_size,
                                    feature_width=backbone.width, vae=vae)

    @property
    def device(self) -> torch.device:
        return self.backbone.vlm.device

    def forward(self, batch: dict, draws: Draws | None = None) -> dict[str, Tensor]:
        """Losses of a batch: `loss` = L_action + lambda * L_recon + the regularisers' weighted sum, and each part by
        itself, `action`, `recon` (0 without a decoder) and the regularisers that are on.
        """
        regularised = bool(self.condition.regularisers)
        encoding = self.encode(batch, saliency=self.decoder is not None or regularised, differentiable=regularised)
        action = self.head.loss(self.head(encoding), batch["actions"], batch["action_pad"], batch.get("valid"))
        losses, mask = {"action": action, "recon": torch.zeros_like(action)}, None
        if self.decoder is not None:
            recon = self.reconstruct(batch, encoding, draws)
            losses["recon"], mask = recon.loss, recon.mask
        if regularised:
            given = Given(self, batch, encoding.saliency, mask, draws or Draws(0))
            losses |= {name: REGULARISERS[name](given) for name in self.condition.regularisers}
        return {"loss": sum(weight * losses[name] for name, weight in self.weights.items()), **losses}

    @property
    def weights(self) -> dict[str, float]:
        """What each part of the loss is multiplied by."""
        recon = {} if self.decoder is None else {"recon": self.condition.lambda_recon}
        return {"action": 1.0, **recon, **self.condition.regularisers}

    def encode(self, batch: dict, *, saliency: bool = True, hidden: Tensor | None = None,
               differentiable: bool = False) -> Encoding:
        """Run the backbone on a batch; pixels where `hidden` (B, 1, H, W) is True are replaced by grey.

        differentiable: whether a loss on the saliency reaches the weights.
        """
        prefix = self.prefix(batch, saliency)
        seen = batch if "states" in batch else self.look(batch, hidden)
        return self.head.encode(self.backbone, prefix, seen, batch["proprio"], batch.get("actions"), saliency=saliency,
                                differentiable=differentiable)

    def prefix(self, batch: dict, saliency: bool = True) -> Prefix:
        """The instructions as tokens, with a generic prompt's map where the aggregation of saliency divides by it."""
        prefix = self.backbone.tokenise(batch["instructions"])
        if saliency and self.backbone.aggregation.relative:
            prefix.reference = self._generic(batch["images"])
        return prefix

    @torch.no_grad()
    def _generic(self, images: Tensor) -> Tensor:
        """Where a prompt that names nothing looks: saliency (B, P)."""
        generic = self.backbone.tokenise([GENERIC] * len(images))
        return self.backbone.upper(self.backbone.lower(self.see(images), generic), generic).saliency

    def look(self, batch: dict, hidden: Tensor | None = None) -> dict[str, Tensor]:
        """What the layers below `join` make of the pixels: states (B, P + L, D); wrist_tokens (B, W, D), if there is a
        wrist camera; vision (B, P + W, V), if the head asks for it.
        """
        images = self.see(batch["images"])
        if hidden is not None:
            images = images.masked_fill(hidden, 0.0)
        seen, wrist = {}, None
        if "wrist" in batch:
            wrist = self.backbone.image_features(self.see(batch["wrist"]))
            seen["wrist_tokens"] = self.backbone.project(wrist)
        features = self.backbone.image_features(images)
        seen["states"] = self.backbone.lower(images, self.backbone.tokenise(batch["instructions"]), features)
        if self.head.reads_vision:
            seen["vision"] = features if wrist is None else torch.cat([features, wrist], dim=1)
        return seen

    def see(self, images: Tensor) -> Tensor:
        """uint8 pixels -> [-1, 1], as SigLIP's processor does; a blind policy gets mid-grey (0) everywhere."""
        images = images.to(torch.float32) / 127.5 - 1
        return torch.zeros_like(images) if self.condition.blind else images

    def reconstruct(self, batch: dict, encoding: Encoding, draws: Draws | None = None) -> Reconstruction | Denoising:
        """Choose the mask and reconstruct what it hides, or the region around it."""
        saliency = encoding.saliency if self.teacher is None else self.teacher.saliency(self, batch)
        mask = make_mask(self.condition.mask_source, saliency=area_resample(saliency, self.grid),
                         coverage=self.coverage(batch), draws=draws, motion=self.motion(batch),
                         ratio=batch.get("mask_ratio", self.condition.mask_ratio))
        if self.condition.mask_input:
            hidden = pixel_mask(mask, self.backbone.image_size)
            encoding = self.encode(batch, saliency=False, hidden=hidden)
        states = area_resample(encoding.patches, self.grid)
        if self.condition.reconstructor == "diffusion":
            return self.denoise(batch, mask, states, draws or Draws(0))
        prediction = self.decoder(states, mask)
        pixels = self.target_pixels(batch["images"])
        target = normalise_patches(pixels) if self.condition.recon_target == "normalised" else pixels
        return Reconstruction(mask, prediction, target, pixels)

    def denoise(self, batch: dict, mask: Tensor, states: Tensor, draws: Draws) -> Denoising:
        """Noise the region and name the noise: of the named object for `gaze`, else where most is masked."""
        from .diffusion import Denoising
        is_gaze = self.condition.mask_source == "gaze"
        boxes = object_boxes(batch["regions"][:, 0]) if is_gaze else densest_boxes(mask)
        images = self.see(batch["images"])
        noised = self.decoder.noised(crop(images, boxes, self.decoder.target.size), draws)
        return Denoising(images, mask, boxes, states, noised, self.decoder.errors(states, noised))

    def target_pixels(self, images: Tensor) -> Tensor:
        """images uint8 -> pixels of the mask grid's patches (B, P, 3pp) in [-1, 1], resized where the grid asks."""
        size = self.grid * self.patch_size
        images = self.see(images)
        if images.shape[-1] != size:
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        return patchify(images, self.grid)

    def coverage(self, batch: dict) -> Tensor | None:
        """Share of each mask-grid patch (B, P) that the named object covers; None without segmentation."""
        if "regions" not in batch:
            return None
        pixels = batch["regions"][:, 0].flatten(1).float()  # (B, H*W)
        return area_resample(pixels, self.grid)

    def motion(self, batch: dict) -> Tensor | None:
        """Mean absolute change of each mask-grid patch (B, P) since the frame before; None where not asked for."""
        if "previous" not in batch:
            return None
        change = (batch["images"].float() - batch["previous"].float()).abs().mean(dim=1)  # (B, H, W)
        return area_resample(change.flatten(1), self.grid)

    @torch.no_grad()
    def act(self, batch: dict) -> tuple[Tensor, Tensor]:
        """Predict a chunk: normalised actions (B, K, 7) and the saliency (B, P) behind them."""
        prefix = self.prefix(batch)
        return self.head.act(self.backbone, prefix, self.look(batch), batch["proprio"])

    @torch.no_grad()
    def choose_heads(self, batch: dict) -> list[tuple[int, int]]:
        """The heads that localise best in these frames: (layer, head), counted from the first tapped layer."""
        encoding = self.encode(batch)
        own = encoding.instruction_mask.float()
        attention = torch.einsum("bnhlp,bl->bnhp", encoding.attention, own / own.sum(dim=1, keepdim=True))
        return choose_heads(attention.cpu().numpy())

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
        try:
            check_trained_on(path, self.backbone.identity)
            state = load_file(path)
            if foreign := set(state) ^ set(self.kept()):
                raise KeyError(f"{min(foreign)} is in only one of the two")
            if wild := first_not_finite(state):
                raise KeyError(f"{wild} holds NaN or infinity")
            self.load_state_dict(state, strict=False)
        except (OSError, MemoryError, torch.OutOfMemoryError) as error:
            raise LarError(f"The checkpoint {path} could not be read ({error}): mend that cause; nothing there has to be "
                           "deleted.") from error
        except (SafetensorError, KeyError, RuntimeError) as error:
            raise Damaged(f"The checkpoint {path} is damaged or belongs to another model "
                          f"({str(error).splitlines()[0]}): delete its folder to go on from the one before."
                          ) from error


def make_policy(config: RunConfig, backbone: str | Path, device: torch.device | str = "cpu",
                vae: Path | None = None, kind: type[Policy] = Policy) -> Policy:
    """Build an untrained policy around the backbone in `backbone`; new weights depend on the seed alone.

    vae: folder of the autoencoder, where the reconstruction target is latents. kind: a subclass, for other losses.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        loaded = load_for(config.profile, backbone, config.condition.saliency_layers, device)
        return kind(loaded, config.condition, config.profile, vae).to(device)
