"""Every condition trains and acts; the blind control is blind; switches switch.

The teacher is the moving average of its student, looks with its own weights, and outlives a stop.
"""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_train import demos, new_run  # noqa: F401  (fixtures)

from lar_core.model.backbone import Backbone
from lar_core.model.losses import decode, to_bins
from lar_core.model.policy import Teacher, make_policy
from lar_core.model.tiny import build_tiny
from lar_core.model.train import train
from lar_core.run.config import CONDITIONS, PROFILES, make_config
from lar_core.run.errors import Damaged, LarError
from lar_core.run.folder import Run
from lar_core.run.runtime import Draws


@pytest.mark.parametrize("condition", CONDITIONS)
def test_every_condition_gives_finite_losses_and_gradients(policy_of, batch, condition):
    policy = policy_of(condition)
    losses = policy(batch, Draws(0))
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
    assert all(p.grad.abs().sum() > 0 for name, p in policy.head.named_parameters() if "blocks" not in name)
    if policy.decoder is not None:
        assert any(p.grad.abs().sum() > 0 for p in policy.decoder.parameters() if p.grad is not None)


def test_act_gives_a_chunk_in_range_and_saliency(policy_of, batch):
    actions, saliency = policy_of().act(batch)
    assert actions.shape == (2, 8, 7) and actions.abs().max() <= 1
    assert saliency.shape == (2, 16) and torch.allclose(saliency.sum(1), torch.ones(2))


def test_a_blind_policy_does_not_see(policy_of, batch):
    other = {**batch, "images": 255 - batch["images"], "wrist": 255 - batch["wrist"]}
    blind, seeing = policy_of("blind"), policy_of("action_only")
    assert torch.equal(blind.act(batch)[0], blind.act(other)[0])
    assert not torch.equal(seeing.act(batch)[0], seeing.act(other)[0])


def test_a_deaf_policy_does_not_hear(policy_of, batch):
    other = {**batch, "instructions": ["pick up the black bowl on the stove and place it on the plate", "stop"]}
    deaf, hearing = policy_of("deaf"), policy_of("action_only")
    assert torch.equal(deaf.act(batch)[0], deaf.act(other)[0]) and torch.equal(deaf.act(batch)[1], deaf.act(other)[1])
    assert not torch.equal(hearing.act(batch)[0], hearing.act(other)[0])
    masked = policy_of(deaf=True, consistency=1.0)  # and learns nothing of it
    assert all(torch.equal(value, masked(other, Draws(0))[name]) for name, value in masked(batch, Draws(0)).items())


def test_a_blind_and_deaf_policy_feels_its_own_state_alone(policy_of, batch):
    policy = policy_of("blind_deaf")
    other = {**batch, "images": 255 - batch["images"], "wrist": 255 - batch["wrist"], "instructions": ["stop", "go on"]}
    assert torch.equal(policy.act(batch)[0], policy.act(other)[0])
    assert not torch.equal(policy.act(batch)[0], policy.act({**other, "proprio": batch["proprio"] + 1})[0])


def test_guidance_counts_what_the_sentence_changes_in_log_probability_more_than_once(policy_of, batch):
    policy, guided = policy_of("action_only"), policy_of("guided_actions", guidance=3.0)
    own, blank = (policy.head(policy.encode(told)).log_softmax(-1).detach().numpy()
                  for told in (batch, batch | {"instructions": ["."] * 2}))
    pushed = np.exp(blank + (1 + 3) * (own - blank))
    median = (np.cumsum(pushed / pushed.sum(-1, keepdims=True), -1) < 0.5).sum(-1)
    actions, saliency = guided.act(batch)
    assert np.array_equal(to_bins(actions)[..., :6], median[..., :6]) and torch.equal(saliency, policy.act(batch)[1])
    assert not torch.equal(actions, policy.act(batch)[0])


@pytest.mark.parametrize("head", [{}, {"head": "bridge", "action_loss": "l1"}])
def test_guidance_changes_nothing_where_it_is_0_or_words_are_ignored(policy_of, batch, head):
    plain, on = (policy_of("action_only", guidance=weight, **head).eval() for weight in (0.0, 2.0))
    answer, told = plain.head(plain.encode(batch)), batch | {"instructions": ["."] * 2}
    assert torch.equal(plain.guide(batch, answer), answer) and torch.equal(plain.head.decode(answer), plain.act(batch)[0])
    assert torch.equal(plain.act(told)[0], on.act(told)[0]) and not torch.equal(plain.act(batch)[0], on.act(batch)[0])


def test_action_only_passes_through_the_backbone_once_and_guidance_once_more_in_acting(policy_of, batch, monkeypatch):
    upper, calls = Backbone.upper, []
    monkeypatch.setattr(Backbone, "upper", lambda *words, **options: calls.append(1) or upper(*words, **options))
    counts = []
    for condition in ("action_only", "guided_actions"):
        for work in (policy_of(condition).forward, policy_of(condition).act):
            work(batch), counts.append(len(calls)), calls.clear()
    assert counts == [1, 1, 1, 2]


@pytest.mark.parametrize("key, change", [("wrist", {"wrist_size": 0}), ("proprio", {"proprio": False})])
def test_wrist_and_proprioception_are_switches(policy_of, batch, key, change):
    other = {**batch, key: batch[key].flip(0)}
    on, off = policy_of("action_only"), policy_of("action_only", **change)
    assert not torch.equal(on.act(batch)[0], on.act(other)[0])
    without = {name: value for name, value in batch.items() if name != "wrist" or key != "wrist"}
    assert off.act(without)[0].shape == (2, 8, 7)
    if key == "proprio":
        assert torch.equal(off.act(batch)[0], off.act(other)[0])


def test_chunk_of_one_is_the_literal_setting(policy_of, batch):
    assert policy_of(chunk=1, execute=1).act(batch)[0].shape == (2, 1, 7)


def test_tokens_written_one_by_one_are_those_that_one_pass_over_them_gives(policy_of, batch):
    """The autoregressive head with its cache of keys and values against itself without one, under padding."""
    policy = policy_of(head="autoregressive")
    actions, saliency = policy.act(batch)
    encoding = policy.encode({**batch, "actions": actions})
    assert torch.equal(decode(policy.head(encoding)), actions)
    assert torch.allclose(saliency, encoding.saliency, atol=1e-6)


def test_an_autoregressive_token_sees_only_what_was_written_before_it(policy_of, batch):
    policy = policy_of(head="autoregressive")
    other = batch["actions"].clone()
    other[:, 3, 2:] *= -1
    one, changed = (policy.head(policy.encode({**batch, "actions": actions})).flatten(1, 2)
                    for actions in (batch["actions"], other))
    assert torch.equal(one[:, : 3 * 7 + 3], changed[:, : 3 * 7 + 3])
    assert not torch.allclose(one[:, 3 * 7 + 3], changed[:, 3 * 7 + 3])


def test_the_autoregressive_loss_is_the_mean_surprise_at_each_token_given_those_before_it(policy_of, batch):
    """One pass over the whole chunk against the chain rule: the sequence fed in piece by piece, binned by numpy."""
    policy = policy_of("autoregressive_head")
    bins = (np.digitize(batch["actions"], np.linspace(-1, 1, 257)) - 1).reshape(2, 56)
    surprise = np.zeros((2, 56))
    for number in range(56):
        known = np.where(np.arange(56) < number, bins, 0)  # what comes after is not known
        actions = torch.tensor((known + 0.5) / 128 - 1, dtype=torch.float32).reshape(2, 8, 7)
        logits = policy.head(policy.encode(batch | {"actions": actions}, saliency=False)).flatten(1, 2)[:, number]
        surprise[:, number] = -logits.log_softmax(-1)[range(2), bins[:, number]].detach()
    valid = ~batch["action_pad"].repeat_interleave(7, dim=1).numpy()
    assert float(policy(batch)["action"].detach()) == pytest.approx(surprise[valid].mean(), rel=1e-5)


def test_policies_of_one_seed_start_from_the_same_head_whatever_the_condition(policy_of):
    assert torch.equal(policy_of("action_only").head.queries, policy_of("attention_mask").head.queries)


def test_saved_weights_come_back(policy_of, batch, tmp_path):
    policy, other = policy_of("attention_mask"), policy_of("attention_mask", )
    with torch.no_grad():
        policy.head.queries += 1
    policy.save(tmp_path / "model.safetensors")
    other.load(tmp_path / "model.safetensors")
    assert torch.equal(policy.act(batch)[0], other.act(batch)[0])


def test_a_damaged_checkpoint_is_named(policy_of, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"not safetensors")
    with pytest.raises(LarError, match="damaged"):
        policy_of().load(path)


def test_weights_of_another_model_are_refused(policy_of, tmp_path):
    policy_of("action_only").save(tmp_path / "model.safetensors")
    with pytest.raises(LarError, match="another model"):
        policy_of("attention_mask").load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("changes", [{}, {"tune": "lora_top", "top_layers": 1, "saliency_layers": 1}])
def test_a_policy_refuses_other_backbone_weights_than_it_was_trained_on(policy_of, tmp_path, changes):
    build_tiny(PROFILES["micro"], tmp_path / "other", seed=1)
    path = tmp_path / "model.safetensors"
    policy_of(**changes).save(path)
    policy_of("attention_mask", **changes | ({"precision": "bf16"} if changes else {})).load(path)  # the same weights
    with pytest.raises(LarError, match="trained on a backbone with other weights .*give it the backbone") as caught:
        make_policy(make_config("attention_mask", "micro", **changes), tmp_path / "other").load(path)
    assert not isinstance(caught.value, Damaged) and "delete its" not in str(caught.value)


def test_a_policy_from_before_identities_were_remembered_still_loads(policy_of, tmp_path):
    path, policy = tmp_path / "model.safetensors", policy_of()
    policy.save(path)
    save_file(load_file(path), path)
    policy_of().load(path)


def test_a_checkpoint_with_nan_is_damaged(policy_of, tmp_path):
    path, policy = tmp_path / "model.safetensors", policy_of()
    policy.head.queries.data[0] = float("nan")
    policy.save(path)
    with pytest.raises(Damaged, match="head.queries holds NaN or infinity"):
        policy_of().load(path)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file"),
                                   OSError(5, "Input/output error"), torch.OutOfMemoryError("out of memory")])
def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(policy_of, tmp_path, monkeypatch, error):
    def fail(*_):
        raise error
    monkeypatch.setattr("lar_core.model.policy.check_trained_on", fail)
    with pytest.raises(LarError, match="could not be read") as caught:
        policy_of().load(tmp_path / "model.safetensors")
    assert not isinstance(caught.value, Damaged)


def test_gaze_without_segmentation_is_refused(policy_of, batch):
    batch.pop("regions")
    with pytest.raises(LarError, match="segmentation"):
        policy_of("gaze_mask")(batch)


# --- who is asked where to look --------------------------------------------------------------------------------------

@pytest.mark.parametrize("condition, rows", [("attention_mask", 16), ("bos_attention_mask", 1),
                                             ("action_attention_mask", 8)])
def test_the_condition_names_the_rows_that_masks_acting_and_teacher_read(policy_of, batch, condition, rows):
    policy = policy_of(condition).eval()
    encoding = policy.encode(batch)
    mean = encoding.attention.mean(dim=(1, 2)) * encoding.asked[:, :, None]  # (B, R, P)
    wanted = mean.sum(dim=1) / mean.sum(dim=(1, 2))[:, None]
    assert encoding.asked.shape == (2, rows)
    for saliency in (encoding.saliency, policy.act(batch)[1], Teacher(policy).saliency(policy, batch)):
        torch.testing.assert_close(saliency, wanted)
    policy.choose_heads([batch])


@pytest.mark.parametrize("rows", ["bos", "action"])
def test_a_regulariser_teaches_the_rows_that_are_asked(policy_of, batch, rows):
    policy = policy_of(saliency_rows=rows, sparsity=1.0)
    policy(batch, Draws(0))["sparsity"].backward()
    grad = policy.head.queries.grad
    assert (grad is not None and bool(grad.abs().sum() > 0)) == (rows == "action")


def test_where_there_is_no_bos_it_is_not_asked(policy_of, batch, monkeypatch):
    tokenizer = type(policy_of().backbone.processor.tokenizer)
    monkeypatch.setattr(tokenizer, "bos_token", None, raising=False)
    with pytest.raises(LarError, match="tokenizer has no such token: choose text or action"):
        policy_of("bos_attention_mask")


# --- the teacher -----------------------------------------------------------------------------------------------------

def weight(policy):
    return policy.backbone.vlm.model.language_model.layers[-1].mlp.up_proj.weight


def test_it_is_the_exponential_moving_average_of_its_student(policy_of):
    policy = policy_of("teacher_mask")
    teacher, by_hand = Teacher(policy, decay=0.9), weight(policy).detach().clone()
    for step in range(5):
        with torch.no_grad():
            weight(policy).add_(step + 1.0)
        teacher.follow(policy)
        by_hand = 0.9 * by_hand + 0.1 * weight(policy).detach()
    name = next(name for name, tensor in policy.trained().items() if tensor is weight(policy))
    assert torch.allclose(teacher.weights[name], by_hand, atol=1e-5)


def test_it_looks_with_its_own_weights_and_leaves_the_students_alone(policy_of, batch):
    policy, other = policy_of("teacher_mask"), policy_of("teacher_mask")
    with torch.no_grad():
        for tensor in other.trained().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    before = {name: tensor.clone() for name, tensor in policy.trained().items()}
    seen = Teacher(other).saliency(policy, batch)
    assert torch.equal(seen, other.encode(batch).saliency) and not torch.equal(seen, policy.encode(batch).saliency)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.trained().items())


def test_the_mask_is_what_the_teacher_looks_at_and_gradients_still_reach_the_student(policy_of, batch):
    policy, other = policy_of("teacher_mask"), policy_of("teacher_mask")
    with torch.no_grad():
        for tensor in other.trained().values():
            tensor.add_(0.1 * torch.randn_like(tensor))
    policy.teacher = Teacher(other)
    mask = policy.mask(batch, policy.saliency(batch, policy.encode(batch)), Draws(0))
    assert torch.equal(mask, other.mask(batch, other.encode(batch).saliency, Draws(0)))
    policy(batch, Draws(0))["recon"].backward()
    assert weight(policy).grad.abs().sum() > 0


def test_a_stopped_training_goes_on_with_the_same_teacher(new_run, demos):  # noqa: F811
    whole = new_run("whole", condition="teacher_mask")
    train(whole, [demos])
    shutil.copytree(whole.path, whole.path.with_name("stopped"))
    stopped = Run.load(whole.path.with_name("stopped"))
    shutil.rmtree(stopped.final_checkpoint)
    train(stopped, [demos])
    one, other = (torch.load(run.final_checkpoint / "trainer.pt", weights_only=True)["teacher"]
                  for run in (whole, stopped))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert any(not torch.equal(one[name], tensor) for name, tensor in _trained(whole).items() if name in one)
    assert _trained(whole).keys() == _trained(stopped).keys()
    assert all(torch.equal(tensor, _trained(stopped)[name]) for name, tensor in _trained(whole).items())


def _trained(run):
    return load_file(run.final_checkpoint / "model.safetensors")


def test_other_conditions_have_no_teacher(new_run, demos):  # noqa: F811
    run = new_run("run", samples=8)
    train(run, [demos])
    assert "teacher" not in torch.load(run.final_checkpoint / "trainer.pt", weights_only=True)
