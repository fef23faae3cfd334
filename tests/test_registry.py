"""A registry entry is one edit: each test adds one from here, and sees it wherever such things are listed or used."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_results import full, interval, series

from lar_core import cli
from lar_core.estimate import Size
from lar_core.measure import costs
from lar_core.measure.maps import available, saliency_maps
from lar_core.measure.metrics import Truth, score
from lar_core.measure.results import validate_results
from lar_core.model.aggregation import Aggregation
from lar_core.model.heads import ParallelHead
from lar_core.run import registry
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.registry import AGGREGATIONS, HEADS, MASK_SOURCES, METRICS, REGULARISERS, Registry
from lar_core.run.runtime import Draws
from lar_core.show import figures
from lar_core.show.pictures import masks
from lar_core.show.report import beside_baselines, columns, metrics_guide, saliency_cells

REGISTRIES = {name: found for name, found in vars(registry).items() if isinstance(found, Registry)}


@pytest.fixture
def add():
    """A factory: add(registry, name, thing, ...) registers it for this test alone."""
    added = []
    def register(where, name, thing, **facts):
        added.append((where, name))
        where.register(name, "made by a test", **facts)(thing)
    yield register
    for where, name in added:
        where.remove(name)


def helps(step, capsys):
    with pytest.raises(SystemExit):
        cli.main([step, "--help"])
    return capsys.readouterr().out


@pytest.mark.parametrize("name", REGISTRIES)
def test_every_entry_says_in_a_line_what_it_is(name):
    found = REGISTRIES[name]
    assert len(found) and all(5 < len(found.about(entry).words) < 250 for entry in found)


@pytest.mark.parametrize("where, setting", [(MASK_SOURCES, "mask_source"), (HEADS, "head"), (AGGREGATIONS, "aggregation")])
def test_an_added_name_is_accepted_listed_and_explained(add, where, setting, capsys):
    with pytest.raises(LarError, match=f"Unknown {where.kind} 'brand_new'"):
        make_config(**{setting: "brand_new"})
    add(where, "brand_new", where[next(iter(where))])
    assert getattr(make_config(**{setting: "brand_new"}).condition, setting) == "brand_new"
    with pytest.raises(LarError, match="did you mean 'brand_new'.*brand_new"):
        make_config(**{setting: "brand_niew"})
    assert "brand_new" in (text := helps("train", capsys)) and "made by a test" in text


def test_an_added_mask_source_chooses_masks_and_is_drawn_beside_the_others(add, policy_of, batch):
    last_place = np.s_[-100:-90, -100:-90]
    assert (masks(policy_of(), batch)[last_place] == 255).all()  # nothing stands there yet
    add(MASK_SOURCES, "last", lambda clues: torch.arange(clues.saliency.shape[1]).float().expand(len(clues.saliency), -1))
    policy = policy_of("random_mask", mask_source="last")
    assert policy.mask(batch, policy.encode(batch).saliency, Draws(0))[:, -4:].all()
    assert (masks(policy, batch)[last_place] != 255).any()


def test_an_added_head_is_built_planned_for_and_timed(add, policy_of):
    add(HEADS, "twin", type("TwinHead", (ParallelHead,), {}), losses=("l1",))
    assert type(policy_of("action_only", head="twin", action_loss="l1").head).__name__ == "TwinHead"
    assert Size(make_config("action_only", "micro", head="twin", action_loss="l1")).head > 0
    assert costs.heads()["twin: made by a test"] == {"head": "twin", "action_loss": "l1"}
    with pytest.raises(LarError, match="twin head cannot learn from action_loss=cross_entropy: set action_loss=l1"):
        make_config("action_only", head="twin")


def test_an_added_regulariser_is_set_trained_planned_and_drawn(add, policy_of, batch, capsys):
    add(REGULARISERS, "peak", lambda given: given.saliency.amax(dim=1).mean(), passes=1, colour="#123456")
    losses = policy_of("action_only", peak=0.5)(batch, Draws(0))
    assert torch.isclose(losses["loss"], losses["action"] + 0.5 * losses["peak"]) and losses["peak"] > 0
    config = make_config("action_only", "micro", peak=0.5)
    assert Size(config).looks == 2 and config.condition.sees_again == ["peak"] and "peak" in helps("train", capsys)
    rows = [{"step": step, "action": 1.0, "peak": 0.1, "grad_peak": 0.2} for step in (1, 2)]
    lines = [line for axis in figures.training_curves(rows).axes for line in axis.lines]
    assert "#123456" in {line.get_color() for line in lines}
    results = full()
    results["training"]["final"]["peak"] = 0.1
    validate_results(results)
    with pytest.raises(LarError, match="did you mean 'peak'"):
        make_config(paek=0.5)


def test_an_added_aggregation_gets_a_row_of_its_own(add, policy_of, batch):
    flat = type("Flat", (Aggregation,), {"forward": lambda self, attention, prefix: torch.full(
        (len(attention), attention.shape[-1]), 1 / attention.shape[-1])})
    add(AGGREGATIONS, "flat", flat)
    policy = policy_of()
    assert "flat" in available(policy)
    assert (saliency_maps(policy, batch["images"], batch["instructions"], ["flat"])["flat"] == 1 / 16).all()
    assert (policy_of(aggregation="flat").encode(batch).saliency == 1 / 16).all()


def test_an_added_metric_is_scored_tabled_plotted_and_explained(add, capsys):
    add(METRICS, "first_patch", lambda saliency, truth: saliency[:, 0], label="first patch", guide="Only a test.")
    truth = Truth(np.ones((2, 8, 8)), 2)
    assert (score(np.full((2, 4), 0.25), truth)["first_patch"] == 0.25).all()
    results = full()
    results["grounding"]["first_patch"] = series(0.25, 0.2, 0.1, 0.3)
    row = {"name": "mean", "frames": 2, "metrics": {"aos": None, "auc": None, "target_minus_distractor": None,
                                                    "first_patch": interval(0.25)}}
    results["aggregations"] = [row]
    validate_results(results)
    assert "first patch" in [about.label for about in columns()] and "0.25" in str(saliency_cells([row]))
    assert "first patch" in [line[0] for line in beside_baselines(results["grounding"])]
    assert ("First patch", "Only a test.") in metrics_guide()
    assert "first patch" in [axis.get_title(loc="left") for axis in figures.grounding_bars(results["grounding"]).axes]
    assert "first_patch" in helps("saliency", capsys)


def test_a_cell_can_be_run_again_but_a_taken_name_is_refused(add):
    def mine(clues):
        """Nothing."""
    for _ in range(2):
        add(MASK_SOURCES, "mine", mine) if "mine" not in MASK_SOURCES else MASK_SOURCES.register("mine")(mine)
    assert MASK_SOURCES.about("mine").words == "Nothing."
    with pytest.raises(LarError, match="There is a mask source 'gaze' already.*masking.gaze"):
        MASK_SOURCES.register("gaze")(mine)
    with pytest.raises(LarError, match="did you mean 'gaze'"):
        MASK_SOURCES["gaz"]
