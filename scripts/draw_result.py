"""Draw docs/images/result.png, README's chart, from the kept runs of the default: `python scripts/draw_result.py`."""

from pathlib import Path

from lar_core.measure.results import load_results
from lar_core.show.figures import encoded, success_bars
from lar_core.show.rates import pooled_bars

ROOT = Path(__file__).resolve().parents[1]
KEPT = sorted((ROOT / "results").glob("attention_mask-tiny-s*.json"))

if __name__ == "__main__":
    figure = success_bars(*pooled_bars([load_results(path) for path in KEPT]))
    (ROOT / "docs/images/result.png").write_bytes(encoded(figure, format="png", dpi=140, facecolor="white"))
