"""The feature cache: the same losses as without it, whole or absent, and refused where it cannot be right."""

import errno
import shutil
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from test_demos import make_episode

from lar_core.data.dataset import Stats, load_split, make_dataset
from lar_core.data.demos import merge_episodes, write_episode
from lar_core.data.features import FeatureCache
from lar_core.model.policy import load_policy
from lar_core.model.train import train
from lar_core.run.config import make_config
from lar_core.run.errors import LarError
from lar_core.run.files import read_jsonl
from lar_core.run.folder import Run

TOP = {"top_layers": 1, "saliency_layers": 1, "samples": 40, "batch_size": 4, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def demos(tmp_path_factory):
    """Two tasks, whose instructions differ in length."""
    folder = tmp_path_factory.mktemp("demos")
    (folder / "task.bddl").write_text("(define)")
    files = []
    for task, sentence in enumerate(["pick up the black bowl on the ramekin and place it on the plate", "move it"]):
        parts = [folder / f"{task}-{seed}.hdf5" for seed in range(2)]
        for seed, part in enumerate(parts):
            episode = make_episode(steps=9, seed=10 * task + seed, size=64, wrist=32)
            episode.instruction = sentence
            write_episode(part, episode, bddl_file=folder / "task.bddl")
        merge_episodes(parts, folder / f"{task}.hdf5")
        files.append(folder / f"{task}.hdf5")
    return files


@pytest.fixture
def losses_of(tmp_path, demos):
    def train_and_read(name, condition="attention_mask", files=2, **changes):
        run = Run.open(make_config(condition, "micro", **{**TOP, **changes}), tmp_path / name)
        train(run, demos[:files], tmp_path / "data")
        return [(row["step"], row["action"], row["recon"]) for row in read_jsonl(run.metrics)]
    return train_and_read


@pytest.mark.parametrize("tune", ["lora_top", "full_top"])
def test_fp32_losses_are_the_same_to_the_last_bit(losses_of, tune):
    assert losses_of("cached", files=1, tune=tune, cache=True) == losses_of("plain", files=1, tune=tune)


@pytest.mark.parametrize("condition", ["bridge_head", "focus_head"])
def test_heads_that_read_every_layer_train_from_it_too(losses_of, condition):
    """What the vision tower gives is kept beside the states, and for the head that asks for it alone."""
    settings = {"condition": condition, "files": 1, "tune": "full_top"}
    assert losses_of("cached", cache=True, **settings) == losses_of("plain", **settings)


def test_the_vision_tower_is_kept_only_for_a_head_that_asks(losses_of, tmp_path):
    from safetensors.torch import load_file
    kept = []
    for condition in ("bridge_head", "focus_head"):
        losses_of(condition, condition, files=1, tune="full_top", cache=True)
        newest = max((tmp_path / "data").rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        kept.append(set(load_file(newest)))
    assert kept == [{"states", "wrist_tokens"}, {"states", "wrist_tokens", "vision"}]


def test_instructions_of_several_lengths_differ_in_rounding_only(losses_of):
    """SDPA adds up in another order when a shorter instruction is padded; the cache keeps it without padding."""
    cached, plain = losses_of("cached", tune="lora_top", cache=True), losses_of("plain", tune="lora_top")
    for one, other in zip(cached, plain):
        assert one == pytest.approx(other, rel=2e-6)


def test_int8_losses_are_the_same_to_fp16_rounding(losses_of):
    cached, plain = (losses_of(name, tune="full_top", precision="int8", cache=name == "cached")
                     for name in ("cached", "plain"))
    for one, other in zip(cached, plain):
        assert one == pytest.approx(other, rel=2e-3)
    assert cached != plain  # the cache is really read


def test_a_cached_policy_acts_with_all_of_its_layers(losses_of, tmp_path, batch):
    losses_of("run", tune="full_top", cache=True)
    policy, _ = load_policy(Run.load(tmp_path / "run"))
    assert policy.act(batch)[0].shape == (2, 8, 7)


def test_conditions_and_seeds_share_a_cache_and_precisions_do_not(losses_of, tmp_path):
    backbone = tmp_path / "backbone"
    losses_of("first", tune="full_top", cache=True)
    shutil.copytree(tmp_path / "first" / "backbone", backbone)
    def written():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "data").rglob("*.safetensors")}
    before = written()
    losses_of("other", "random_mask", tune="lora_top", cache=True, backbone=str(backbone))
    assert written() == before
    losses_of("int8", tune="full_top", cache=True, precision="int8", backbone=str(backbone))
    assert len(written()) == 2 * len(before)


def test_a_damaged_or_missing_file_is_computed_again(losses_of, tmp_path):
    whole = losses_of("whole", tune="full_top", cache=True)
    first, second = sorted((tmp_path / "data").rglob("*.safetensors"))[:2]
    good = first.read_bytes()
    first.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    second.unlink()
    assert losses_of("again", tune="full_top", cache=True) == whole
    assert first.read_bytes() == good and second.exists()


def test_two_that_fill_a_cache_at_once_compute_every_frame_once(demos, tmp_path):
    episodes, _ = load_split(demos[:1], 0.0, 0)
    config = make_config("attention_mask", "micro", **TOP)
    dataset, computed = make_dataset(episodes, Stats.of(episodes), config), []

    def look(batch):
        computed.append(len(batch["images"]))
        time.sleep(0.05)
        return {"states": torch.zeros(len(batch["images"]), 2, 3)}
    caches = [FeatureCache(tmp_path, {}, dataset, torch.float32) for _ in range(2)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda cache: cache.fill(look), caches))
    assert sum(computed) == len(dataset) + 1  # one frame more, which tells the size
    assert all(cache.batch([0, len(dataset) - 1])["states"].shape == (2, 2, 3) for cache in caches)
    caches[0].fill(lambda _: 1 / 0)


def test_too_little_space_is_said_before_anything_is_computed(losses_of, tmp_path, monkeypatch):
    monkeypatch.setattr("lar_core.run.files.shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**8))
    with pytest.raises(LarError, match=r"feature cache takes .* GB .*cache=false"):
        losses_of("run", tune="full_top", cache=True)
    assert not list((tmp_path / "data").rglob("*.safetensors"))


@pytest.mark.parametrize("changes, reason", [
    ({"mask_input": True}, "mask_input shows the frozen layers other words or pixels"),
    ({"shift": 4}, "shift moves the pixels"),
    ({"tune": "all"}, "trains all of them"), ({"tune": "lora_all"}, "trains all of them")])
def test_settings_that_change_what_the_frozen_layers_see_refuse_the_cache(changes, reason):
    with pytest.raises(LarError, match=reason):
        make_config("attention_mask", "micro", **{**TOP, "tune": "full_top", "cache": True, **changes})


def test_a_blind_policy_needs_no_disk_and_trains_as_without_a_cache(losses_of, tmp_path):
    cached, plain = (losses_of(name, "blind", files=1, tune="full_top", cache=name == "cached")
                     for name in ("cached", "plain"))
    assert cached == plain and not (tmp_path / "data" / "features").exists()


def test_a_deaf_policys_features_are_those_of_the_blank_sentence_and_lie_apart(losses_of, tmp_path):
    from safetensors.torch import load_file
    deaf, plain, hearing = (losses_of(name, "attention_mask", deaf=name != "hearing", tune="full_top", cache=name != "plain")
                            for name in ("deaf", "plain", "hearing"))
    assert deaf == plain != hearing
    tokens = {folder: {load_file(path)["states"].shape[1] for path in folder.glob("*.safetensors")}
              for folder in (tmp_path / "data" / "features").iterdir()}
    assert sorted(tokens.values(), key=len) == [{16 + 3}, {16 + 4, 16 + 16}]  # BOS, the full stop, newline; own sentences


def test_a_blind_and_deaf_policy_trains_as_without_a_cache(losses_of):
    cached, plain = (losses_of(name, "blind_deaf", tune="full_top", cache=name == "cached") for name in ("cached", "plain"))
    assert cached == plain


def test_files_hold_fp32_for_fp32_models_and_fp16_for_the_others(losses_of, tmp_path):
    from safetensors.torch import load_file
    losses_of("int8", tune="full_top", precision="int8", cache=True)
    features = load_file(next((tmp_path / "data").rglob("*.safetensors")))
    assert features["states"].dtype == torch.float16 and features["wrist_tokens"].shape[1] == 4


@pytest.mark.parametrize("number, words", [(errno.EACCES, "no permission"), (errno.EROFS, "read-only"),
                                           (errno.EIO, "failed")])
@pytest.mark.parametrize("place", ["write_json", "hashlib.file_digest"])
def test_a_cache_that_the_system_refuses_says_why_and_is_not_called_damaged(losses_of, monkeypatch, number, words, place):
    settings = {"files": 1, "tune": "full_top", "cache": True}
    if place == "hashlib.file_digest":
        losses_of("whole", **settings)
    def refuse(*_):
        raise OSError(number, "refused")
    monkeypatch.setattr(f"lar_core.data.features.{place}", refuse)
    with pytest.raises(LarError, match=words) as error:
        losses_of("run", **settings)
    assert "damaged" not in str(error.value) and "delete" not in str(error.value)
    assert ("--data-dir" in str(error.value)) == (place == "write_json")
