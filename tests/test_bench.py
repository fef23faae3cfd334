"""LIBERO's own scene and demonstrations where they can be had, else the embedded ones: decided once, and said."""

from __future__ import annotations

import shutil

import pytest

from lar_core import cli, notebook, options, steps, studies
from lar_core.data import hub as downloading
from lar_core.data.hub import entry
from lar_core.measure import study as comparing
from lar_core.measure.results import Result, bars, differences
from lar_core.measure.study import Study
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.folder import Run, blind_twin
from lar_core.scene import bench, setup
from lar_core.scene.bench import settled
from lar_core.scene.demonstrations import demonstrations
from lar_core.scene.episode import EpisodeEnv, kinds_of
from lar_core.scene.setup import BOWL, STANDIN, needed_files, task_names


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    """No assets but the stand-in pack, and a work folder of its own."""
    monkeypatch.delenv("LAR_LIBERO_ASSETS")
    monkeypatch.setattr(setup, "_hub_copy", lambda: tmp_path / "none")
    monkeypatch.setattr(setup, "cache_base", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def at_the_hub(hub, monkeypatch, nothing_here):
    """The ten tasks' assets (here the stand-in pack's) and the demonstrations of tasks 2, 5 and 8, beside others."""
    listed = {"files": tuple(needed_files(STANDIN))}
    monkeypatch.setattr(downloading, "entry",
                        lambda key: entry(key).replace(sha256=None, **listed if "assets" in key else {}))
    assets, demos = entry("libero-assets"), entry("libero-spatial-demonstrations")
    hub.add(assets.id, {name: (STANDIN / name).read_bytes() for name in listed["files"]} | {"other.png": b"x"},
            commit=assets.revision)
    hub.add(demos.id, {f"libero_spatial/{task_names()[task]}_demo.hdf5": b"HDF" for task in (2, 5, 8)},
            repo_type="dataset", commit=demos.revision)
    return hub


def test_the_manifest_lists_what_the_ten_tasks_load_and_no_more():
    assets = entry("libero-assets")
    assert {*setup.MODELS, *setup.TEXTURES} <= {*assets.files} and len(assets.files) == 31
    assert {*assets.sha256} < {*assets.files} and len(assets.sha256) == 28


def test_with_a_network_it_is_the_benchmark_with_only_the_files_that_are_needed(at_the_hub, tmp_path):
    profile = settled(make_config(profile="t4")).profile
    assert (profile.bench, profile.demos, profile.render_demos) == ("libero", "official", True)
    assert (profile.placement, profile.episodes_per_task, profile.max_steps) == ("official", 50, 220)
    fetched = {str(path.relative_to(tmp_path / "cache/libero-assets")) for path in (tmp_path / "cache").rglob("*.*")}
    assert {*needed_files(STANDIN)} <= fetched and "other.png" not in fetched
    assert not [line for line in at_the_hub.log if "/resolve/" in line and "hdf5" in line]  # asked for, not fetched yet


@pytest.mark.parametrize("why", ["network", "disk", "a file", "stand-in", "placement"])
def test_without_it_is_the_embedded_scene_and_one_sentence_says_why(at_the_hub, monkeypatch, capsys, why):
    changes = {"placement": "near"} if why == "placement" else {"tasks": (0,)} if why == "a file" else {}
    if why == "network":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    elif why == "disk":
        monkeypatch.setattr(downloading, "require_space", lambda *_: (_ for _ in ()).throw(LarError("The disk is full.")))
    elif why == "stand-in":
        monkeypatch.setenv("LAR_LIBERO_ASSETS", "standin")
    profile = settled(make_config(profile="t4", **changes)).profile
    assert (profile.bench, profile.demos, profile.render_demos) == ("embedded", "expert", False)
    said = capsys.readouterr().out
    assert said.startswith("bench=embedded, which a run keeps: the stand-in") and said.count("\n") == 1


def test_a_run_that_was_begun_does_not_change_its_mind(nothing_here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(bench, "_check_at_hand", lambda *_: None)
    begun = Run.open(settled(make_config(profile="t4"), tmp_path / "run"), tmp_path / "run")
    monkeypatch.setattr(bench, "_check_at_hand", lambda *_: (_ for _ in ()).throw(LarError("No network.")))
    assert settled(make_config(profile="t4"), tmp_path / "run") == begun.config
    other = settled(make_config(profile="t4"), tmp_path / "other")
    monkeypatch.setattr(bench, "_check_at_hand", lambda *_: None)
    assert settled(make_config(profile="t4"), Run.open(other, tmp_path / "other").path).profile.bench == "embedded"
    assert capsys.readouterr().out.count("No network.") == 1


@pytest.mark.parametrize("door", ["command", "notebook"])
def test_every_door_decides_and_writes_it_into_the_run_folder(tmp_path, monkeypatch, door):
    monkeypatch.setenv("LAR_WORK", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = ["train", "--profile", "t4", "--run-dir", "runs/attention_mask-t4-s0"]
    if door == "command":
        cli._run_of(options.build_parser().parse_args(words))
    else:
        notebook.open_run("attention_mask", "t4")
    assert Run.load(tmp_path / "runs/attention_mask-t4-s0").config.profile.bench == "embedded"


def test_libero_with_the_stand_in_pack_is_a_contradiction():
    with pytest.raises(LarError, match="LAR_LIBERO_ASSETS is standin: unset it"):
        setup.resolve_assets("official")


def test_it_can_be_forced_either_way_and_small_profiles_are_embedded():
    assert settled(make_config(profile="t4", bench="embedded")).profile.demos == "expert"
    assert settled(make_config(profile="micro", bench="libero")).profile.demos == "official"
    kept = settled(make_config(profile="micro", bench="libero", demos="lerobot")).profile
    assert (kept.demos, kept.render_demos) == ("lerobot", False)
    assert {make_config(profile=name).profile.bench for name in ("micro", "tiny", "small")} == {"embedded"}
    assert settled(make_config(profile="t4", bench="libero", demos_conventions="gripper=1/0")).profile.demos_conventions
    with pytest.raises(LarError, match="bench=libero means LIBERO's own placements"):
        make_config(profile="tiny", bench="libero")


def test_what_was_not_decided_records_nothing(tmp_path):
    with pytest.raises(LarError, match="bench is auto, which is decided where a run begins"):
        demonstrations(make_config(profile="micro", bench="auto"), tmp_path)


def test_its_rollouts_are_built_from_the_official_assets_that_are_here(nothing_here, tmp_path, monkeypatch):
    shutil.copytree(STANDIN, tmp_path / "cache/libero-assets")
    bowl = tmp_path / "cache/libero-assets" / BOWL
    bowl.write_text(bowl.read_text() + "\n")
    made = EpisodeEnv(5, "official", make_config(profile="micro", bench="libero").profile)
    assert made.record["assets"]["name"] == "official" and len(made.scenes) == 50
    made.close()


def test_a_policy_of_liberos_own_scene_also_acts_where_it_must_see_and_where_it_must_listen(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(steps, "load_policy", lambda run, _: (run, None))
    monkeypatch.setattr(steps, "roll_out", lambda run, policy, stats, *, instructions, placement, workers: asked.append(
        (run.config.condition.name, placement, instructions)))
    run = Run.open(make_config(profile="micro", bench="libero", demos="official", tasks=(0, 5)), tmp_path / "run")
    control = Run.open(blind_twin(run.config), run.control)
    control.final_checkpoint.mkdir(parents=True)
    steps.roll_out_policy(run)
    every = kinds_of((0, 5))
    assert asked == [("attention_mask", None, every), ("attention_mask", "wide", ("right",)),
                     ("attention_mask", "counterfactual", ("right",)), ("blind", None, ("right",)),
                     ("blind", "wide", ("right",)), ("blind", "counterfactual", ("right",))]
    asked.clear()
    steps.roll_out_policy(run, every)  # what is named, and no more
    assert [placement for _, placement, _ in asked] == [None, None]
    assert bench.elsewhere(make_config(profile="micro", bench="libero", tasks=(0,)).profile) == ["wide"]
    assert bench.elsewhere(make_config(profile="tiny").profile) == []


# --- never in one row, never in one comparison ------------------------------------------------------------------------

def result(name: str, bench: str) -> Result:
    episode = {"policy": name, "instruction": "right", "placement": "official", "task": 5, "episode": 0, "init_seed": 0,
               "success": True}
    pooled = episode | {"task": None, "successes": 1, "episodes": 1, "low": 0.0, "high": 1.0}
    return Result(name, {"run": {"condition": name, "profile": "t4", "config": {"profile": {"bench": bench}}},
                         "rollouts": [pooled], "provenance": {"assets": None, "commit": ""}}, (episode,))


def test_runs_of_two_benches_are_not_paired_and_stand_in_two_groups():
    two = [result("random_mask", "libero"), result("gaze_mask", "embedded")]
    assert "are not compared. One acted in LIBERO's own scene" in differences(two)[0]
    assert "are not compared" not in differences([two[0], result("gaze_mask", "libero")])[0]
    assert {group for group, *_ in bars(two)} == {"official placements, t4", "official placements, t4, LIBERO's own scene"}


def test_a_study_of_two_benches_is_refused_with_the_reason():
    with pytest.raises(LarError, match="two benches. One acted in LIBERO's own scene"):
        comparing._provenance(Study(name="s", conditions=("action_only",)),
                              {"a": {0: result("a", "libero")}, "b": {0: result("b", "embedded")}})


def test_a_study_decides_once_for_all_its_runs(nothing_here, tmp_path, monkeypatch):
    answers = iter([None])  # the network is gone after the first question
    monkeypatch.setattr(bench, "_check_at_hand", lambda *_: next(answers))
    configs = studies._configs(Study(name="a", profile="t4", conditions=("action_only", "gaze_mask")), tmp_path, tmp_path)
    assert {config.profile.bench for config in configs.values()} == {"libero"} and len(configs) == 3
