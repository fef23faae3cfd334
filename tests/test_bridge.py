"""Bridge Attention against torch's own attention, and what its gate does at the start."""

import pytest
import torch
from torch import nn

from lar_core.model.bridge import BridgeBlock
from lar_core.model.layerwise import HEADS

WIDTH, BATCH = 32, 2


@pytest.fixture
def block():
    torch.manual_seed(0)
    return BridgeBlock(WIDTH, WIDTH).double()


@pytest.fixture
def tokens():
    """Actions, queries, vision."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(BATCH, count, WIDTH, generator=generator, dtype=torch.float64) for count in (3, 5, 7)]


def test_with_an_open_gate_and_one_projection_it_is_torchs_attention_over_all_tokens(block, tokens):
    block.gate.data.fill_(20.0)  # tanh = 1
    block.of_queries = block.of_vision = block.own
    official = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, dtype=torch.float64)
    layers = block.query, block.own.key, block.own.value
    official.in_proj_weight.data = torch.cat([layer.weight for layer in layers])
    official.in_proj_bias.data = torch.cat([layer.bias for layer in layers])
    official.out_proj.load_state_dict(block.out.state_dict())
    together = torch.cat(tokens, dim=1)
    attended, _ = official(tokens[0], together, together)
    assert torch.allclose(block(*tokens), block.forth(attended + tokens[0]))


def test_a_closed_gate_gives_every_patch_the_score_zero(block, tokens):
    """softmax over (own scores, query scores, zeros), written out."""
    def heads(x):
        return x.reshape(BATCH, -1, HEADS, WIDTH // HEADS).permute(0, 2, 1, 3)
    actions, queries, vision = tokens
    query = heads(block.query(actions))
    scores = [query @ heads(kind.key(x)).mT / (WIDTH // HEADS) ** 0.5 for kind, x in (
        (block.own, actions), (block.of_queries, queries))]
    scores.append(torch.zeros(*query.shape[:3], vision.shape[1], dtype=torch.float64))
    values = torch.cat([heads(kind.value(x)) for kind, x in (
        (block.own, actions), (block.of_queries, queries), (block.of_vision, vision))], dim=2)
    attended = (torch.cat(scores, dim=-1).softmax(dim=-1) @ values).permute(0, 2, 1, 3).reshape(actions.shape)
    assert torch.allclose(block(*tokens), block.forth(block.out(attended) + actions))


def test_at_the_start_the_policy_cannot_choose_among_patches_and_can_learn_to(block, tokens):
    before = block(*tokens)
    nn.init.normal_(block.of_vision.key.weight)
    assert torch.equal(block(*tokens), before)
    block(*tokens).sum().backward()
    assert block.gate.grad.abs() > 0
    block.gate.data.fill_(0.5)
    assert not torch.allclose(block(*tokens), before)
