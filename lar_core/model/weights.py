"""The weights in a backbone's folder: which files hold them, under which names, whether they are sound, which they are.

Only safetensors are read. Other tools leave the names of what they wrapped around the model in those of its weights
(torch.compile `_orig_mod.`, DDP `module.`, FSDP, PEFT `base_model.model.`, an attribute of somebody's policy): a prefix
that every weight has is taken away, and that is said. What remains is for transformers, which knows PaliGemma's older
names.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PaliGemmaConfig, PaliGemmaProcessor

from ..run.errors import Damaged, LarError, cause, first_line
from ..run.files import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
LARGE = 10**9  # bytes from which on a progress bar is worth its line
WHOLE, BLOCKS, BLOCK = 2**20, 64, 4096  # bytes: tensors up to WHOLE count entirely, larger ones with BLOCKS of BLOCK

SENTENCE = "pick up the black bowl and place it on the plate"
AGAIN = "copy the folder again from where the weights come from"
UNREADABLE = "mend that cause; nothing there has to be deleted"

UNUSED = re.compile(r"vision_tower\.(vision_model\.)?head\.")  # SigLIP's pooling, which PaliGemma never asks
_WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARTS = re.compile(r"(.*?)((model\.)?(language_model|vision_tower|multi_modal_projector|lm_head)\..+)")
_LEVELS = re.compile(r"(?<![^.])(model|vision_model)\.")  # what the names of PaliGemma's generations differ in


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All weights by names that transformers knows; they are mapped into memory, and read when they are used.

    Raises LarError where there are none, a file is missing or cut off, or the names are those of something else.
    """
    found = [pair for path in weight_files(folder) for pair in _read(path).items()]
    names = plain_names([name for name, _ in found], folder)
    return dict(zip(names, (tensor for _, tensor in found)))


def weight_files(folder: Path) -> list[Path]:
    """The safetensors in which the weights are. Raises LarError where there are none, or not all of them."""
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    if (folder / INDEX).exists():
        return _shards(folder)
    if pickles := sorted(path.name for pattern in PICKLES for path in folder.glob(pattern)):
        raise LarError(f"{folder} holds its weights as a Python pickle ({pickles[0]}), which can run any code when it is "
                       "opened and is not opened here: load it where you trust it, save it with save_pretrained as "
                       "safetensors, and give that folder.")
    parts = [f", and no {INDEX} that says what {path.name} is a part of" for path in sorted(folder.glob("*.safetensors"))]
    raise LarError(f"{folder} has no {SINGLE}{''.join(parts[:1])}: copy, save or download the whole folder again.")


def _shards(folder: Path) -> list[Path]:
    content = read_json(folder / INDEX)
    names = set(content["weight_map"].values()) if isinstance(content.get("weight_map"), dict) else set()
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise Damaged(f"{folder / INDEX} does not say which file of its folder holds which weight: delete it and copy, save "
                      "or download the folder again.")
    if missing := sorted(name for name in names if not (folder / name).exists()):
        raise LarError(f"{folder} lacks {missing[0]}, one of the {len(names)} files that its {INDEX} names: copy, save or "
                       "download the folder again.")
    return [folder / name for name in sorted(names)]


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        with open(path, "rb") as file:
            is_pointer = file.read(40).startswith(b"version https://git-lfs")
        cure = "it is only Git LFS's note of where the weights are; run `git lfs pull` there" if is_pointer else \
            "delete it, and copy, save or download it again"
        raise Damaged(f"{path} is damaged ({error}): {cure}.") from error


def plain_names(names: list[str], folder: Path) -> list[str]:
    """The names without what was wrapped around the model; a sentence is warned where any had to be changed.

    Raises LarError for adapters, for several prefixes, and where two weights would have one name.
    """
    if adapters := sorted(name for name in names if ".lora_" in name or ".base_layer." in name):
        raise LarError(f"{folder} holds adapters that are not merged ({adapters[0]}): merge them into the model "
                       "(merge_and_unload) and save it again.")
    parts = [_PARTS.fullmatch(_WRAPPERS.sub("", name)) for name in names]
    prefixes = {_LEVELS.sub("", part[1]): part[1] for part in parts if part}
    if len(prefixes) > 1:
        one, other = sorted(prefixes.values())[:2]
        raise LarError(f"The weights in {folder} begin with {one!r} and with {other!r}, as those of several models in one "
                       "file do: save the backbone by itself with save_pretrained, and give that folder.")
    plain = [part[2] if part else name for part, name in zip(parts, names)]
    levels = [_LEVELS.sub("", name) for name in plain]
    if len(set(levels)) < len(levels):
        twice = next(name for name, level in zip(names, levels) if levels.count(level) > 1)
        raise LarError(f"{folder} holds {twice} twice, under two names or in two files: save the model again.")
    if changed := sorted((old, new) for old, new in zip(names, plain) if old != new):
        warnings.warn(f"The weights in {folder} carry the names of a wrapper: {changed[0][0]} is read as {changed[0][1]}, "
                      f"and so are {len(changed) - 1} others.", stacklevel=2)
    return plain


# Whether the numbers are sound, and which weights they are.

def check_numbers(weights: dict[str, Tensor], folder: Path, dtype: torch.dtype) -> None:
    """Raise LarError for the first weight that is not made of numbers which `dtype`, that of the model, can hold.

    One pass over all of them at 2 to 3 GB a second, before anything is quantised: low-bit weights hide NaN.
    """
    limit, size = torch.finfo(dtype).max, sum(tensor.nbytes for tensor in weights.values())
    with tqdm(total=size, unit="B", unit_scale=True, desc="checking weights", disable=size < LARGE) as bar:
        for name, tensor in sorted(weights.items()):
            if name.endswith(("weight", "bias")):
                _check_tensor(name, tensor, folder, limit)
            bar.update(tensor.nbytes)


def _check_tensor(name: str, tensor: Tensor, folder: Path, limit: float) -> None:
    if tensor.dtype not in FLOATS:
        raise LarError(f"{folder} holds {name} as {str(tensor.dtype).removeprefix('torch.')}: it was quantised by others, "
                       "so that the profile's precision could not be had; give the original weights in floats.")
    if not tensor.numel():
        raise Damaged(f"{folder} holds {name} without a single number: save the model again, whole, from one process.")
    low, high = (end.item() for end in torch.aminmax(tensor))  # NaN where there is one
    if not -limit <= low <= high <= limit:
        raise Damaged(f"{folder} holds NaN, infinity, or numbers beyond {limit:.3g} in {name}: they come from a training "
                      "that went wrong or a broken file; take an earlier or another copy, or a precision with a wider "
                      "range.")
    if tensor.ndim > 1 and low == high and tensor.numel() > 1:
        raise Damaged(f"{folder} holds the same number, {low:g}, throughout {name}, as a save that went wrong leaves it: "
                      "take another copy, or save the model again.")


def first_not_finite(weights: dict[str, Tensor]) -> str | None:
    """The name of the first weight that holds NaN or infinity; None where none does."""
    return next((name for name, tensor in sorted(weights.items())
                 if tensor.is_floating_point() and not all(end.isfinite() for end in torch.aminmax(tensor))), None)


def weights_identity(weights: dict[str, Tensor]) -> str:
    """What tells these weights from others: a digest of names, shapes, types and numbers, whatever the files are called.

    Of tensors above 1 MiB 64 blocks of 4 KiB count, spread evenly: 0.1 GB of a 3 B model are read. Training moves every
    number of a tensor, so that others are told apart; it is no seal against somebody who wants to deceive.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted((_LEVELS.sub("", name), tensor) for name, tensor in weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        content = tensor.contiguous().reshape(-1).view(torch.uint8)
        starts = torch.linspace(0, max(len(content) - BLOCK, 0), BLOCKS).long().tolist()
        parts = [content] if len(content) <= WHOLE else [content[start : start + BLOCK] for start in starts]
        for part in parts:
            digest.update(part.numpy())
    return digest.hexdigest()


def check_trained_on(checkpoint: Path, identity: str | None) -> None:
    """Raise LarError where a checkpoint remembers other backbone weights than those of this identity.

    Older checkpoints remember none, and a backbone that comes without its own weights has none: both pass.
    """
    with safe_open(checkpoint, "pt") as file:
        remembered = (file.metadata() or {}).get("backbone")
    if remembered and identity and remembered != identity:
        raise LarError(f"{checkpoint} was trained on a backbone with other weights (identity {remembered[:12]}) than the "
                       f"one that it is to work with now ({identity[:12]}): give it the backbone that it was trained on, "
                       "or train again in another --run-dir.")


# Whether a folder's configuration, tokenizer and image processor belong together, and whether every weight was loaded.

def read_config(folder: Path) -> PaliGemmaConfig:
    """The configuration of the PaliGemma in `folder`. Raises LarError for anything else, and where it was quantised."""
    path = folder / "config.json"
    _refuse((not folder.is_dir(), f"There is no folder {folder}: give the folder of a PaliGemma in transformers' format (a "
             "hub id is downloaded only where it is the profile's backbone)."),
            ((folder / "adapter_config.json").exists(), f"{folder} holds a PEFT adapter, which is no backbone by itself and "
             "would change one unseen: merge it into its base model (merge_and_unload), save that with save_pretrained, and "
             "give that folder."),
            (not path.exists(), f"{folder} has no config.json, so it holds no model in transformers' format: {AGAIN}."))
    values = read_json(path)
    parts = [values, values.get("text_config"), values.get("vision_config")]
    kind = values.get("model_type")
    _refuse((kind != "paligemma", f"{path} describes a model of type {kind!r}, not 'paligemma': give the folder of a "
             "PaliGemma (google/paligemma-3b-pt-224, or one that was tuned from it)."),
            (any(part.get("quantization_config") for part in parts if isinstance(part, dict)),
             f"{folder} was quantised by others (quantization_config in its config.json), so that the profile's precision "
             "would be ignored: give the original weights in floats; they are quantised when they are loaded."))
    with reading(f"The configuration {path}", AGAIN):
        return PaliGemmaConfig.from_pretrained(folder)


def read_processor(folder: Path, config: PaliGemmaConfig) -> PaliGemmaProcessor:
    """Tokenizer and image processor. Raises LarError where they are damaged, missing, or of another model than `config`."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    what, cure = f"The tokenizer or processor in {folder}", "copy all of its files again from where the weights come from"
    with reading(what, cure, missing=f"if a file is missing, {AGAIN}; otherwise mend that cause, and delete nothing"):
        processor = PaliGemmaProcessor.from_pretrained(folder)
    _refuse(*((wrong, f"{what} belongs to another model than its config.json: {sentence}; {cure}.")
              for wrong, sentence in _comparisons(processor, config)))
    return processor


def _comparisons(processor: PaliGemmaProcessor, config: PaliGemmaConfig) -> list[tuple[bool, str]]:
    """What tokenizer and image processor must have in common with the model: (whether it differs, how).

    `Policy.see` scales pixels to [-1, 1] by itself, which is what a mean and deviation of a half do.
    """
    tokenizer, pictures, tokens = processor.tokenizer, processor.image_processor, processor.image_seq_length
    text, vision = config.text_config, config.vision_config
    highest, image = max(tokenizer.get_vocab().values(), default=-1), tokenizer.convert_tokens_to_ids("<image>")
    back = tokenizer.decode(tokenizer.encode(SENTENCE, add_special_tokens=False), skip_special_tokens=True).strip()
    height, width = (dict(pictures.size).get(name) for name in ("height", "width"))
    side, patches = vision.image_size, (vision.image_size // vision.patch_size) ** 2
    return [
        (highest >= text.vocab_size,
         f"its vocabulary goes to number {highest}, but the embedding has {text.vocab_size} rows"),
        (image != config.image_token_id,
         f"<image> is token {image} of the tokenizer, but {config.image_token_id} of the model"),
        (tokenizer.bos_token_id != text.bos_token_id,
         f"sentences begin with token {tokenizer.bos_token_id}, but with {text.bos_token_id} in the model"),
        (back != SENTENCE, f"it reads {SENTENCE!r} as {back!r}"),
        ((height, width) != (side, side),
         f"it makes pictures of {height} x {width} pixels, but the model sees {side} x {side}"),
        (tokens != patches, f"it makes {tokens} image tokens, but the model {patches}"),
        *((list(numbers) != [0.5] * 3, f"its {name} of pixels is {list(numbers)}, but PaliGemma's is 0.5")
          for name, numbers in (("mean", pictures.image_mean), ("deviation", pictures.image_std)))]


def check_loaded(found: dict, folder: Path, total: int) -> None:
    """Raise LarError unless every weight was found, known and of the right shape.

    found: transformers' or diffusers' loading info, where a head that shares the embedding's weights is not missing;
    total: how many weights there should be.
    """
    def in_order(names: Iterable[str]) -> list[str]:  # the tied head last, because it says least
        return sorted((name for name in names if not UNUSED.search(name)), key=lambda name: ("lm_head" in name, name))
    shapes = {name: (tuple(there), tuple(wanted)) for name, there, wanted in found["mismatched_keys"]}
    missing, foreign, other = map(in_order, (found["missing_keys"], found["unexpected_keys"], shapes))
    wrong = []
    if missing:
        wrong.append(f"lacks {len(missing)} of the {total} weights that its config.json asks for, {missing[0]} first, which "
                     "would stay random")
    if foreign:
        wrong.append(f"holds {len(foreign)} that its config.json does not ask for, {foreign[0]} first")
    if other:
        there, wanted = shapes[other[0]]
        wrong.append(f"holds {other[0]} in the shape {there}, where its config.json asks for {wanted}")
    _refuse((wrong, f"{folder} {', and '.join(wrong)}: its weights and its config.json (layers, widths, vocabulary) do not "
             f"belong together; save the whole model again with save_pretrained, or {AGAIN}."))


# Sentences.

@contextmanager
def reading(what: str, cure: str, missing: str = UNREADABLE) -> Iterator[None]:
    """Tell apart that `what` could not be read, for which `missing` is the cure, and that it is damaged, for which `cure`
    is: only then something may have to be deleted. Raises LarError, or Damaged.
    """
    try:
        yield
    except LarError:
        raise
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        if (found := cause(error)) and not isinstance(error, FileNotFoundError):
            raise LarError(f"{what} could not be read, because {found}, and try again.") from error
        raise LarError(f"{what} could not be read ({first_line(error)}): {missing}.") from error
    except Exception as error:  # each library has its own for a damaged file
        raise Damaged(f"{what} is damaged, incomplete, or of another model ({first_line(error)}): {cure}.") from error


def _refuse(*rows: tuple[object, str]) -> None:
    """Raise LarError with the sentence of the first row that holds."""
    for wrong, sentence in rows:
        if wrong:
            raise LarError(sentence)
