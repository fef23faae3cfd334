"""A policy for others: the same actions come back, and nothing but the policy leaves this machine."""

import json
import shutil

import pytest
import torch
from hub_stand_in import TOKEN
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from test_demos import make_episode

from lar_core import cli
from lar_core.data.demos import merge_episodes, write_episode
from lar_core.data.hub import load_manifest
from lar_core.measure.results import load_results
from lar_core.model.policy import load_policy, make_policy
from lar_core.model.tiny import build_tiny, prepare_backbone
from lar_core.model.train import train
from lar_core.run.config import make_config
from lar_core.run.errors import Damaged, LarError
from lar_core.run.folder import Run
from lar_core.share import FILES, REQUIRED, export, from_pretrained, push, upload
from lar_core.show.report import model_card

KEPT = "results/attention_mask-tiny-s0.json"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    (folder / "task.bddl").write_text("(define)")
    parts = [folder / f"{seed}.hdf5" for seed in range(4)]
    for seed, part in enumerate(parts):
        write_episode(part, make_episode(steps=12, seed=seed, size=64, wrist=32), bddl_file=folder / "task.bddl")
    merge_episodes(parts, folder / "demo.hdf5")
    run = Run.open(make_config(profile="micro", samples=64, batch_size=4, weight_decay=1e-5), folder / "run")
    train(run, [folder / "demo.hdf5"])
    return run


@pytest.fixture
def folder(run, tmp_path):
    return export(run, tmp_path / "policy")


def same(policy, other, batch):
    """Whether actions and saliency agree to the last bit."""
    return all(map(torch.equal, policy.act(batch), other.act(batch)))


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_an_exported_policy_acts_as_the_run_does_to_the_bit(run, folder, batch):
    policy, stats = from_pretrained(folder)
    trained, scales = load_policy(run)
    assert same(policy, trained, batch) and stats == scales
    assert not policy.training and policy.condition == run.config.condition
    assert not same(policy, make_policy(run.config, run.backbone).eval(), batch)


def test_the_folder_holds_the_policy_and_nothing_else(folder):
    assert names(folder) == sorted([*REQUIRED, "README.md"])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_frozen_weights_that_nobody_else_has_go_along(run, tmp_path, batch, precision):
    config = make_config(profile="micro", tune="lora_top", top_layers=1, saliency_layers=1, precision=precision)
    frozen = finished(config, tmp_path / "run", run)
    shared = export(frozen, tmp_path / "policy")
    assert names(shared) == sorted(FILES)
    assert same(from_pretrained(shared)[0], load_policy(frozen)[0], batch)


def test_weights_that_the_hub_has_are_named_and_not_copied(run, tmp_path, batch, hub, monkeypatch, backbone_folder):
    base = load_manifest()["paligemma-3b-pt-224"]
    hub.add(base.id, {path.name: path.read_bytes() for path in backbone_folder.iterdir()}, commit=base.revision,
            gated=True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    config = make_config(profile="micro", backbone=base.id, tune="full_top", top_layers=1, saliency_layers=1)
    shared = export(finished(config, tmp_path / "run", run), tmp_path / "policy")
    assert "backbone/model.safetensors" not in names(shared)
    assert json.loads((shared / "config.json").read_text())["base_model"] == {"id": base.id, "revision": base.revision}
    backbone = [name for name in load_file(shared / "model.safetensors") if name.startswith("backbone.")]
    assert backbone and all(".language_model.layers.2." in name or ".norm." in name for name in backbone)
    policy, _ = from_pretrained(shared)
    assert same(policy, load_policy(Run(tmp_path / "run", config))[0], batch)
    card = ModelCard.load(shared / "README.md")
    assert card.data.license == "gemma" and card.data.base_model == base.id


def finished(config, path, like):
    """A run with noise in the place of trained weights."""
    run = Run.open(config, path)
    shutil.copy(like.stats, run.stats)
    policy = make_policy(config, prepare_backbone(run))
    for weight in policy.trained().values():
        weight.data += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    run.final_checkpoint.mkdir(parents=True)
    policy.save(run.final_checkpoint / "model.safetensors")
    return run


def test_a_pushed_policy_comes_back_from_the_hub_to_the_bit(run, hub, batch, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    commit = push(run, "someone/bowls").rsplit("/", 1)[1]
    assert hub.repos["models/someone/bowls"].private
    policy, _ = from_pretrained("someone/bowls", revision=commit)
    assert same(policy, load_policy(run)[0], batch)
    assert 'from_pretrained("someone/bowls")' in hub.files("someone/bowls")["README.md"].decode()


def test_no_optimiser_state_token_or_local_path_is_uploaded(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    push(run, "someone/bowls")
    sent = b"".join(hub.received)
    weight = load_file(run.final_checkpoint / "model.safetensors")["head.queries"]
    assert bytes_of(weight) in sent  # so that the search would find what it looks for
    state = torch.load(run.final_checkpoint / "trainer.pt", weights_only=True)["optimiser"]["state"]
    moments = [moment[name] for moment in state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert len(moments) > 20 and not any(bytes_of(moment) in sent for moment in moments if moment.any())
    assert TOKEN.encode() not in sent and str(run.path.parent).encode() not in sent
    assert sorted(hub.files("someone/bowls")) == sorted([*REQUIRED, "README.md"])


def bytes_of(tensor):
    return tensor.contiguous().flatten()[:64].numpy().tobytes()


def test_a_file_that_is_not_on_the_list_stops_the_upload(run, folder, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    shutil.copy(run.final_checkpoint / "trainer.pt", folder)
    with pytest.raises(LarError, match="trainer.pt.*nothing was uploaded"):
        upload(folder, "someone/bowls")
    assert not hub.received


def test_push_without_a_token_says_how_to_get_one(run, hub):
    with pytest.raises(LarError, match="no Hugging Face token.*HF_TOKEN"):
        push(run, "someone/bowls")
    assert not hub.received


def test_a_token_that_may_not_write_is_named_but_never_shown(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(LarError, match="someone/bowls could not be uploaded.*may write") as caught:
        push(run, "someone/bowls")
    assert "hf_of_somebody_else" not in str(caught.value)


@pytest.mark.parametrize("name", REQUIRED[1:])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(LarError, match=f"{name} is missing"):
        from_pretrained(folder)


@pytest.mark.parametrize("name, sentence", [
    ("config.json", "holds no policy"), ("model.safetensors", "damaged or of another model"),
    ("stats.json", "does not hold action statistics"), ("backbone/config.json", "damaged"),
    ("backbone/tokenizer.json", "damaged")])
def test_a_damaged_file_is_named(folder, name, sentence):
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(LarError, match=sentence):
        from_pretrained(folder)


def test_weights_of_another_condition_are_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["condition"] |= {"mask_source": "none", "reconstructor": "none"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(LarError, match="of another model"):
        from_pretrained(folder)


def test_another_backbone_beside_the_weights_is_refused_as_what_it_is(run, tmp_path):
    config = make_config(profile="micro", tune="lora_top", top_layers=1, saliency_layers=1)
    shared = export(finished(config, tmp_path / "run", run), tmp_path / "policy")
    build_tiny(config.profile, tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / "model.safetensors", shared / "backbone")
    with pytest.raises(LarError, match="trained on a backbone with other weights") as caught:
        from_pretrained(shared)
    assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("stage", ["read_config", "read_processor"])
def test_a_folder_that_cannot_be_read_is_not_called_damaged(folder, monkeypatch, stage):
    def fail(*_):
        raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(f"lar_core.share.{stage}", fail)
    with pytest.raises(LarError, match="could not be read .*Permission denied.*nothing there has to be deleted"):
        from_pretrained(folder)


def test_another_revision_of_the_backbone_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"base_model": {"id": "a/b", "revision": "0" * 40}}))
    with pytest.raises(LarError, match="use the version that made it"):
        from_pretrained(folder)


def test_foreign_folders_are_refused_with_the_command_that_makes_a_policy(run, backbone_folder, tmp_path):
    for foreign in (run.path, backbone_folder, tmp_path):
        with pytest.raises(LarError, match="holds no policy.*lar push --to"):
            from_pretrained(foreign)


@pytest.mark.parametrize("source", ["no/such_model", "no such folder", "/no/such/folder"])
def test_a_source_that_is_nowhere_says_what_it_could_be(hub, source):
    with pytest.raises(LarError, match="neither a folder here nor a model on the hub"):
        from_pretrained(source)


def test_an_unknown_revision_is_named(hub):
    hub.add("someone/bowls", {"README.md": b""})
    with pytest.raises(LarError, match="someone/bowls has no revision 'v2'"):
        from_pretrained("someone/bowls", revision="v2")


def test_no_network_is_named(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LarError, match="could not be downloaded.*connection"):
        from_pretrained("someone/bowls")


def test_export_refuses_a_run_without_training_and_a_folder_with_something_in_it(run, tmp_path):
    with pytest.raises(LarError, match="no finished training"):
        export(Run.open(make_config(profile="micro"), tmp_path / "run"), tmp_path / "policy")
    with pytest.raises(LarError, match="is not empty"):
        export(run, tmp_path)


def test_a_backbone_that_only_this_machine_has_cannot_be_shared(run, tmp_path, backbone_folder):
    local = finished(make_config(profile="micro", backbone=str(backbone_folder)), tmp_path / "run", run)
    with pytest.raises(LarError, match="Unknown backbone of a policy for others"):
        export(local, tmp_path / "policy")


def test_the_card_puts_the_blind_control_beside_the_success():
    config = make_config("attention_mask", "tiny")
    results = load_results(KEPT)
    card = ModelCard(model_card(config, None, results, [], "someone/bowls"))
    assert card.data.license == "mit" and card.data.base_model is None and "libero" in card.data.tags
    counts = {row["policy"]: f"{row['successes']}/{row['episodes']}" for row in results["rollouts"]
              if (row["instruction"], row["task"]) == ("right", None)}
    assert "blind control" in card.text and counts["blind"] in card.text and counts["attention_mask"] in card.text
    assert f"the control that cannot see solved {counts['blind'].replace('/', ' of ')} rollouts" in card.text
    assert "Times: Intel(R) Xeon(R) Processor" in card.text  # no time without its machine
    assert "Stand-in assets" in card.text
    assert "None" not in card.text and "{" not in card.text


def test_the_card_of_a_policy_on_the_shipped_backbone_says_what_that_has_seen():
    config = make_config("attention_mask", "tiny", backbone="tabletop")
    card = ModelCard(model_card(config, None, None, [], "someone/bowls"))
    assert "with positions from the simulator" in card.text and "from scratch" not in card.text


def test_a_card_without_the_blind_control_says_that_success_means_nothing_yet():
    results = load_results(KEPT)
    results["rollouts"] = [row for row in results["rollouts"] if row["policy"] != "blind"]
    assert "without its blind control this says nothing" in model_card(make_config(), None, results, [], "a/b")


def test_a_card_names_official_demonstrations():
    card = ModelCard(model_card(make_config(demos="official"), None, None, [], "a/b"))
    assert card.data.datasets == ["yifengzhu-hf/LIBERO-datasets"]


def test_the_hub_knows_the_licence_of_every_backbone():
    for base in load_manifest().values():
        if base.kind == "weights":
            config = make_config(backbone=base.id)
            assert ModelCard(model_card(config, base, None, [], "a/b")).data.license == "gemma"


def test_the_command_line_exports_pushes_and_asks_where_to(run, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert cli.main(["push", "--to", str(tmp_path / "policy"), "--run-dir", str(run.path)]) == 0
    assert (tmp_path / "policy" / "README.md").exists()
    assert cli.main(["push", "someone/bowls", "--public", "--run-dir", str(run.path)]) == 0
    assert not hub.repos["models/someone/bowls"].private
    assert cli.main(["push", "--run-dir", str(run.path)]) == 2
    assert "OWNER/NAME" in capsys.readouterr().err
