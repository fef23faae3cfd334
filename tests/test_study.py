"""A study's YAML: what it asks for, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from lar_core.measure.study import Study
from lar_core.run.config import CONDITIONS
from lar_core.run.errors import LarError
from lar_core.run.folder import Run, blind_twin

STUDIES = Path(__file__).parents[1] / "studies"


def load(tmp_path, text: str) -> Study:
    (tmp_path / "mine.yaml").write_text(text)
    return Study.load(tmp_path / "mine.yaml")


def test_every_condition_runs_with_every_seed_and_one_blind_control_each(tmp_path):
    study = load(tmp_path, "conditions: [action_only, gaze_mask]\nseeds: [3, 4]\nset: {samples: 80, execute: 4}\ntasks: [2]")
    assert study.name == "mine" and study.reference == "action_only" and study.arms == ("action_only", "gaze_mask", "blind")
    configs = study.configs()
    assert list(configs)[:2] == [("blind", 3), ("blind", 4)] and len(configs) == 6
    assert configs["blind", 3] == blind_twin(configs["gaze_mask", 3]) == blind_twin(configs["action_only", 3])
    profile = configs["gaze_mask", 4].profile
    assert (profile.samples, profile.execute, profile.tasks) == (80, 4, (2,)) and configs["gaze_mask", 4].seed == 4


def test_demonstrations_stand_at_the_first_placement(tmp_path):
    study = load(tmp_path, "conditions: [action_only]\nplacement: [wide, official]")
    assert study.placement == ("wide", "official") and study.configs()["blind", 0].profile.placement == "wide"


@pytest.mark.parametrize("text, words", [
    ("seeds: [0]", "names no conditions"),
    ("conditions: [atention_mask]", "did you mean 'attention_mask'"),
    ("conditions: [blind]", "at least one condition besides it"),
    ("conditions: attention_mask", "must be a list"),
    ("conditions: 5", "conditions is 5, but must be a list"),
    ("conditions: []", "must name something"),
    ("conditions: [gaze_mask, gaze_mask]", "nothing twice"),
    ("condition: [gaze_mask]", "did you mean 'conditions'"),
    ("conditions: [gaze_mask]\nreference: action_only", "Unknown reference 'action_only'"),
    ("conditions: [gaze_mask]\nseeds: 3", "seeds is 3, but must be a list"),
    ("conditions: [gaze_mask]\nseeds: [0, true]", "seeds[1] is True, but must be a valid integer"),
    ("conditions: [gaze_mask]\nprofile: tiney", "did you mean 'tiny'"),
    ("conditions: [gaze_mask]\nprofile: [tiny]", "profile is ['tiny']"),
    ("conditions: [gaze_mask]\nplacement: [offical]", "did you mean 'official'"),
    ("conditions: [gaze_mask]\nplacement: wide", "placement is 'wide', but must be a list"),
    ("conditions: [gaze_mask]\ntasks: [12]", "Unknown task '12'"),
    ("conditions: [gaze_mask]\nset: {sample: 3}", "did you mean 'samples'"),
    ("conditions: [gaze_mask]\nset: {seed: 3}", "seed stands under set"),
    ("conditions: [gaze_mask]\nset: [samples]", "set is ['samples'], but must be a valid dictionary"),
    ("conditions: [gaze_mask]\nset: {samples: many}", "must be a valid integer"),
    ("conditions: [gaze_mask]\nset: {lambda_recon: -1}", "lambda_recon is -1"),
    ("conditions: [gaze_mask]\nname: a/b", "name is 'a/b', but must match"),
    ("conditions: [gaze_mask", "is not YAML"),
    ("gaze_mask", "is not a study"),
])
def test_a_mistake_is_one_sentence(tmp_path, text, words):
    with pytest.raises(LarError) as caught:
        load(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_named():
    with pytest.raises(LarError, match="There is no nowhere.yaml"):
        Study.load("nowhere.yaml")


def test_the_example_studies_are_studies():
    assert Study.load(STUDIES / "micro.yaml").conditions == tuple(CONDITIONS)
    small = Study.load(STUDIES / "small.yaml")
    assert len(small.seeds) >= 3 and small.profile == "small" and small.placement == ("wide",)


def test_runs_share_the_blind_control_that_lies_beside_them(tmp_path):
    configs = load(tmp_path, "conditions: [action_only, gaze_mask]\nprofile: micro").configs()
    blind, action, gaze = (Run.open(config, tmp_path / config.name) for config in configs.values())
    assert action.control == gaze.control == blind.path and blind.control == blind.path / "control"


def test_a_blind_control_of_other_settings_is_not_shared(tmp_path):
    one, other = (load(tmp_path, f"conditions: [gaze_mask]\nset: {{samples: {n}}}").configs() for n in (64, 128))
    Run.open(one["blind", 0], tmp_path / one["blind", 0].name)
    run = Run.open(other["gaze_mask", 0], tmp_path / other["gaze_mask", 0].name)
    assert run.control == run.path / "control"
