"""docs/findings.md, its figure and README's part, from the studies kept in results/answer/: no number is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ..measure import statistics
from ..measure.plan import UNDECIDED
from ..measure.statistics import Interval
from ..measure.study import NOT_DETECTED, STUDY
from ..run.config import PROFILES
from ..run.errors import unknown
from . import figures, rates
from .report import fill_template

SHOWN = {"energy": "saliency on the named bowl", "target_minus_distractor": "named minus other bowl",
         "agreement": "agreement with what mattered", "position": "named bowl read from the patches (cm)",
         "pull": "gradient of reconstruction / actions", "action_l1": "held-out action error"}  # those that do not saturate

BEGIN, END = "<!-- written by scripts/write_findings.py -->", "<!-- end of what it writes -->"  # in README.md


def kept_studies(folder: Path) -> list[dict]:
    """The planned studies in a folder, by name. Raises LarError for a file that is none."""
    return [STUDY.load(path) for path in sorted(folder.glob("*.json"))]


def chosen(study: dict, conditions: Sequence[str], placement: str) -> dict:
    """The study with these arms, and what was compared of them at one placement.

    Raises LarError for what the study does not have.
    """
    for kind, names, there in (("arm of this study", conditions, study["study"]["conditions"]),
                               ("placement of this study", [placement], study["study"]["placements"])):
        for name in names:
            if name not in there:
                raise unknown(kind, name, there)
    arms = [arm | {"success": [row for row in arm["success"] if row["placement"] == placement]}
            for arm in study["arms"] if arm["condition"] in conditions]
    about = {name: [row for row in study.get(name, ()) if row["placement"] == placement
                    and {row["condition"], row[beside]} <= {*conditions}]
             for name, beside in (("comparisons", "reference"), ("answers", "beside"))}
    return study | {"arms": arms, **about}


def findings_page(studies: Sequence[dict]) -> str:
    """The text of docs/findings.md."""
    return fill_template("findings.md", studies=studies, shown=SHOWN, solved=_solved, points=_points, backbone=_backbone)


def with_answer(readme: str, studies: Sequence[dict]) -> str:
    """The text of README.md with what the studies say between its two marks."""
    before, rest = readme.split(BEGIN)
    part = fill_template("answer.md", studies=studies, solved=_solved, points=_points)
    return f"{before}{BEGIN}\n{part}{END}{rest.split(END)[1]}"


def answer_figure(study: dict) -> Figure:
    """The planned differences of one study, in the plan's order; of each seed, and their mean with its interval."""
    rows = [{"condition": f"{row['condition']} − {row['beside']}", "placement": f"{row['seeds']} seeds",
             "difference": row["difference"], "per_seed": row["per_seed"],
             "verdict": NOT_DETECTED if row["verdict"] == UNDECIDED else row["verdict"]}
            for row in study["answers"]]
    levels = sorted({f"{100 * (1 - row['level']):.0f} %" for row in study["answers"]})
    return figures.differences(rows, "the other arm", f"{' or '.join(levels)} interval over seeds; rings: seeds")


def _solved(arm: dict, placement: str) -> str:
    """`31/60 (39 to 64 %), named first 52`, over all tasks."""
    row = next((row for row in arm["success"] if (row["placement"], row["instruction"], row["task"])
                == (placement, "right", None)), None)
    if row is None:
        return "not rolled out"
    first = f", named first {row['happened']['first_touched']['named']}" if row.get("happened") else ""
    return f"{row['successes']}/{row['episodes']} ({rates.percent(row['low'], row['high'])}){first}"


def _points(difference: dict, level: float) -> str:
    interval = Interval(difference["mean"], difference["low"], difference["high"], 0)
    return statistics.points(interval, percent=100 * (1 - level))


def _backbone(study: dict) -> str:
    named = study["study"]["changes"].get("backbone", PROFILES[study["study"]["profile"]].backbone)
    return f"backbone {Path(str(named)).name}"
