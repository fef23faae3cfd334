"""The backbone: PaliGemma (Beyer et al. 2024) at any size, always the same transformers class.

A sequence is `<image> x P, <bos>, instruction, "\\n"` (the prefix: everything sees everything) followed by the action
head's tokens (the suffix: causal, sees the prefix, never seen by it). This is PaliGemma's own prefix-LM mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import (PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor,
                          PreTrainedTokenizerFast, SiglipImageProcessorPil)

from ..config import Profile
from ..errors import LarError
from .saliency import ATTENTION, SaliencyTap, mean_attention

# What the tiny tokenizer is trained on. It is byte-level, so any other sentence can be written too, in more tokens.
SENTENCES = [
    "pick up the black bowl and place it on the plate",
    "between the plate and the ramekin", "next to the ramekin", "from table center", "on the cookie box",
    "in the top drawer of the wooden cabinet", "on the ramekin", "next to the cookie box", "on the stove",
    "next to the plate", "on the wooden cabinet",
]


@dataclass
class Encoding:
    """What one forward pass gives.

    patches (B, P, D): final states of the image tokens; text (B, L, D): final states of the text tokens, BOS and
    newline included; instruction_mask (B, L) bool, True = a token of the instruction itself; suffix (B, S, D): final
    states of the head's tokens; attention (B, N, H, L, P) and saliency (B, P), rows summing to 1, or None when not
    asked for.
    """

    patches: Tensor
    text: Tensor
    instruction_mask: Tensor
    suffix: Tensor
    attention: Tensor | None
    saliency: Tensor | None


@dataclass
class Prefix:
    """A batch of tokenised instructions, right-padded: ids (B, P + L), mask and instruction (B, L) as in Encoding."""

    ids: Tensor
    mask: Tensor  # (B, P + L), 1 = a token, 0 = padding
    instruction: Tensor  # (B, L) bool


class Backbone(nn.Module):
    """PaliGemma with a saliency tap. `tapped` layers are the last `saliency_layers` of its language model."""

    def __init__(self, vlm: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, saliency_layers: int = 3):
        super().__init__()
        self.vlm = vlm
        self.processor = processor
        layers = vlm.config.text_config.num_hidden_layers
        self.tapped = tuple(range(layers - saliency_layers, layers))
        self._prefixes: dict[str, list[int]] = {}

    @property
    def width(self) -> int:
        """D, the language model's width."""
        return self.vlm.config.text_config.hidden_size

    @property
    def patches(self) -> int:
        """P, the number of image tokens."""
        return self.processor.image_seq_length

    @property
    def image_size(self) -> int:
        return self.vlm.config.vision_config.image_size

    def tokenise(self, instructions: list[str]) -> Prefix:
        """Tokenise as PaliGemma's own processor does. Raises LarError for an empty instruction."""
        rows = [self._token_ids(instruction) for instruction in instructions]
        length = max(map(len, rows))
        ids = torch.full((len(rows), length), self.processor.tokenizer.pad_token_id)
        mask = torch.zeros((len(rows), length), dtype=torch.long)
        instruction = torch.zeros((len(rows), length - self.patches), dtype=torch.bool)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
            instruction[i, 1 : len(row) - self.patches - 1] = True  # between BOS and newline
        device = self.vlm.device
        return Prefix(ids.to(device), mask.to(device), instruction.to(device))

    def image_tokens(self, images: Tensor) -> Tensor:
        """images (B, 3, h, w) in [-1, 1], of any size that patches divide -> projected tokens (B, P', D)."""
        model = self.vlm.model
        other_size = images.shape[-1] != self.image_size
        states = model.vision_tower(images.to(self.vlm.dtype), interpolate_pos_encoding=other_size)
        return model.multi_modal_projector(states.last_hidden_state)

    def encode(self, images: Tensor, instructions: list[str], suffix: Tensor | None = None, *, saliency: bool = True,
               differentiable: bool = False) -> Encoding:
        """One forward pass.

        Args:
            images: (B, 3, H, W) in [-1, 1], H = W = the backbone's image size.
            instructions: B sentences.
            suffix: (B, S, D) tokens of the action head, which see the prefix and are not seen by it.
            saliency: whether to read the attention; `differentiable`: whether a loss on it reaches the weights.
        Raises:
            LarError: images of another size, or an empty instruction.
        """
        self._check(images)
        prefix = self.tokenise(instructions)
        inputs = self._embed(images, prefix, suffix)
        P, L = self.patches, prefix.instruction.shape[1]
        if not saliency:
            states = self.vlm.model(**inputs, use_cache=False).last_hidden_state
            return self._split(states, prefix, None)
        with SaliencyTap(layers=self.tapped, image_tokens=P, text_tokens=L, differentiable=differentiable) as tap:
            states = self.vlm.model(**inputs, use_cache=False).last_hidden_state
        return self._split(states, prefix, tap.attention)

    def _embed(self, images: Tensor, prefix: Prefix, suffix: Tensor | None) -> dict[str, Tensor]:
        text = self.vlm.get_input_embeddings()(prefix.ids[:, self.patches:])  # scaled by sqrt(D) inside
        parts = [self.image_tokens(images).to(text.dtype), text]
        mask, kinds = prefix.mask, torch.zeros_like(prefix.mask)  # 0 = prefix
        if suffix is not None:
            parts.append(suffix.to(text.dtype))
            behind = prefix.mask.new_ones(suffix.shape[:2])
            mask, kinds = torch.cat([mask, behind], dim=1), torch.cat([kinds, behind], dim=1)  # 1 = suffix
        return {
            "inputs_embeds": torch.cat(parts, dim=1),  # (B, P + L + S, D)
            "attention_mask": mask,
            "token_type_ids": kinds,
            "position_ids": mask.cumsum(dim=1),  # PaliGemma counts from 1; padding between text and suffix is skipped
        }

    def _split(self, states: Tensor, prefix: Prefix, attention: Tensor | None) -> Encoding:
        P, L = self.patches, prefix.instruction.shape[1]
        return Encoding(patches=states[:, :P], text=states[:, P : P + L], instruction_mask=prefix.instruction,
                        suffix=states[:, P + L :], attention=attention,
                        saliency=None if attention is None else mean_attention(attention, prefix.instruction))

    def _token_ids(self, instruction: str) -> list[int]:
        if not instruction.strip():
            raise LarError("The instruction is empty: give the policy a sentence, such as "
                           "'pick up the black bowl on the ramekin and place it on the plate'.")
        if instruction not in self._prefixes:
            grey = torch.zeros(3, self.image_size, self.image_size, dtype=torch.uint8)
            inputs = self.processor(images=grey, text="<image>" + instruction, return_tensors="pt")
            self._prefixes[instruction] = inputs["input_ids"][0].tolist()
        return self._prefixes[instruction]

    def _check(self, images: Tensor) -> None:
        expected = (3, self.image_size, self.image_size)
        if tuple(images.shape[1:]) != expected:
            raise LarError(f"Images have shape {tuple(images.shape[1:])}, but the backbone expects {expected}: "
                           "render or resize them to the profile's image_size.")


def load_backbone(source: str | Path, saliency_layers: int = 3) -> Backbone:
    """Load a backbone from a folder or hub id with transformers' own `from_pretrained`.

    Raises LarError when it is not there or cannot be had.
    """
    try:
        processor = PaliGemmaProcessor.from_pretrained(source)
        vlm = PaliGemmaForConditionalGeneration.from_pretrained(
            source, dtype=torch.float32, attn_implementation={"text_config": ATTENTION, "vision_config": "sdpa"})
    except (OSError, ValueError) as error:
        raise LarError(f"The backbone {str(source)!r} could not be loaded ({str(error).splitlines()[0]}): check the "
                       "folder, or for a hub model accept its licence on its page and set HF_TOKEN.") from error
    return Backbone(vlm, processor, saliency_layers)


def build_tiny(profile: Profile, folder: Path | str, seed: int = 0) -> None:
    """Make a small, randomly initialised PaliGemma and its processor, and save both in `folder`, all offline."""
    patches = (profile.image_size // profile.patch_size) ** 2
    tokenizer = _tiny_tokenizer()
    image_processor = SiglipImageProcessorPil(size={"height": profile.image_size, "width": profile.image_size},
                                              image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image_processor.image_seq_length = patches
    processor = PaliGemmaProcessor(image_processor=image_processor, tokenizer=tokenizer)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm = PaliGemmaForConditionalGeneration(_tiny_config(profile, processor, patches))
    processor.save_pretrained(folder)
    vlm.save_pretrained(folder)


def _tiny_config(profile: Profile, processor: PaliGemmaProcessor, patches: int) -> PaliGemmaConfig:
    tokenizer = processor.tokenizer
    return PaliGemmaConfig(
        vision_config={
            "model_type": "siglip_vision_model", "image_size": profile.image_size, "patch_size": profile.patch_size,
            "hidden_size": profile.vision_width, "intermediate_size": 2 * profile.vision_width,
            "num_hidden_layers": profile.vision_layers, "num_attention_heads": profile.attention_heads,
            "num_image_tokens": patches, "projection_dim": profile.text_width, "vision_use_head": False,
        },
        text_config={
            "model_type": "gemma", "vocab_size": len(tokenizer), "hidden_size": profile.text_width,
            "intermediate_size": 4 * profile.text_width, "num_hidden_layers": profile.text_layers,
            "num_attention_heads": profile.attention_heads, "num_key_value_heads": 1,
            "head_dim": profile.text_width // profile.attention_heads, "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "num_image_tokens": patches,
        },
        image_token_id=processor.image_token_id, projection_dim=profile.text_width, hidden_size=profile.text_width,
        pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )


def _tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the benchmark's sentences: one token a word there, bytes elsewhere."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=512, min_frequency=1, show_progress=False,
                                  special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(SENTENCES + [" " + sentence for sentence in SENTENCES], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
                                   unk_token="<unk>", padding_side="right")
