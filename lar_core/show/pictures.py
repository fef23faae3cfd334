"""Pictures for widgets and notebooks, composed pixel by pixel: a few milliseconds, where matplotlib takes hundreds.

Of one frame: its saliency in many ways, and what the conditions hide of it or are given. Of a run folder: its gallery, its
reconstructions over time, and where a backbone looks before pre-training and after. image (H, W, 3) uint8; saliency (P,)
sums to 1; regions (2, H, W) of 0/1, the named object and the other bowl, or None; batch: one or more frames as
`DemoDataset.batch` gives them, with `previous`, of which the first is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageColor, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion
from torch import Tensor

from ..measure.attention import Attention, AttentionReader, Choice, aggregate, shared
from ..measure.statistics import evenly
from ..model.aggregation import SINK
from ..model.diffusion import count, crop, densest_boxes, object_boxes
from ..model.policy import Policy, make_decoder
from ..run.config import CONDITIONS
from ..run.errors import LarError
from ..run.files import atomic_path
from ..run.folder import Run
from ..run.registry import MASK_SOURCES
from ..run.runtime import Draws
from ..run.settings import BLANK, Condition, Profile
from . import figures
from .figures import INK, OTHER, TARGET, covered, encoded, overlay

SIDE, MIDDLE, SMALL = 288, 230, 180  # pixels of a panel: in a widget, one of a few, one of many
GAP, TITLE, LINE = 10, 24, 17  # pixels between panels, above them, and for each further line of a title
PAPER, HIDDEN = "#ffffff", np.array([128, 128, 128], np.uint8)
_DASH = 5  # pixels


def enlarge(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """image (H, W, 3) uint8 -> (side, side, 3), smoothly."""
    return np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC))


def outlined(picture: np.ndarray, regions: np.ndarray | None) -> np.ndarray:
    """Draw round the named object (solid) and the other bowl (dashed)."""
    if regions is None:
        return picture
    result = picture.copy()
    rows, columns = np.indices(picture.shape[:2])
    dashes = (rows + columns) // _DASH % 2 == 0
    for region, colour, where in zip(regions, (TARGET, OTHER), (True, dashes)):
        size = picture.shape[1::-1]
        region = np.asarray(Image.fromarray(region.astype(np.uint8) * 255).resize(size, Image.Resampling.BICUBIC)) > 127
        result[region & ~binary_erosion(region, iterations=2) & where] = ImageColor.getrgb(colour)
    return result


def hidden(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Cover the masked patches with grey, as the decoder meets them; mask (P,) bool, True = masked."""
    return np.where(covered(mask, picture), HIDDEN, picture)


def side_by_side(panels: Sequence[np.ndarray], titles: Sequence[str]) -> np.ndarray:
    """Panels (h, w, 3) of one size in a row, each under its title, on white."""
    return grid(panels, titles, len(panels))


def grid(panels: Sequence[np.ndarray], titles: Sequence[str], columns: int) -> np.ndarray:
    """Panels (h, w, 3) of one size, row by row, each under its title of one line or more, on white."""
    above = TITLE + LINE * max(title.count("\n") for title in titles)
    height, width = panels[0].shape[0] + above, panels[0].shape[1] + GAP
    canvas = Image.new("RGB", (columns * width - GAP, -(-len(panels) // columns) * height), PAPER)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=13)
    for place, (panel, title) in enumerate(zip(panels, titles)):
        left, top = place % columns * width, place // columns * height
        canvas.paste(Image.fromarray(panel), (left, top + above))
        draw.text((left + 2, top + above // 2 - 1), title, font=font, fill=INK, anchor="lm")
    return np.asarray(canvas)


def heat(image: np.ndarray, saliency: np.ndarray, regions: np.ndarray | None = None, side: int = SIDE) -> np.ndarray:
    """The image coloured by saliency, with outlines: (side, side, 3)."""
    return outlined(enlarge(overlay(image, saliency), side), regions)


def png(picture: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8, fast rather than small."""
    return encoded(Image.fromarray(picture), format="png", compress_level=1)


def colours(segmentation: np.ndarray) -> np.ndarray:
    """A colour for each number of segmentation (H, W), grey for 0: (H, W, 3) uint8."""
    palette = (matplotlib.colormaps["tab20"](np.arange(20))[:, :3] * 255).astype(np.uint8)
    return np.where(segmentation[..., None] > 0, palette[segmentation % 20], np.uint8(225))


def filmstrip(frames: np.ndarray, count: int = 6, side: int = 150) -> np.ndarray:
    """`count` of the frames (T, H, W, 3), evenly spread, in a row."""
    chosen = evenly(len(frames), count)
    return side_by_side([enlarge(frames[i], side) for i in chosen], [f"step {i}" for i in chosen])


# Many saliency maps of one frame side by side: one for every word, every head, or every way to aggregate.

def maps(image: np.ndarray, attention: Attention, choices: dict[str, Choice], regions: np.ndarray | None = None, *,
         columns: int = 5, side: int = SMALL) -> np.ndarray:
    """One heatmap a choice, each under its name."""
    return grid([heat(image, aggregate(attention, choice), regions, side) for choice in choices.values()],
                list(choices), columns)


def by_name(reader: AttentionReader, image: np.ndarray, instruction: str, regions: np.ndarray | None = None, *,
            columns: int = 5, side: int = SMALL) -> np.ndarray:
    """One heatmap for every aggregation that has a name, those of many passes too."""
    names = reader.aggregations
    return grid([heat(image, reader.aggregated(image, instruction, name), regions, side) for name in names],
                [name.replace("_", " ") for name in names], columns)


def sinks(reader: AttentionReader, image: np.ndarray, instruction: str,
          regions: np.ndarray | None = None) -> np.ndarray:
    """The mean map; that of a blank instruction; what every token gives at least; and the map without its sinks."""
    common = shared(reader.read(image, instruction))
    panels = {"mean over the words": reader.aggregated(image, instruction, "mean"),
              "nothing was said": reader.aggregated(image, BLANK, "mean"),
              f"what every token gives: up to {common.max():.1f}": common / common.size,
              f"without sinks, of which there are {(common > SINK).sum()}":
                  reader.aggregated(image, instruction, "sink_removal")}
    return side_by_side([heat(image, panel, regions, MIDDLE) for panel in panels.values()], list(panels))


def by_word(attention: Attention) -> dict[str, Choice]:
    """A choice for every token: the instruction's own words by place, the others as they are."""
    return {f"{place} {word}" if attention.own[place] else word: Choice(words=(place,))
            for place, word in enumerate(attention.words)}


def by_head(attention: Attention, layers: tuple[int, ...] | None = None) -> dict[str, Choice]:
    """A choice for every head of `layers` (None: of all)."""
    count, heads = attention.values.shape[:2]
    return {f"layer {layer}, head {head}": Choice(layers=(layer,), heads=(head,))
            for layer in (layers or range(count)) for head in range(heads)}


# What a run folder holds

def arrays(run: Run) -> dict[str, np.ndarray]:
    """The arrays of gallery.npz. Raises LarError when there is none."""
    if not (found := figures.gallery(run)):
        raise LarError(f"{run.path / 'gallery.npz'} is missing: run `lar saliency --run-dir {run.path}` first.")
    return found


def saliency(run: Run, limit: int = 4) -> Figure:
    """Image, saliency and its top quarter on held-out frames."""
    return figures.saliency_of(arrays(run), limit)


def panels(run: Run, limit: int = 3) -> Figure | None:
    """Original, masked, reconstructed, pasted; None for a condition that reconstructs nothing."""
    pictures = arrays(run).get("panels")
    return None if pictures is None else figures.reconstruction_panels(pictures, limit)


def over_time(moments: dict[int, np.ndarray], limit: int = 5, side: int = SMALL) -> np.ndarray:
    """Panels (M, 4, H, W, 3) by training step -> masked, reconstructed, pasted (rows) of the first frame over time."""
    steps = np.array(sorted(moments))[evenly(len(moments), limit)]
    titles = [f"after {step} steps" if step else "before training" for step in steps]
    return grid([enlarge(moments[step][0, panel], side) for panel in (1, 2, 3) for step in steps],
                [*titles, *[""] * 2 * len(steps)], len(steps))


def write_picture(run: Run) -> Path:
    """RUN_DIR/pretraining.png: where the backbone looks in ten scenes before pre-training, and below that, after.

    Of the maps that pre-training left in `pretraining.npz`; both bowls are outlined.
    """
    with np.load(run.path / "pretraining.npz", allow_pickle=False) as file:
        kept = dict(file)
    drawn, titles, columns = [], [], 5
    for row in np.split(np.linspace(0, len(kept["images"]) - 1, 2 * columns).round().astype(int), 2):
        for moment in ("before", "after"):
            drawn += [heat(kept["images"][i], kept[moment][i], kept["regions"][i], MIDDLE) for i in row]
            titles += [f"{moment}: {_relation(kept['instructions'][i])}" for i in row]
    path = run.path / "pretraining.png"
    with atomic_path(path) as temporary:
        temporary.write_bytes(png(grid(drawn, titles, columns)))
    return path


def _relation(instruction: str) -> str:
    """What the sentence says of the bowl, short enough for a title."""
    relation = str(instruction).removeprefix("pick up the black bowl ").split(" and place ")[0]
    return textwrap.shorten(relation.replace("the ", ""), 29, placeholder=" ...")


# The conditions beside each other on one frame: what each mask source hides, which region each denoiser is given.

def conditions(profile: Profile) -> list[tuple[str, str, str, str, str, float]]:
    """(name, mask source, reconstructor, action head, what else it changes, million parameters of the decoder)."""
    return [(name, condition.mask_source, condition.reconstructor, condition.head, _changes(condition),
             _decoder_size(condition, profile)) for name, condition in CONDITIONS.items()]


def masks(policy: Policy, batch: dict) -> np.ndarray:
    """What every mask source hides in the first frame, by the policy's own attention where it asks for that.

    The teacher's mask is left out: a trained policy has no teacher any more.
    """
    absent = {"teacher"} if "regions" in batch else {"teacher", "segmentation"}
    names = [name for name in MASK_SOURCES if MASK_SOURCES.about(name).needs not in absent]
    image = enlarge(_image(batch), SMALL)
    return grid([hidden(image, _mask(policy, batch, name)[0].cpu().numpy()) for name in names], names, columns=5)


def regions(policy: Policy, batch: dict) -> np.ndarray:
    """Region x reconstructor: the patches that an MAE fills in, and the crops that a denoiser makes out of noise.

    The frames need segmentation.
    """
    image, size = enlarge(_image(batch), SMALL), batch["images"].shape[-1]
    gaze, attention = (_mask(policy, batch, name) for name in ("gaze", "attention"))
    pixels = batch["images"].to(policy.device).float()
    crops = [crop(pixels, boxes, size)[0].permute(1, 2, 0).round().byte().cpu().numpy()
             for boxes in (object_boxes(batch["regions"][:, 0].to(policy.device)), densest_boxes(attention))]
    panels = [hidden(image, gaze[0].cpu().numpy()), hidden(image, attention[0].cpu().numpy()),
              *(enlarge(one, SMALL) for one in crops)]
    return grid(panels, ["gaze_mask", "attention_mask", "gaze_diffusion", "attention_diffusion"], columns=4)


@torch.no_grad()
def _mask(policy: Policy, batch: dict, source: str) -> Tensor:
    """(B, P) bool, True = masked, on the policy's mask grid."""
    return policy.mask(batch, policy.encode(batch).saliency, Draws(0), source)


def _image(batch: dict) -> np.ndarray:
    return batch["images"][0].permute(1, 2, 0).cpu().numpy()


def _changes(condition: Condition) -> str:
    """Fields that differ from the default, but for those with a column of their own."""
    plain, apart = Condition().model_dump(), ("name", "mask_source", "reconstructor", "head")
    changed = {name: value for name, value in condition.model_dump().items()
               if name not in apart and value != plain.get(name)}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in changed.items())


def _decoder_size(condition: Condition, profile: Profile) -> float:
    with torch.device("meta"):  # only shapes
        decoder = make_decoder(condition, profile, grid=profile.image_size // profile.patch_size,
                               patch_size=profile.patch_size, feature_width=profile.text_width)
    return 0.0 if decoder is None else count(decoder) / 1e6
