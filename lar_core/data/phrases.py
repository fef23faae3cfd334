"""Data sets of pictures, phrases and the places that the phrases name, each read in its own file format.

    refcoco_m       RefCOCO-M (Moondream 2025), masks       FOLDER/data/validation-*.parquet
    refcoco         RefCOCO, RefCOCO+, RefCOCOg, masks      FOLDER/refs(unc).p or refs(umd).p, instances.json, images/
    flickr30k       Flickr30k Entities, boxes               FOLDER/Sentences/, Annotations/, images/, <split>.txt
    visual_genome   Visual Genome, boxes                    FOLDER/region_descriptions.json, VG_100K/, VG_100K_2/

`phrases("refcoco", folder, "testA")` yields them one by one. Boxes are (left, top, right, bottom) in pixels of the
picture, right and bottom exclusive. Data sets of this size have faults: a phrase whose picture or place is missing or cannot
be is yielded all the same, and raises Unusable, with the reason, where it is looked at.
"""

from __future__ import annotations

import errno
import io
import json
import math
import pickle
import re
import xml.etree.ElementTree as xml
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
from PIL import Image
from pycocotools import mask as coco_masks

from ..run.errors import LarError, unknown, unreadable

Box = tuple[float, float, float, float]


class Unusable(LarError):
    """A phrase that a score has to leave out; `reason` counts such phrases."""

    def __init__(self, reason: str, where: object = ""):
        super().__init__(f"{where}{where and ': '}{reason}.")
        self.reason = reason


@dataclass(frozen=True)
class Place:
    """Where something is: its boxes, or, where the data set has one, a mask in one of COCO's three encodings.

    A mask that is empty stays empty: the box does not stand in for it.
    """

    boxes: tuple[Box, ...] = ()
    mask: list | dict | None = None  # polygons, or run lengths as a list or a text

    def pixels(self, height: int, width: int) -> np.ndarray:
        """(height, width) bool, for a picture of that size. Raises Unusable where no pixel of it is meant."""
        found = np.zeros((height, width), dtype=bool)
        if self.mask is not None:
            found = _decode(self.mask, height, width)
        elif not all(map(math.isfinite, (edge for box in self.boxes for edge in box))):
            raise Unusable("its box is not made of numbers")
        else:
            for box in self.boxes:
                left, top, right, bottom = (round(max(edge, 0)) for edge in box)  # a negative end would count from behind
                found[top:bottom, left:right] = True
        if not found.any():
            raise Unusable("its mask is empty" if self.mask is not None else
                           "its box has no pixel of the picture" if self.boxes else "it has no place")
        return found


@dataclass(frozen=True)
class Phrase:
    """image: a file, or a picture's bytes; text; the place it names; others: places of other things in the picture."""

    image: Path | bytes
    text: str
    named: Place
    others: tuple[Place, ...] = ()

    def picture(self) -> Image.Image:
        """Raises Unusable for a picture that is missing or damaged."""
        try:
            return Image.open(self.image if isinstance(self.image, Path) else io.BytesIO(self.image)).convert("RGB")
        except FileNotFoundError as error:
            raise Unusable("its picture is missing", self.image) from error
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the system's refusal: the picture may be healthy
                raise unreadable(self.image, error, "get the data set's images as well") from error
            raise Unusable("its picture is damaged", self.image if isinstance(self.image, Path) else "") from error


def phrases(name: str, folder: Path | str, split: str = "val") -> Iterator[Phrase]:
    """Every phrase of a data set in SETS. Raises LarError for an unknown one, and for files in another format."""
    if name not in SETS:
        raise unknown("grounding data set", name, SETS)
    try:
        yield from SETS[name](Path(folder), split)
    except OSError as error:
        if error.errno not in (None, errno.ENOENT):
            raise unreadable(error.filename or folder, error, "get the data set again") from error
        raise _foreign(name, folder, error) from error
    except (LookupError, AttributeError, ValueError, TypeError, pickle.UnpicklingError, EOFError, xml.ParseError) as error:
        raise _foreign(name, folder, error) from error


def _foreign(name: str, folder: Path | str, error: Exception) -> LarError:
    return LarError(f"{folder} does not hold {name} as it is published ({type(error).__name__}: {error}): see the top of "
                    "lar_core/data/phrases.py for the files that are expected.")


def _refcoco_m(folder: Path, split: str) -> Iterator[Phrase]:
    split = "validation" if split == "val" else split
    for path in _some(sorted((folder / "data").glob(f"{split}-*.parquet")), folder):
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=16):
            for row in batch.to_pylist():
                places = [Place(_corner(sample["bbox"]), sample["mask"] or []) for sample in row["samples"]]
                for number, sample in enumerate(row["samples"]):
                    others = (*places[:number], *places[number + 1 :])
                    for sentence in sample["sentences"]:
                        yield Phrase(row["image"]["bytes"], sentence, places[number], others)


def _refcoco(folder: Path, split: str) -> Iterator[Phrase]:
    splits = [folder / f"refs({who}).p" for who in ("unc", "umd")]  # beside Google's, which tests on other pictures
    with _some([path for path in splits if path.exists()], folder)[0].open("rb") as file:
        refs = _PlainUnpickler(file, encoding="latin1").load()
    instances = json.loads((folder / "instances.json").read_text(encoding="utf-8"))
    files = {image["id"]: image["file_name"] for image in instances["images"]}
    places: dict[int, dict[int, Place]] = {}
    for thing in instances["annotations"]:
        places.setdefault(thing["image_id"], {})[thing["id"]] = Place(_corner(thing["bbox"]), thing["segmentation"] or [])
    for ref in refs:
        if ref["split"] == split:
            here = places.get(ref["image_id"], {})
            others = tuple(place for number, place in here.items() if number != ref["ann_id"])
            image = folder / "images" / files.get(ref["image_id"], str(ref["image_id"]))
            for sentence in ref["sentences"]:
                yield Phrase(image, sentence["sent"], here.get(ref["ann_id"], Place()), others)


def _flickr30k(folder: Path, split: str) -> Iterator[Phrase]:
    for number in (folder / f"{split}.txt").read_text(encoding="utf-8").split():
        boxes = _flickr_boxes(folder / "Annotations" / f"{number}.xml")
        for sentence in (folder / "Sentences" / f"{number}.txt").read_text(encoding="utf-8").splitlines():
            for chain, text in re.findall(r"\[/EN#(\d+)/\S+ ([^\]]+)\]", sentence):
                if chain in boxes:  # scenes and things that cannot be seen have none
                    others = tuple(Place(tuple(found)) for other, found in boxes.items() if other != chain)
                    yield Phrase(folder / "images" / f"{number}.jpg", text, Place(tuple(boxes[chain])), others)


def _flickr_boxes(path: Path) -> dict[str, list[Box]]:
    boxes: dict[str, list[Box]] = {}
    for thing in xml.parse(path).getroot().iter("object"):
        box = thing.find("bndbox")
        if box is not None:
            left, top, right, bottom = (float(box.findtext(edge) or "nan") for edge in ("xmin", "ymin", "xmax", "ymax"))
            for name in thing.findall("name"):  # pixels are counted from 1 there
                boxes.setdefault(name.text or "", []).append((left - 1, top - 1, right, bottom))
    return boxes


def _visual_genome(folder: Path, split: str) -> Iterator[Phrase]:
    """The data set has no splits of its own: all of it, whatever `split` says."""
    for image in json.loads((folder / "region_descriptions.json").read_text(encoding="utf-8")):
        files = [folder / part / f"{image['id']}.jpg" for part in ("VG_100K", "VG_100K_2")]
        path = next((file for file in files if file.exists()), files[0])
        for found in image["regions"]:
            box = _corner((found["x"], found["y"], found["width"], found["height"]))
            yield Phrase(path, (found["phrase"] or "").strip(), Place(box))


SETS: dict[str, Callable[[Path, str], Iterator[Phrase]]] = {
    "refcoco_m": _refcoco_m, "refcoco": _refcoco, "flickr30k": _flickr30k, "visual_genome": _visual_genome,
}


class _PlainUnpickler(pickle.Unpickler):
    """For RefCOCO's pickles, which hold lists, dicts, numbers and texts: whatever asks for code is refused."""

    def find_class(self, module: str, name: str) -> object:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, but plain lists and dictionaries are expected")


def _decode(mask: list | dict, height: int, width: int) -> np.ndarray:
    """Raises Unusable for a mask of another picture's size, and for one that is in none of the three encodings."""
    try:
        if isinstance(mask, list):
            outlines = [line for line in mask if len(line) >= 6 and len(line) % 2 == 0]  # of four numbers it would be a box
            if not np.isfinite([edge for line in outlines for edge in line]).all():
                raise ValueError("an outline is not made of numbers")
            runs = coco_masks.merge(coco_masks.frPyObjects(outlines, height, width)) if outlines else None
        elif list(mask["size"]) != [height, width]:
            raise Unusable("its mask has another size than its picture")
        else:
            counts = mask["counts"] if isinstance(mask["counts"], list) else _run_lengths(mask["counts"])
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError("the runs do not fill the picture")
            runs = coco_masks.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return np.zeros((height, width), dtype=bool) if runs is None else coco_masks.decode(runs).astype(bool)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Unusable("its mask is damaged") from error


def _run_lengths(text: str | bytes) -> list[int]:
    """COCO's run lengths out of their text: five bits a sign, the lowest first, each from the third on as the difference to
    the one two before. pycocotools decodes damaged ones to whatever lies in memory. Raises IndexError for a cut one."""
    signs = [sign - 48 for sign in (text.encode() if isinstance(text, str) else text)]
    counts: list[int] = []
    while signs:
        bits = number = 0
        while True:
            sign = signs.pop(0)
            number |= (sign & 31) << bits
            bits += 5
            if not sign & 32:
                break
        number -= (1 << bits) if sign & 16 else 0
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    return counts


def _corner(box: tuple | list | None) -> tuple[Box, ...]:
    """COCO's (left, top, width, height) as the one box of a place; none where the four are not there."""
    if box is None or len(box) != 4 or not all(isinstance(edge, int | float) for edge in box):
        return ()
    left, top, width, height = box
    return ((left, top, left + width, top + height),)


def _some(paths: list[Path], folder: Path) -> list[Path]:
    if not paths:
        raise FileNotFoundError(f"nothing to read in {folder}")
    return paths
