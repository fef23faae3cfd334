"""Heads that read every layer: what they are given is what transformers gives, and nobody else pays for it.

Bridge Attention and FocusVLA-style attention against torch's own, and each switch of the latter's ablation.
"""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from lar_core.model.layerwise import ATTENTION_HEADS, QUERIES, BridgeBlock, FocusBlock
from lar_core.run.config import CONDITIONS, make_config
from lar_core.run.errors import LarError
from lar_core.run.runtime import Draws

BOTH = pytest.mark.parametrize("condition", ["bridge_head", "focus_head"])
WIDTH, LAYER, VISION, BATCH = 32, 24, 20, 2
PATCHES = 8


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
    assert not encoding.layers and encoding.vision is None
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


# --- bridge ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def bridge():
    torch.manual_seed(0)
    return BridgeBlock(WIDTH, WIDTH).double()


@pytest.fixture
def triple():
    """Actions, queries, vision."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, count, WIDTH, generator=generator, dtype=torch.float64) for count in (3, 5, 7)]


def test_with_an_open_gate_and_one_projection_it_is_torchs_attention_over_all_tokens(bridge, triple):
    bridge.gate.data.fill_(20.0)  # tanh = 1
    bridge.of_queries = bridge.of_vision = bridge.own
    official = nn.MultiheadAttention(WIDTH, ATTENTION_HEADS, batch_first=True, dtype=torch.float64)
    layers = bridge.query, bridge.own.key, bridge.own.value
    official.in_proj_weight.data = torch.cat([layer.weight for layer in layers])
    official.in_proj_bias.data = torch.cat([layer.bias for layer in layers])
    official.out_proj.load_state_dict(bridge.out.state_dict())
    together = torch.cat(triple, dim=1)
    attended, _ = official(triple[0], together, together)
    assert torch.allclose(bridge(*triple), bridge.forth(attended + triple[0]))


def test_a_closed_gate_gives_every_patch_the_score_zero(bridge, triple):
    """softmax over (own scores, query scores, zeros), written out."""
    def heads(x):
        return x.reshape(BATCH, -1, ATTENTION_HEADS, WIDTH // ATTENTION_HEADS).permute(0, 2, 1, 3)
    actions, queries, vision = triple
    query = heads(bridge.query(actions))
    scores = [query @ heads(kind.key(x)).mT / (WIDTH // ATTENTION_HEADS) ** 0.5 for kind, x in (
        (bridge.own, actions), (bridge.of_queries, queries))]
    scores.append(torch.zeros(*query.shape[:3], vision.shape[1], dtype=torch.float64))
    values = torch.cat([heads(kind.value(x)) for kind, x in (
        (bridge.own, actions), (bridge.of_queries, queries), (bridge.of_vision, vision))], dim=2)
    attended = (torch.cat(scores, dim=-1).softmax(dim=-1) @ values).permute(0, 2, 1, 3).reshape(actions.shape)
    assert torch.allclose(bridge(*triple), bridge.forth(bridge.out(attended) + actions))


def test_at_the_start_the_policy_cannot_choose_among_patches_and_can_learn_to(bridge, triple):
    before = bridge(*triple)
    nn.init.normal_(bridge.of_vision.key.weight)
    assert torch.equal(bridge(*triple), before)
    bridge(*triple).sum().backward()
    assert bridge.gate.grad.abs() > 0
    bridge.gate.data.fill_(0.5)
    assert not torch.allclose(bridge(*triple), before)


# --- focus -----------------------------------------------------------------------------------------------------------

def make_block(**switches):
    torch.manual_seed(0)
    return FocusBlock(WIDTH, LAYER, VISION, **switches).double()


@pytest.fixture
def tokens():
    """Actions, queries, vision, raw."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
            for shape in ((3, WIDTH), (5, LAYER), (PATCHES, LAYER), (PATCHES, VISION))]


def torchs(block, number, kind):
    """torch's attention with the projections of one of the block's three."""
    attention = nn.MultiheadAttention(WIDTH, ATTENTION_HEADS, kdim=kind.key.in_features, vdim=kind.value.in_features,
                                      batch_first=True, dtype=torch.float64)
    rows = slice(number * WIDTH, (number + 1) * WIDTH)
    if attention.in_proj_weight is None:
        attention.q_proj_weight.data = block.query.weight[rows]
        attention.k_proj_weight.data, attention.v_proj_weight.data = kind.key.weight, kind.value.weight
    else:
        attention.in_proj_weight.data = torch.cat([block.query.weight[rows], kind.key.weight, kind.value.weight])
    attention.in_proj_bias.data = torch.cat([block.query.bias[rows], kind.key.bias, kind.value.bias])
    attention.out_proj.weight.data = torch.eye(WIDTH, dtype=torch.float64)
    attention.out_proj.bias.data = torch.zeros(WIDTH, dtype=torch.float64)
    return attention


def looks(block, tokens):
    actions, queries, vision, raw = tokens
    return block.look(actions, block.own(actions), block.of_queries(queries), block.of_vision(vision, raw))


def test_the_three_attentions_are_torchs_side_by_side(tokens):
    block = make_block(keep=1.0, gate=False)
    actions, queries, vision, raw = tokens
    expected = [torchs(block, number, kind)(actions, keys, values)[0] for number, kind, keys, values in (
        (0, block.own, actions, actions), (1, block.of_queries, queries, queries), (2, block.of_vision, vision, raw))]
    assert torch.allclose(looks(block, tokens), torch.cat(expected, dim=-1))


def test_only_the_patches_with_most_attention_are_seen(tokens):
    """torch's attention, told to ignore all patches but the four that its own mean attention ranks first."""
    block = make_block(keep=0.5, gate=False)
    actions, _, vision, raw = tokens
    attention = torchs(block, 2, block.of_vision)
    weights = attention(actions, vision, raw)[1].mean(dim=1)  # (B, N), mean over heads and action tokens
    ignored = weights.argsort(dim=1).argsort(dim=1) < PATCHES // 2
    expected, _ = attention(actions, vision, raw, key_padding_mask=ignored)
    assert torch.allclose(looks(block, tokens)[..., 2 * WIDTH:], expected)
    raw[ignored] += 1
    assert torch.allclose(looks(block, tokens)[..., 2 * WIDTH:], expected)


def test_without_the_cascade_one_softmax_covers_all(tokens):
    block = make_block(cascade=False, keep=1.0, gate=False)
    actions, queries, vision, raw = tokens
    def heads(x):
        return x.unflatten(-1, (ATTENTION_HEADS, -1)).transpose(1, 2)
    keys = torch.cat([block.own.key(actions), block.of_queries.key(queries), block.of_vision.key(vision)], dim=1)
    values = torch.cat([block.own.value(actions), block.of_queries.value(queries), block.of_vision.value(raw)], dim=1)
    expected = nn.functional.scaled_dot_product_attention(heads(block.query(actions)), heads(keys), heads(values))
    assert torch.allclose(looks(block, tokens), expected.transpose(1, 2).flatten(2))


def test_the_gate_weighs_what_was_seen_element_by_element(tokens):
    block = make_block(keep=1.0)
    nn.init.zeros_(block.gate.weight), nn.init.zeros_(block.gate.bias)
    half = looks(block, tokens)
    block.gate.bias.data[5] = -1e9
    shut = looks(block, tokens)
    block.gate = None
    whole = looks(block, tokens)
    assert torch.allclose(half[..., : 2 * WIDTH], whole[..., : 2 * WIDTH])
    assert torch.allclose(half[..., 2 * WIDTH:], whole[..., 2 * WIDTH:] / 2)
    assert (shut[..., 2 * WIDTH + 5] == 0).all() and (shut[..., 2 * WIDTH + 6] != 0).all()


def test_keys_come_from_the_layer_and_values_from_the_vision_tower(tokens):
    block = make_block()
    assert (block.of_vision.key.in_features, block.of_vision.value.in_features) == (LAYER, VISION)
    with torch.no_grad():
        tokens[3] *= 0
        nn.init.zeros_(block.of_vision.value.bias)
        assert (looks(block, tokens)[..., 2 * WIDTH:] == 0).all()


@pytest.mark.parametrize("condition, changes, reason", [
    ("focus_head", {"focus_cascade": False}, "focus_keep=1 and focus_gate=false"),
    ("focus_head", {"focus_keep": 0.0}, "must be greater than 0"),
    ("action_only", {"focus_gate": False}, "is for the focus head"),
    ("action_only", {"head": "autoregressive", "action_loss": "l1"}, "autoregressive head cannot learn from action_loss=l1"),
    ("bridge_head", {"text_width": 36, "attention_heads": 2}, "multiple of 8"),
    ("action_only", {"action_loss": "l2"}, "did you mean 'l1'")])
def test_settings_that_mean_nothing_are_refused(condition, changes, reason):
    with pytest.raises(LarError, match=reason):
        make_config(condition, **changes)


def test_the_presets_differ_in_the_head_alone():
    bridge, focus = CONDITIONS["bridge_head"], CONDITIONS["focus_head"]
    assert {name for name in vars(bridge) if getattr(bridge, name) != getattr(focus, name)} == {"name", "head"}
