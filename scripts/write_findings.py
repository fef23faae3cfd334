"""Write docs/findings.md, its figure and README's part from results/answer/; folders of studies are put there first.

python scripts/write_findings.py [runs/answer ...]

What a study needs of its finished runs is put beside it, in a folder of its name. Copied to runs/, it lets `lar study`
go on from there on another machine, with the runs that are missing.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lar_core.measure.study import FILE, STUDY, Study
from lar_core.run.files import write_text
from lar_core.show.answer import answer_figure, findings_page, kept_studies, with_answer
from lar_core.show.figures import encoded
from lar_core.studies import keep

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE, PICTURE = ROOT / "results" / "answer", ROOT / "docs" / "findings.md", ROOT / "docs" / "images" / "answer.png"
README = ROOT / "README.md"

if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        study = STUDY.load(folder / FILE)
        name = study["study"]["name"]
        STUDY.save(KEPT / f"{name}.json", study)
        keep(Study.load(ROOT / "studies" / f"{name}.yaml"), folder, KEPT / name)
    studies = kept_studies(KEPT)
    write_text(PAGE, findings_page(studies))
    write_text(README, with_answer(README.read_text(encoding="utf-8"), studies))
    if studies:
        PICTURE.write_bytes(encoded(answer_figure(studies[0]), format="png", dpi=140, facecolor="white"))
    print(PAGE)
