"""Backbones made here, without any download: tiny ones to train from scratch, and the true size with random weights.

Both are `PaliGemmaForConditionalGeneration` with its own processor, saved and reloaded in transformers' own format, so
that what is tried with them runs the very code that the real weights run.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import (
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
)

from ..data.hub import download, load_manifest
from ..run.config import RunConfig
from ..run.errors import LarError, unknown
from ..run.files import atomic_path, produce
from ..run.folder import Run
from ..run.settings import MINIATURES, Profile
from ..scene.sentences import vocabulary

VOCABULARY = 640  # entries of the small tokenizer: words of the grammar, bytes, and pieces
TABLETOP = Path(__file__).parent / "tabletop"  # shipped: see its README.md


def build_tiny(profile: Profile, folder: Path | str, seed: int = 0) -> None:
    """Make a randomly initialised PaliGemma of the profile's widths, and its processor, and save both in `folder`."""
    processor = make_processor(profile.image_size, profile.patch_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vlm = PaliGemmaForConditionalGeneration(tiny_config(profile, processor))
    processor.save_pretrained(folder)
    vlm.save_pretrained(folder)


def build_full_size(folder: Path | str, config: PaliGemmaConfig | None = None, shard: str = "1GB") -> None:
    """Save the true architecture with random weights in bf16 (5.8 GB), as a sharded checkpoint, and its processor.

    config: another one in its place, such as a slice of it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm = PaliGemmaForConditionalGeneration._from_config(config or full_config(), dtype=torch.bfloat16)
    size = vlm.config.vision_config
    make_processor(size.image_size, size.patch_size).save_pretrained(folder)
    vlm.save_pretrained(folder, max_shard_size=shard)


def tiny_config(profile: Profile, processor: PaliGemmaProcessor) -> PaliGemmaConfig:
    """The architecture at a profile's widths."""
    return paligemma_config(
        processor,
        vision={"image_size": profile.image_size, "patch_size": profile.patch_size,
                "hidden_size": profile.vision_width, "intermediate_size": 2 * profile.vision_width,
                "num_hidden_layers": profile.vision_layers, "num_attention_heads": profile.attention_heads},
        text={"vocab_size": len(processor.tokenizer), "hidden_size": profile.text_width,
              "intermediate_size": 2 * profile.text_width, "num_hidden_layers": profile.text_layers,
              "num_attention_heads": profile.attention_heads, "num_key_value_heads": 1,
              "head_dim": profile.text_width // profile.attention_heads, "max_position_embeddings": 1024})


def full_config(vision_layers: int = 27, text_layers: int = 18, vocabulary: int = 257_216) -> PaliGemmaConfig:
    """PaliGemma-3B at 224 pixels (Beyer et al. 2024, section 3.1): SigLIP-So400m/14 and Gemma-2B, 2.92 B parameters.

    Fewer layers or a smaller vocabulary give a slice at true width.
    """
    return paligemma_config(
        make_processor(224, 14),
        vision={"image_size": 224, "patch_size": 14, "hidden_size": 1152, "intermediate_size": 4304,
                "num_hidden_layers": vision_layers, "num_attention_heads": 16},
        text={"vocab_size": vocabulary, "hidden_size": 2048, "intermediate_size": 16_384,
              "num_hidden_layers": text_layers, "num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 256,
              "max_position_embeddings": 8192})


def paligemma_config(processor: PaliGemmaProcessor, *, vision: dict, text: dict) -> PaliGemmaConfig:
    """Put the parts together; the special tokens are the processor's."""
    tokenizer, patches = processor.tokenizer, processor.image_seq_length
    special = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": tokenizer.bos_token_id,
               "eos_token_id": tokenizer.eos_token_id}
    width = text["hidden_size"]
    return PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "num_image_tokens": patches, "projection_dim": width,
                       "vision_use_head": False, **vision},
        text_config={"model_type": "gemma", "num_image_tokens": patches, **special, **text},
        image_token_id=processor.image_token_id, projection_dim=width, hidden_size=width, **special)


def make_processor(image_size: int, patch_size: int) -> PaliGemmaProcessor:
    """PaliGemma's own processor around a small tokenizer."""
    image_processor = SiglipImageProcessorPil(size={"height": image_size, "width": image_size},
                                              image_mean=[0.5] * 3, image_std=[0.5] * 3)
    image_processor.image_seq_length = (image_size // patch_size) ** 2
    return PaliGemmaProcessor(image_processor=image_processor, tokenizer=_small_tokenizer())


def _small_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the grammar of scenes: one token a word there, bytes elsewhere."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, min_frequency=1, show_progress=False,
                                  special_tokens=["<pad>", "<eos>", "<bos>", "<unk>"],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    sentences = vocabulary()
    tokenizer.train_from_iterator(sentences + [" " + sentence for sentence in sentences], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>",
                                   unk_token="<unk>", padding_side="right")


def unheard_words(tokenizer: PreTrainedTokenizerBase, sentence: str) -> list[str]:
    """The words that no sentence of the grammar has, where the tokenizer knows nothing else: it spells them in bytes."""
    heard = {word for known in vocabulary() for word in known.split()}
    small = tokenizer.vocab_size <= VOCABULARY
    return [word for word in sentence.split() if small and word not in heard]


# Where a run's untrained backbone comes from: built once, given as a folder, or downloaded at its pinned revision.

def prepare_backbone(run: Run) -> Path:
    """The folder of the run's untrained backbone.

    Raises LarError for a hub id that data_manifest.yaml does not list, and for a download that fails.
    """
    if run.config.profile.backbone != "scratch":
        return find_weights(run.config.profile.backbone)

    def build() -> None:
        with atomic_path(run.backbone) as temporary:
            build_tiny(run.config.profile, temporary, run.config.seed)
    return produce(run.backbone, "building the untrained backbone", build)


def prepare_vae(config: RunConfig) -> Path | None:
    """The folder of the autoencoder, where the condition reconstructs latents. Raises LarError as above."""
    return find_weights(config.profile.vae) if config.condition.recon_target == "latent" else None


def find_weights(name: str) -> Path:
    """A folder as it is, or the files of the hub id `name`, downloaded where they are missing."""
    if name == "tabletop":
        return TABLETOP
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    keys = {entry.id: key for key, entry in load_manifest().items() if entry.kind == "weights"}
    if Path(name).is_absolute() or name.startswith((".", "~")) or Path(name).exists():
        raise LarError(f"There is no folder {name}: give the folder that holds the weights (not one of its files), or a hub "
                       "id that data_manifest.yaml lists.")
    if name not in keys:
        raise unknown("backbone", name, [*MINIATURES, *keys])
    return download(keys[name])


def architecture(config: RunConfig) -> PaliGemmaConfig:
    """The configuration of the backbone, without its weights. Raises LarError for one that is not known here."""
    profile = config.profile
    if profile.miniature:
        return tiny_config(profile, make_processor(profile.image_size, profile.patch_size))
    if profile.backbone.startswith("google/paligemma-3b"):
        return full_config()
    path = _config_of(profile.backbone)
    try:
        if path and json.loads(path.read_text(encoding="utf-8"))["model_type"] == "paligemma":
            return PaliGemmaConfig.from_pretrained(path.parent)
    except (OSError, ValueError, LookupError, TypeError):
        pass  # loading the model itself will say what is wrong with it
    raise LarError(f"There is no plan for backbone {profile.backbone!r}: plans are made for tiny ones, PaliGemma-3B, and "
                   "PaliGemmas whose config.json is in a folder or has been downloaded.")


def _config_of(backbone: str) -> Path | None:
    """config.json in a folder, or in the hub's cache at the manifest's revision; nothing is downloaded."""
    if (Path(backbone) / "config.json").exists():
        return Path(backbone) / "config.json"
    pinned = next((entry.revision for entry in load_manifest().values() if entry.id == backbone), None)
    try:
        cached = try_to_load_from_cache(backbone, "config.json", revision=pinned)
    except HFValidationError:  # no name of a model
        return None
    return Path(cached) if isinstance(cached, str) else None
