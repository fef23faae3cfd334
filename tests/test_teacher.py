"""The teacher is the moving average of its student, looks with its own weights, and outlives a stop."""

import shutil

import torch
from safetensors.torch import load_file
from test_train import demos, new_run  # noqa: F401  (fixtures)

from lar_core.draws import Draws
from lar_core.model.teacher import Teacher
from lar_core.run import Run
from lar_core.train import train


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
    mask = policy.reconstruct(batch, policy.encode(batch), Draws(0)).mask
    assert torch.equal(mask, other.reconstruct(batch, other.encode(batch), Draws(0)).mask)
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
