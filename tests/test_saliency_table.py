"""Rows of saliency in results.json and in the report."""

from __future__ import annotations

import pytest
from test_results import full, interval

from lar_core.measure.results import validate_results
from lar_core.run.errors import LarError
from lar_core.run.registry import METRICS
from lar_core.show.report import beside_baselines, columns, saliency_cells

ROW = {"name": "content_words", "frames": 100, "metrics": dict.fromkeys(METRICS) | {"aos": interval(0.123)}}


def test_a_row_shows_its_name_its_numbers_and_what_could_not_be_measured():
    cells = saliency_cells([ROW])[0]
    assert cells[:3] == ("content words", "0.123\n0.113 to 0.133", "–")


def test_results_take_rows_and_name_a_wrong_one():
    validate_results(full() | {"aggregations": [ROW], "robustness": [ROW | {"name": "occlusion"}]})
    with pytest.raises(LarError, match="metrics"):
        validate_results(full() | {"aggregations": [ROW | {"metrics": {}}]})


def test_every_metric_is_explained_beside_maps_that_never_look():
    grounding = {metric: {"model": interval(0.3), "uniform": interval(0.2), "centre": None, "mean_map": interval(0.4)}
                 for metric in METRICS}
    rows = beside_baselines(grounding)
    assert [row[0] for row in rows] == [about.label for about in columns()] and all(row[1] for row in rows)
    assert rows[0][2:] == ("0.3 (0.29 to 0.31)", "0.2 (0.19 to 0.21)", "not measurable", "0.4 (0.39 to 0.41)")
    assert beside_baselines({"aos": grounding["aos"]}) == rows[:1]
