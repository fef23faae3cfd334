"""Heads that read every layer: what they are given is what transformers gives, and nobody else pays for it."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from lar_core.draws import Draws
from lar_core.model.layerwise import QUERIES

BOTH = pytest.mark.parametrize("condition", ["bridge_head", "focus_head"])


@pytest.fixture
def official(backbone_folder, batch):
    """transformers' own forward pass over the prefix, with every hidden state."""
    processor = AutoProcessor.from_pretrained(backbone_folder)
    model = PaliGemmaForConditionalGeneration.from_pretrained(backbone_folder, dtype=torch.float32)
    inputs = processor(images=list(batch["images"]), text=["<image>" + s for s in batch["instructions"]],
                       return_tensors="pt", padding=True)
    inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])  # all of it is prefix
    outputs = model.model(**inputs, output_hidden_states=True)
    tower = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state
    return outputs.hidden_states, tower


def test_layers_and_vision_are_transformers_hidden_states(policy_of, batch, official):
    hidden_states, tower = official
    encoding = policy_of("focus_head").encode(batch)
    patches = encoding.patches.shape[1]
    assert len(encoding.layers) == len(hidden_states) - 1  # without the embeddings
    for ours, theirs in zip(encoding.layers, hidden_states[1:]):
        assert torch.allclose(ours[:, :patches], theirs[:, :patches], atol=1e-4)
    assert torch.allclose(encoding.vision[:, :patches], tower, atol=1e-5)
    assert encoding.vision.shape[1] == patches + 4  # and the wrist camera's


def test_no_other_head_is_given_them(policy_of, batch):
    encoding = policy_of("action_only").encode(batch)
    assert encoding.layers is None and encoding.vision is None
    assert policy_of("bridge_head").encode(batch).vision is None


@BOTH
@pytest.mark.parametrize("changes", [{}, {"wrist_size": 0}, {"proprio": False}, {"action_loss": "cross_entropy"},
                                     {"tune": "full_top", "top_layers": 1, "saliency_layers": 1},
                                     {"tune": "lora_top", "top_layers": 2, "saliency_layers": 1}])
def test_every_weight_of_the_head_learns(policy_of, batch, condition, changes):
    policy = policy_of(condition, **changes)
    batch = {name: value for name, value in batch.items() if name != "wrist" or changes.get("wrist_size", 1)}
    policy(batch, Draws(0))["loss"].backward()
    assert all(weight.grad is not None for weight in policy.trained().values())
    assert len(policy.head.blocks) == changes.get("top_layers", policy.backbone.layers)
    assert policy.head.queries.grad.shape[0] == QUERIES and policy.head.queries.grad.abs().sum() > 0


@BOTH
def test_the_loss_is_torchs_l1_over_steps_that_are_not_padding(policy_of, batch, condition):
    policy = policy_of(condition)
    answer = policy.head(policy.encode(batch))
    valid = ~batch["action_pad"]
    expected = torch.nn.functional.l1_loss(answer[valid], batch["actions"][valid])
    assert torch.allclose(policy(batch)["action"], expected)


@BOTH
def test_what_acts_is_what_was_trained(policy_of, batch, condition):
    policy = policy_of(condition).eval()
    actions, saliency = policy.act(batch)
    answer = policy.head(policy.encode(batch))
    assert torch.allclose(actions[..., :6], answer[..., :6].clamp(-1, 1), atol=1e-6)
    assert torch.equal(actions[..., 6], answer[..., 6].sign())
    assert torch.allclose(saliency.sum(dim=1), torch.ones(2))


@BOTH
def test_the_steps_of_a_chunk_are_told_apart(policy_of, batch, condition):
    answer = policy_of(condition).head(policy_of(condition).encode(batch))
    assert (answer[:, 0] - answer[:, 1]).abs().max() > 1e-3


@BOTH
def test_the_policy_can_be_shown_another_image_than_the_queries_saw(policy_of, batch, condition):
    policy = policy_of(condition)
    encoding, other = policy.encode(batch), policy.encode({**batch, "images": 255 - batch["images"]})
    own = policy.head(encoding)
    assert torch.equal(policy.head(encoding, encoding), own)
    shown = policy.head(encoding, other)
    assert not torch.allclose(shown, own) and not torch.allclose(shown, policy.head(other))


@pytest.mark.parametrize("condition, changes", [("bridge_head", {}), ("focus_head", {"focus_keep": 1.0})])
def test_it_sees_the_wrist_camera_too(policy_of, batch, condition, changes):
    policy = policy_of(condition, **changes)
    encoding, other = policy.encode(batch), policy.encode({**batch, "wrist": 255 - batch["wrist"]})
    assert not torch.allclose(policy.head(encoding, other), policy.head(encoding))


def test_what_the_vision_tower_gives_reaches_the_actions_of_focus_and_not_of_bridge(policy_of, batch):
    for condition, reaches in (("focus_head", True), ("bridge_head", False)):
        policy = policy_of(condition)
        encoding = policy.encode(batch)
        other = replace(encoding, vision=torch.ones(2, 20, 32))
        assert torch.allclose(policy.head(other), policy.head(encoding)) != reaches


@BOTH
def test_gradients_are_the_same_under_gradient_checkpointing(policy_of, batch, condition):
    gradients = []
    for checkpointing in (False, True):
        policy = policy_of(condition, checkpointing=checkpointing).train()
        policy(batch)["loss"].backward()
        gradients.append([weight.grad for weight in policy.trained().values()])
    assert all(torch.allclose(one, other, atol=1e-7) for one, other in zip(*gradients))
