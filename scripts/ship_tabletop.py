"""Put a pre-trained backbone into the package as `tabletop`, with its card and where it came from.

lar pretrain --run-dir runs/tabletop          # about 45 minutes on two cores, scenes included
python scripts/ship_tabletop.py runs/tabletop
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from lar_core.measure.sight import table
from lar_core.model.tiny import TABLETOP
from lar_core.pretrain import pretrained
from lar_core.run.files import atomic_path, file_sha256, write_json
from lar_core.run.folder import Run

CARD = """---
license: mit
library_name: transformers
pipeline_tag: image-text-to-text
---
# tabletop: a PaliGemma in miniature that sees

{parameters:.2f} M parameters in `PaliGemmaForConditionalGeneration`, for pictures of {size} × {size} pixels of
LIBERO-Spatial's table with the stand-in objects.
It answers `detect the black bowl next to the plate` with `<loc>` tokens, as PaliGemma
does. Small profiles start from it with `--set backbone=tabletop`.

It was pre-trained on {scenes:,} rendered scenes **with positions from the simulator**, as PaliGemma was with boxes. The
conditions that are compared on top of it stay annotation-free: none of them sees a box, except those
that say so (`gaze_…`, `guided_attention`).

| made by | `lar pretrain --run-dir RUN` and `python scripts/ship_tabletop.py RUN` |
|---|---|
| samples, steps | {samples:,}, {steps:,} |
| commit, machine | {commit}, {machine} |
| torch, transformers, mujoco | {torch}, {transformers}, {mujoco} |
| sha256 of `model.safetensors` | {sha256} |

Measured on {stored} stored scenes that training never draws (`pretraining.json`; what each line means is in
`lar_core/measure/sight.py`; `unheard_`: in forms of words that training never saw; `centre`: a map that never looks):

```
{table}
```
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a finished run of `lar pretrain`")
    run = Run.load(parser.parse_args().run)
    found = json.loads((run.path / "pretraining.json").read_text(encoding="utf-8"))
    with atomic_path(TABLETOP) as temporary:
        shutil.copytree(pretrained(run), temporary)
        write_json(temporary / "pretraining.json", found)
        (temporary / "README.md").write_text(card(run, found, temporary / "model.safetensors"), encoding="utf-8")
        shutil.rmtree(TABLETOP, ignore_errors=True)


def card(run: Run, found: dict, weights: Path) -> str:
    """The README of the folder."""
    profile, made = run.config.profile, found["provenance"]
    columns = {name: found[name] for name in ("before", "early", "after", "centre")}
    return CARD.format(parameters=weights.stat().st_size / 4e6, size=profile.image_size, scenes=profile.scenes,
                       samples=profile.samples, steps=run.config.steps, stored=found["stored"], table=table(columns),
                       sha256=file_sha256(weights), **{name: made.get(name, "?") for name in
                                                       ("commit", "machine", "torch", "transformers", "mujoco")})


if __name__ == "__main__":
    main()
