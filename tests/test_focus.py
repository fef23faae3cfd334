"""FocusVLA-style attention against torch's own, and each switch of its ablation."""

import pytest
import torch
from torch import nn

from lar_core.config import CONDITIONS, make_config
from lar_core.errors import LarError
from lar_core.model.focus import FocusBlock
from lar_core.model.head import Trunk
from lar_core.model.layerwise import HEADS

WIDTH, LAYER, VISION, BATCH = 32, 24, 20, 2
PATCHES = 8


def make_block(**switches):
    torch.manual_seed(0)
    condition = make_config("focus_head", **switches).condition
    return FocusBlock(WIDTH, Trunk(LAYER, 1, VISION), condition).double()


@pytest.fixture
def tokens():
    """Actions, queries, vision, raw."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)
            for shape in ((3, WIDTH), (5, LAYER), (PATCHES, LAYER), (PATCHES, VISION))]


def official(block, number, kind):
    """torch's attention with the projections of one of the block's three."""
    attention = nn.MultiheadAttention(WIDTH, HEADS, kdim=kind.key.in_features, vdim=kind.value.in_features,
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
    block = make_block(focus_keep=1.0, focus_gate=False)
    actions, queries, vision, raw = tokens
    expected = [official(block, number, kind)(actions, keys, values)[0] for number, kind, keys, values in (
        (0, block.own, actions, actions), (1, block.of_queries, queries, queries), (2, block.of_vision, vision, raw))]
    assert torch.allclose(looks(block, tokens), torch.cat(expected, dim=-1))


def test_only_the_patches_with_most_attention_are_seen(tokens):
    """torch's attention, told to ignore all patches but the four that its own mean attention ranks first."""
    block = make_block(focus_keep=0.5, focus_gate=False)
    actions, _, vision, raw = tokens
    attention = official(block, 2, block.of_vision)
    weights = attention(actions, vision, raw)[1].mean(dim=1)  # (B, N), mean over heads and action tokens
    ignored = weights.argsort(dim=1).argsort(dim=1) < PATCHES // 2
    expected, _ = attention(actions, vision, raw, key_padding_mask=ignored)
    assert torch.allclose(looks(block, tokens)[..., 2 * WIDTH:], expected)
    raw[ignored] += 1
    assert torch.allclose(looks(block, tokens)[..., 2 * WIDTH:], expected)


def test_without_the_cascade_one_softmax_covers_all(tokens):
    block = make_block(focus_cascade=False, focus_keep=1.0, focus_gate=False)
    actions, queries, vision, raw = tokens
    def heads(x):
        return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
    keys = torch.cat([block.own.key(actions), block.of_queries.key(queries), block.of_vision.key(vision)], dim=1)
    values = torch.cat([block.own.value(actions), block.of_queries.value(queries), block.of_vision.value(raw)], dim=1)
    expected = nn.functional.scaled_dot_product_attention(heads(block.query(actions)), heads(keys), heads(values))
    assert torch.allclose(looks(block, tokens), expected.transpose(1, 2).flatten(2))


def test_the_gate_weighs_what_was_seen_element_by_element(tokens):
    block = make_block(focus_keep=1.0)
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
    ("action_only", {"focus_gate": False}, "settings of the focus head"),
    ("action_only", {"head": "autoregressive", "action_loss": "l1"}, "autoregressive head cannot learn from action_loss=l1"),
    ("bridge_head", {"text_width": 36, "attention_heads": 2}, "multiple of 8"),
    ("action_only", {"action_loss": "l2"}, "did you mean 'l1'")])
def test_settings_that_mean_nothing_are_refused(condition, changes, reason):
    with pytest.raises(LarError, match=reason):
        make_config(condition, **changes)


def test_the_presets_differ_in_the_head_alone():
    bridge, focus = CONDITIONS["bridge_head"], CONDITIONS["focus_head"]
    assert {name for name in vars(bridge) if getattr(bridge, name) != getattr(focus, name)} == {"name", "head"}
