"""Whether a folder's configuration, tokenizer and image processor belong together, and whether every weight was loaded.

A model of another kind, a foreign tokenizer or a missing layer raises no error by itself: transformers fills what it
does not find with random numbers, leaves out what it does not know, and goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from transformers import PaliGemmaConfig, PaliGemmaProcessor

from ..run.errors import Damaged, LarError
from ..run.files import read_json

SENTENCE = "pick up the black bowl and place it on the plate"
UNUSED = re.compile(r"vision_tower\.(vision_model\.)?head\.")  # SigLIP's pooling, which PaliGemma never asks
AGAIN = "copy the folder again from where the weights come from"


def read_config(folder: Path) -> PaliGemmaConfig:
    """The configuration of the PaliGemma in `folder`. Raises LarError for anything else, and where it was quantised."""
    path = folder / "config.json"
    if not folder.is_dir():
        raise LarError(f"There is no folder {folder}: give the folder of a PaliGemma in transformers' format (a hub id is "
                       "downloaded only where it is the profile's backbone).")
    if (folder / "adapter_config.json").exists():
        raise LarError(f"{folder} holds a PEFT adapter, which is no backbone by itself and would change one unseen: "
                       "merge it into its base model (merge_and_unload), save that with save_pretrained, and give that "
                       "folder.")
    if not path.exists():
        raise LarError(f"{folder} has no config.json, so it holds no model in transformers' format: {AGAIN}.")
    _check_kind(path, read_json(path))
    try:
        return PaliGemmaConfig.from_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # each wrong value has an exception of its own
        raise Damaged(f"{path} is damaged: it is no configuration of a PaliGemma ({_first_line(error)}); {AGAIN}."
                      ) from error


def read_processor(folder: Path, config: PaliGemmaConfig) -> PaliGemmaProcessor:
    """Tokenizer and image processor. Raises LarError where they are damaged, missing, or of another model than `config`."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    try:
        processor = PaliGemmaProcessor.from_pretrained(folder)
    except OSError as error:
        raise LarError(f"The tokenizer or processor in {folder} could not be read ({_first_line(error)}): if a file is "
                       f"missing, {AGAIN}; otherwise mend that cause, and delete nothing.") from error
    except Exception as error:  # tokenizers raises bare ones
        raise Damaged(f"The tokenizer or processor in {folder} is damaged, missing, or of another model "
                      f"({_first_line(error)}): copy its tokenizer and processor files again from where the weights come "
                      "from.") from error
    for wrong in (*_tokenizer_faults(processor.tokenizer, config), *_picture_faults(processor, config)):
        raise LarError(f"The tokenizer or processor in {folder} belongs to another model than its config.json: {wrong}. "
                       "Copy its tokenizer and processor files again from where the weights come from.")
    return processor


def check_loaded(found: dict, folder: Path, total: int) -> None:
    """Raise LarError unless every weight was found, known and of the right shape.

    found: transformers' or diffusers' loading info, where a head that shares the embedding's weights is not missing;
    total: how many weights there should be.
    """
    missing, unknown = (_used(found[kind]) for kind in ("missing_keys", "unexpected_keys"))
    shapes = {name: (tuple(there), tuple(wanted)) for name, there, wanted in found["mismatched_keys"]}
    wrong = []
    if missing:
        wrong.append(f"lacks {len(missing)} of the {total} weights that its config.json asks for, {_first(missing)} first, "
                     "which would stay random")
    if unknown:
        wrong.append(f"holds {len(unknown)} that its config.json does not ask for, {_first(unknown)} first")
    if shapes:
        first = _first(shapes)
        wrong.append(f"holds {first} in the shape {shapes[first][0]}, where its config.json asks for {shapes[first][1]}")
    if wrong:
        raise LarError(f"{folder} {', and '.join(wrong)}: its weights and its config.json (layers, widths, vocabulary) do "
                       f"not belong together; save the whole model again with save_pretrained, or {AGAIN}.")


def _check_kind(path: Path, values: dict) -> None:
    if values.get("model_type") != "paligemma":
        raise LarError(f"{path} describes a model of type {values.get('model_type')!r}, not 'paligemma': give the folder of "
                       "a PaliGemma (google/paligemma-3b-pt-224, or one that was tuned from it).")
    parts = [values, values.get("text_config"), values.get("vision_config")]
    if any(part.get("quantization_config") for part in parts if isinstance(part, dict)):
        raise LarError(f"{path.parent} was quantised by others (quantization_config in its config.json), so that the "
                       "profile's precision would be ignored: give the original weights in floats; they are quantised when "
                       "they are loaded.")


def _tokenizer_faults(tokenizer, config: PaliGemmaConfig) -> Iterable[str]:
    rows, highest = config.text_config.vocab_size, max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        yield f"its vocabulary goes to number {highest}, but the embedding has {rows} rows"
    image = tokenizer.convert_tokens_to_ids("<image>")
    if image != config.image_token_id:
        yield f"<image> is token {image} of the tokenizer, but {config.image_token_id} of the model"
    if tokenizer.bos_token_id != config.text_config.bos_token_id:
        yield f"sentences begin with token {tokenizer.bos_token_id}, but with {config.text_config.bos_token_id} in the model"
    back = tokenizer.decode(tokenizer.encode(SENTENCE, add_special_tokens=False), skip_special_tokens=True).strip()
    if back != SENTENCE:
        yield f"it reads {SENTENCE!r} as {back!r}"


def _picture_faults(processor: PaliGemmaProcessor, config: PaliGemmaConfig) -> Iterable[str]:
    """`Policy.see` scales pixels to [-1, 1] by itself, which is what a mean and deviation of a half do."""
    pictures, vision = processor.image_processor, config.vision_config
    size, side = dict(pictures.size), vision.image_size
    if (size.get("height"), size.get("width")) != (side, side):
        yield f"it makes pictures of {size.get('height')} x {size.get('width')} pixels, but the model sees {side} x {side}"
    patches = (side // vision.patch_size) ** 2
    if processor.image_seq_length != patches:
        yield f"it makes {processor.image_seq_length} image tokens, but the model {patches}"
    for name, numbers in (("mean", pictures.image_mean), ("deviation", pictures.image_std)):
        if list(numbers) != [0.5] * 3:
            yield f"its {name} of pixels is {list(numbers)}, but PaliGemma's is 0.5"


def _used(names: Iterable[str]) -> set[str]:
    return {name for name in names if not UNUSED.search(name)}


def _first(names: Iterable[str]) -> str:
    """The tied head comes last, because it says least."""
    return min(names, key=lambda name: ("lm_head" in name, name))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
