"""The backbone: PaliGemma (Beyer et al. 2024) at any size, always the same transformers class.

A sequence is `<image> x P, <bos>, instruction, "\\n"` (the prefix: everything sees everything) followed by the action
head's tokens (the suffix: causal, sees the prefix, never seen by it). This is PaliGemma's own prefix-LM mask.

The suffix joins at layer `join`: 0, or the first layer that is trained when only the top is. Below it the prefix runs
alone, through weights that never change, so that those states can be computed once and kept (`lar_core.data.features`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from ..run.errors import LarError
from ..run.registry import AGGREGATIONS
from .aggregation import Aggregation
from .saliency import ACTIVE, TEXT, Prefix, Rows, SaliencyTap

LONGEST = 256  # tokens of an instruction; PaliGemma was trained on texts of 128 at 224 pixels (Beyer et al. 2024, 3.2)


@dataclass
class Seen:
    """What the layers below `join` make of the images and words.

    states (B, P + L, D): image and text tokens at the input of layer `join`; wrist_tokens (B, W, D): the wrist camera's
    tokens, for the head's suffix, None without one; vision (B, P + W, V): what the vision tower alone makes of both
    cameras' images, None where not asked for.
    """

    states: Tensor
    wrist_tokens: Tensor | None = None
    vision: Tensor | None = None


@dataclass
class Encoding:
    """What one forward pass gives.

    patches (B, P, D): final states of the image tokens; text (B, L, D): final states of the text tokens, BOS and
    newline included; suffix (B, S, D): final states of the head's tokens; asked (B, R) bool, which
    of the rows that are read count: True = a token of the instruction itself, or whoever else is asked; attention
    (B, N, H, R, P) and saliency (B, P), rows summing to 1, or None when not wanted. Where a head wants them: layers, the
    states (B, P + L + S, D) behind each layer from `join` on, the last ones normalised; vision (B, P + W, V) as in Seen.
    """

    patches: Tensor
    text: Tensor
    asked: Tensor
    suffix: Tensor
    attention: Tensor | None
    saliency: Tensor | None
    layers: Sequence[Tensor] = ()
    vision: Tensor | None = None


class Backbone(nn.Module):
    """PaliGemma with a saliency tap. `tapped` layers are the last `saliency_layers` of its language model;
    `aggregation` makes one map of what they attend to. identity: which weights it was loaded with; None: not its own.

    layers: how many its language model has; width: D, the language model's; vision_width: V, the vision tower's;
    patches: P, the number of image tokens; image_size: in pixels.
    """

    def __init__(self, vlm: PaliGemmaForConditionalGeneration, processor: PaliGemmaProcessor, saliency_layers: int = 3,
                 join: int = 0, identity: str | None = None):
        super().__init__()
        self.vlm = vlm
        self.processor = processor
        self.join, self.identity = join, identity
        text, vision = vlm.config.text_config, vlm.config.vision_config
        self.layers, self.width, self.vision_width = text.num_hidden_layers, text.hidden_size, vision.hidden_size
        self.patches, self.image_size = processor.image_seq_length, vision.image_size
        self.tapped = tuple(range(self.layers - saliency_layers, self.layers))
        self._prefixes: dict[str, list[int]] = {}
        self.aggregation = self.make_aggregation("mean")

    def make_aggregation(self, name: str) -> Aggregation:
        """An aggregation (a name in AGGREGATIONS) of this backbone's tapped layers."""
        heads = self.vlm.config.text_config.num_attention_heads
        return AGGREGATIONS[name](layers=len(self.tapped), heads=heads, tokenizer=self.processor.tokenizer)

    def train(self, mode: bool = True) -> Backbone:
        """Frozen layers stay in evaluation mode (8-bit ones would otherwise be made float again at every step)."""
        super().train(mode)
        if not all(parameter.requires_grad for parameter in self.vlm.parameters()):
            self.vlm.eval()
            for layer in self.vlm.model.language_model.layers[self.join:]:
                layer.training = mode  # of the layer alone: gradient checkpointing asks it
        return self

    def tokenise(self, instructions: list[str]) -> Prefix:
        """Tokenise as PaliGemma's own processor does.

        Raises LarError for an instruction that is none: empty, of several lines, with one of the tokenizer's special
        tokens or a word unknown to it, or longer than LONGEST.
        """
        rows = [torch.tensor(self._token_ids(instruction)) for instruction in instructions]
        ids = pad_sequence(rows, batch_first=True, padding_value=self.processor.tokenizer.pad_token_id)  # (B, P + L)
        places, lengths = torch.arange(ids.shape[1]), torch.tensor([[len(row)] for row in rows])  # (P + L,), (B, 1)
        own = (places > self.patches) & (places < lengths - 1)  # between BOS and newline
        on = self.vlm.device
        return Prefix(ids.to(on), (places < lengths).long().to(on), own[:, self.patches:].to(on))

    def image_features(self, images: Tensor) -> Tensor:
        """images (B, 3, h, w) in [-1, 1], of any size that patches divide -> the vision tower's features (B, P', V)."""
        tower = self.vlm.model.vision_tower
        other_size = images.shape[-1] != self.image_size
        return tower(images.to(tower.dtype), interpolate_pos_encoding=other_size).last_hidden_state

    def encode(self, images: Tensor, instructions: list[str], suffix: Tensor | None = None, *, saliency: bool = True,
               differentiable: bool = False, rows: Rows = TEXT) -> Encoding:
        """One forward pass over images (B, 3, H, W) in [-1, 1] of the backbone's image size, and B instructions.

        suffix: (B, S, D) tokens of the action head, which see the prefix and are not seen by it; saliency: whether to
        read the attention; differentiable: whether a loss on it reaches the weights; rows: of which tokens.
        Raises LarError for images of another size, and for instructions as `tokenise` does.
        """
        prefix = self.tokenise(instructions)
        return self.upper(self.lower(images, prefix), prefix, suffix, saliency=saliency, differentiable=differentiable,
                          rows=rows)

    def lower(self, images: Tensor, prefix: Prefix, wrist: Tensor | None = None, *, features: Tensor | None = None,
              vision: bool = False) -> Seen:
        """All that the layers below `join` have to say of the prefix, with the wrist camera's tokens beside it.

        wrist: images (B, 3, h, w) in [-1, 1]; features: the images' `image_features`, where they are known already;
        vision: whether to give the vision tower's features too.
        """
        if tuple(images.shape[1:]) != (3, self.image_size, self.image_size):
            raise LarError(f"Images have shape {tuple(images.shape[1:])}, but the backbone expects "
                           f"{(3, self.image_size, self.image_size)}: render or resize them to the profile's image_size.")
        project = self.vlm.model.multi_modal_projector  # PaliGemma's one linear layer, from V to D
        beside = None if wrist is None else self.image_features(wrist)  # (B, W, V)
        wrist_tokens = None if beside is None else project(beside)  # (B, W, D)
        features = self.image_features(images) if features is None else features  # (B, P, V)
        text = self.vlm.get_input_embeddings()(prefix.ids[:, self.patches:])  # (B, L, D), scaled by sqrt(D) inside
        states = torch.cat([project(features).to(text.dtype), text], dim=1)  # (B, P + L, D)
        states = self._run(states, prefix.mask, states.shape[1], range(self.join))
        both = [features] if beside is None else [features, beside]
        return Seen(states, wrist_tokens, torch.cat(both, dim=1) if vision else None)

    def upper(self, seen: Seen, prefix: Prefix, suffix: Tensor | None = None, *, saliency: bool = True,
              differentiable: bool = False, rows: Rows = TEXT,
              past: DynamicCache | None = None, every_layer: bool = False) -> Encoding:
        """From what `lower` gave to the end, with the suffix; arguments as in `encode`.

        past: keys and values are put here, for `extend`. every_layer: whether to give the states behind each layer.
        """
        P, L = self.patches, prefix.instruction.shape[1]
        states, mask = seen.states.to(self._top_dtype), prefix.mask
        if suffix is not None:
            states = torch.cat([states, suffix.to(states.dtype)], dim=1)  # (B, P + L + S, D)
            mask = torch.cat([mask, mask.new_ones(suffix.shape[:2])], dim=1)
        places, asked = rows.of(prefix, P)
        tap = SaliencyTap(layers=self.tapped, image_tokens=P, rows=places, differentiable=differentiable)
        states_of: list[Tensor] | None = [] if every_layer else None
        with tap if saliency else nullcontext():
            states = self._run(states, mask, P + L, range(self.join, self.layers), past, states_of)
        states = self.vlm.model.language_model.norm(states)
        attention = tap.attention if saliency else None  # (B, N, H, R, P)
        return Encoding(patches=states[:, :P], text=states[:, P : P + L], asked=asked.instruction,
                        suffix=states[:, P + L :], attention=attention,
                        saliency=self.aggregation(attention, asked) if saliency else None,
                        layers=[*states_of[:-1], states] if states_of else (), vision=seen.vision)

    def drop_lower(self) -> None:
        """Free the memory of everything below `join`: for training from the feature cache, which replaces it."""
        self.vlm.model.vision_tower = self.vlm.model.multi_modal_projector = None
        self.vlm.model.language_model.embed_tokens = self.vlm.lm_head = None
        for index in range(self.join):
            self.vlm.model.language_model.layers[index] = nn.Identity()

    def extend(self, tokens: Tensor, prefix: Prefix, past: DynamicCache) -> Tensor:
        """Append tokens (B, S, D) to the suffix of the sequence in `past` -> their final states (B, S, D)."""
        before = past.layers[self.join].keys.shape[2]
        behind = prefix.mask.new_ones(len(tokens), before - prefix.mask.shape[1] + tokens.shape[1])
        mask = torch.cat([prefix.mask, behind], dim=1)
        states = self._run(tokens.to(self._top_dtype), mask, prefix.mask.shape[1], range(self.join, self.layers), past)
        return self.vlm.model.language_model.norm(states)

    def _run(self, states: Tensor, mask: Tensor, prefix: int, layers: range, past: DynamicCache | None = None,
             states_of: list[Tensor] | None = None) -> Tensor:
        """Some of the language model's layers on states (B, S, D), the last S of the positions in mask (B, N).

        prefix: how many positions see each other; states_of: the states behind each layer are put here.
        """
        if not layers:
            return states
        model, new = self.vlm.model.language_model, states.shape[1]
        allowed = prefix_lm_mask(mask.bool(), prefix)[:, :, -new:]
        positions = mask.cumsum(dim=1)[:, -new:]  # PaliGemma counts from 1; padding before the suffix is skipped
        rotary, given = model.rotary_emb(states, position_ids=positions), {past_name(model.layers[-1].forward): past}
        for index in layers:
            states = model.layers[index](states, attention_mask=allowed, position_ids=positions,
                                         position_embeddings=rotary, use_cache=past is not None,
                                         saliency_tap=ACTIVE.get(), **given)
            if states_of is not None:
                states_of.append(states)
        return states

    @property
    def _top_dtype(self) -> torch.dtype:
        """Of the residual stream from `join` on: fp32 where the top layers' weights are kept so for training."""
        return self.vlm.model.language_model.layers[self.layers - 1].input_layernorm.weight.dtype

    def _token_ids(self, instruction: str) -> list[int]:
        """`<image>` x P, BOS, the instruction and the newline, from the processor; kept, because it takes time."""
        if instruction not in self._prefixes:
            self._check_instruction(instruction)
            tokenizer = self.processor.tokenizer  # what the processor makes of it, without its work on an image
            words = tokenizer(f"{tokenizer.bos_token}{instruction}\n", add_special_tokens=False)["input_ids"]
            self._prefixes[instruction] = [self.vlm.config.image_token_id] * self.patches + words
        return self._prefixes[instruction]

    def _check_instruction(self, instruction: str) -> None:
        if not isinstance(instruction, str) or not instruction.strip():
            raise LarError("The instruction is empty: give the policy a sentence, such as "
                           "'pick up the black bowl on the ramekin and place it on the plate'.")
        if len(instruction.splitlines()) > 1 or instruction != instruction.strip("\r\n"):
            raise LarError(f"The instruction {instruction[:60]!r} has a line break, which ends PaliGemma's prompt: write it "
                           "in one line.")
        tokenizer = self.processor.tokenizer
        marked = [token for token in tokenizer.get_added_vocab() if token.startswith("<") and token.endswith(">")]
        special = sorted({*tokenizer.all_special_tokens, *marked}, key=len, reverse=True)  # <image>, <bos>, <loc0001>, ...
        if found := [token for token in special if token in instruction]:
            raise LarError(f"The instruction {instruction[:60]!r} contains {found[0]}, which is a special token of the "
                           "model and not a word: write the sentence without it.")
        if (length := len(tokenizer.tokenize(instruction))) > LONGEST:
            raise LarError(f"The instruction {instruction[:60]!r}... has {length} tokens, but at most {LONGEST} are taken: "
                           "say it in one sentence.")
        if unread := [word for word in instruction.split() if tokenizer.unk_token in tokenizer.tokenize(word)]:
            raise LarError(f"The backbone's tokenizer does not know {unread[0]!r}, and all words that it does not know are "
                           "the same to it: say it in other words, or use the tokenizer of the whole vocabulary.")


def past_name(forward: Callable) -> str:
    """What a layer's `forward` calls the keys and values that it is given: from transformers 5.24 on `cache`."""
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


def prefix_lm_mask(valid: Tensor, prefix: int) -> Tensor:
    """PaliGemma's mask: valid (B, N) bool, the first `prefix` positions see each other, the others see what is before.

    Returns (B, 1, N, N) bool, True = may attend; nobody attends to what is not valid.
    """
    places = torch.arange(valid.shape[1], device=valid.device)
    order = (places[None, :] < prefix) | (places[None, :] <= places[:, None])  # (N query, N key)
    return order & valid[:, None, None, :]


def normalise_pixels(images: Tensor) -> Tensor:
    """uint8 pixels -> [-1, 1], as SigLIP's processor does."""
    return images.to(torch.float32) / 127.5 - 1
