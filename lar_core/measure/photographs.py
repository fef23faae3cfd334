"""Saliency on photographs with phrases: RefCOCO-M, RefCOCO/+/g, Flickr30k Entities, Visual Genome.

    rows = photograph_rows(policy, phrases("refcoco_m", folder), limit=500)

`score_photographs` does that for a trained run and keeps the rows in RUN_DIR/photographs/SET-SPLIT.json. A photograph is
stretched to the backbone's square image, as its processor does, and its masks with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from ..data.phrases import Phrase, Place, Unusable, phrases
from ..model.policy import Policy
from ..run.errors import LarError
from ..run.files import write_json
from ..run.folder import Run
from .maps import kept_heads, maps_in_batches, row
from .metrics import Truth
from .passes import available

PHRASES = 500  # of a data set, unless more are asked for
RIVALS = 7  # other places of a picture that are ranked against the named one, at most; the largest


def score_photographs(run: Run, policy: Policy, name: str, folder: Path | str, split: str = "val",
                      limit: int = PHRASES) -> list[dict]:
    """The rows of a data set in `grounding_sets.SETS`, on the first `limit` phrases of `split`; also written down.

    Raises LarError as `phrases` and `photograph_rows` do.
    """
    heads = kept_heads(run, policy)
    rows = photograph_rows(policy, phrases(name, folder, split), limit, available(policy, heads is not None), heads)
    write_json(run.path / "photographs" / f"{name}-{split}.json", rows)
    return rows


def photograph_rows(policy: Policy, phrases: Iterable[Phrase], limit: int = PHRASES, names: Sequence[str] | None = None,
                    heads: list[tuple[int, int]] | None = None) -> list[dict]:
    """A row (see `saliency_rows`) for each aggregation in `names` (None: all), on the first `limit` phrases.

    Phrases that cannot be used are left out, counted by reason, printed, and counted in the rows as `skipped`. Intervals
    are over pictures: phrases of one picture are not independent. heads: what `localisation_heads` takes.
    Raises LarError where there are no phrases, or none of them can be used.
    """
    size, grid = policy.backbone.image_size, round(policy.backbone.patches**0.5)
    chosen, seen, skipped = _usable(policy, islice(phrases, limit), size)
    maps = maps_in_batches(policy, np.stack([image for image, _ in seen]), [phrase.text for phrase in chosen],
                           list(names or available(policy)), heads)
    objects = np.stack([places for _, places in seen])
    truth = Truth(objects[:, 0], grid, objects=objects)
    return [row(name, saliency, truth, _pictures(chosen)) | {"skipped": skipped} for name, saliency in maps.items()]


def _usable(policy: Policy, phrases: Iterable[Phrase], size: int) -> tuple[list[Phrase], list[tuple], int]:
    """The phrases that can be scored, what `_seen` makes of each, and how many others there were; says why."""
    chosen, seen, reasons, first = [], [], Counter(), ""
    for phrase in tqdm(phrases, desc="reading photographs", unit="phrase", leave=False):
        try:
            _check_text(policy, phrase)
            seen.append(_seen(phrase, size))
            chosen.append(phrase)
        except Unusable as error:
            first = first or str(error)
            reasons[error.reason] += 1
    skipped = reasons.total()
    counted = "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common())
    if not chosen and skipped:
        raise LarError(f"None of {skipped} phrases can be scored ({counted}). The first: {first} Check that the folder "
                       "holds all of the data set, its pictures as well.")
    if not chosen:
        raise LarError("There are no phrases to score: check the folder and the split.")
    if skipped:
        print(f"{skipped} of {skipped + len(chosen)} phrases were skipped: {counted}.")
    return chosen, seen, skipped


def _check_text(policy: Policy, phrase: Phrase) -> None:
    try:
        policy.backbone.tokenise([phrase.text])
    except LarError as error:
        raise Unusable("its text is no instruction", error) from error


def _seen(phrase: Phrase, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The picture (size, size, 3) uint8, and the places (1 + RIVALS, size, size) bool, the named one first.

    Raises Unusable where the named one cannot be shown; other places that cannot be are left out.
    """
    picture = phrase.picture()
    def stretched(place: Place) -> np.ndarray:
        mask = Image.fromarray(place.pixels(picture.height, picture.width))
        return np.asarray(mask.resize((size, size), Image.Resampling.NEAREST))
    named, others = stretched(phrase.named), []
    if not named.any():
        raise Unusable("its place is smaller than a pixel of the model's image")
    for place in phrase.others:
        with suppress(Unusable):
            others.append(stretched(place))
    others = sorted(others, key=np.sum, reverse=True)[:RIVALS]
    places = np.zeros((1 + RIVALS, size, size), dtype=bool)
    places[: 1 + len(others)] = [named, *others]
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR)), places


def _pictures(phrases: Sequence[Phrase]) -> np.ndarray:
    """A number for each picture, (B,)."""
    numbers: dict = {}
    return np.array([numbers.setdefault(phrase.image, len(numbers)) for phrase in phrases])
