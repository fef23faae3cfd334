"""What the actions depend on: against scipy, captum, Quantus and examples by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon
from scipy.special import softmax
from scipy.stats import spearmanr
from torch import nn

from lar_core.data.conventions import METRES, RADIANS
from lar_core.data.dataset import Stats
from lar_core.measure.cause import STEPS, Answer, _nats, blocks, curves, hide, occlusion, surroundings
from lar_core.measure.maps import agreement

STATS = Stats((-1.0,) * 7, (1.0,) * 7, (0.0,) * 8, (1.0,) * 8)


@pytest.fixture
def answer(policy_of, batch):
    """Of an untrained policy whose answers are made sharp enough to depend on the image."""
    policy = policy_of("action_only").eval()
    with torch.no_grad():
        policy.head.logits.weight *= 20
        return Answer(policy, STATS, batch)


def test_divergence_is_scipys():
    one, other = torch.randn(5, 256, generator=torch.Generator().manual_seed(0)), torch.randn(5, 256)
    expected = [jensenshannon(*pair) ** 2 for pair in zip(softmax(one.numpy(), 1), softmax(other.numpy(), 1))]
    assert np.allclose(_nats(one, other), expected, atol=1e-6)
    assert _nats(one, one).abs().max() < 1e-6


def test_surroundings_are_the_mean_of_up_to_eight_blocks_around():
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 1, 3, 3) * 10
    filled = surroundings(image, 3)[0, 0]
    assert filled[1, 1] == round((0 + 10 + 20 + 30 + 50 + 60 + 70 + 80) / 8)
    assert filled[0, 0] == round((10 + 30 + 40) / 3) and filled[0, 1] == round((0 + 20 + 30 + 40 + 50) / 5)


def test_a_large_grid_is_taken_in_blocks_of_two_by_two(policy_of):
    policy = policy_of("action_only")
    assert blocks(policy) == 4
    policy.backbone.patches = 256  # PaliGemma's at 224 pixels
    assert blocks(policy) == 8


def test_the_motion_of_a_chunk_is_that_of_its_valid_steps_in_metres_and_radians(answer):
    actions = torch.zeros(2, 8, 7)
    actions[..., 0], actions[..., 5] = 0.5, -0.2
    answer.policy.head.decode = lambda logits: actions
    motion = answer.motion(answer.own)
    assert torch.allclose(motion[:, 0], torch.tensor([8, 5]) * 0.5 * METRES)  # the second chunk has five valid steps
    assert torch.allclose(motion[:, 5], torch.tensor([8, 5]) * -0.2 * RADIANS)


class Likeness(nn.Module):
    """Minus the change of the action, (B, 1), of pictures as floats: what captum and Quantus ask for."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        changed = self.answer.changed(images=images.round().clamp(0, 255).to(torch.uint8))
        return -changed["nats"][:, None].expand(-1, 2)


@torch.no_grad()
def test_occlusion_is_captums(answer):
    from captum.attr import Occlusion

    images, side = answer.batch["images"], blocks(answer.policy)
    size = images.shape[-1] // side
    found = Occlusion(Likeness(answer)).attribute(
        images.float(), sliding_window_shapes=(3, size, size), strides=(3, size, size), target=0,
        baselines=surroundings(images, side).float())
    expected = found[:, 0, size // 2 :: size, size // 2 :: size].flatten(1)
    mattered = occlusion(answer, side)["nats"]
    assert mattered.max() > 1e-4 and torch.allclose(mattered, expected.float(), atol=1e-6)


@torch.no_grad()
def test_deletion_is_quantus_pixel_flipping(answer):
    """Of grey pictures, because Quantus fills all channels with one mean."""
    quantus = pytest.importorskip("quantus", reason="of the extra `oracles`, which drags in OpenCV", exc_type=ImportError)
    grey = answer.batch["images"][:, :1].expand(-1, 3, -1, -1)
    answer = Answer(answer.policy, STATS, answer.batch | {"images": grey})
    scores = torch.rand(2, 16, generator=torch.Generator().manual_seed(3))
    size = grey.shape[-1] // 4
    pixels = scores.reshape(2, 1, 4, 4).repeat_interleave(size, 2).repeat_interleave(size, 3)
    flipping = quantus.PixelFlipping(features_in_step=grey.shape[-1] ** 2 // STEPS, perturb_baseline="mean",
                                     normalise=False, abs=False, disable_warnings=True)
    found = []
    for i in range(2):  # a sample alone, whose own answer it is then compared with
        one = Answer(answer.policy, STATS, {name: value[i : i + 1] for name, value in answer.batch.items()})
        found += flipping(Likeness(one).eval(), grey[i : i + 1].float().numpy(), np.zeros(1, dtype=int),
                          pixels[i : i + 1].numpy(), softmax=False)
    expected = curves(answer, scores, "nats")["deletion"][:, 1:]
    # It counts the three channels as features of their own, and flips a third of what makes a step here at a time.
    assert np.allclose(-np.array(found)[:, 2::3], expected, atol=1e-3 * expected.max().item())


@torch.no_grad()
def test_curves_begin_and_end_where_nothing_and_everything_is_hidden(answer):
    found = curves(answer, torch.rand(2, 16), "nats")
    deletion, insertion = found["deletion"], found["insertion"]
    assert deletion.shape == insertion.shape == (2, STEPS + 1)
    assert deletion[:, 0].abs().max() < 1e-6 and insertion[:, -1].abs().max() < 1e-6
    assert torch.equal(deletion[:, -1], insertion[:, 0]) and (deletion[:, -1] > 0).all()


def test_hidden_blocks_alone_are_filled():
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    hidden = torch.tensor([[True, False, False, False]])
    assert hide(images, hidden, torch.full_like(images, 9)).sum() == 9 * 3 * 4


def test_agreement_is_the_rank_correlation_of_every_frame(rng):
    mattered = rng.random((3, 16)).astype(np.float32)
    maps = rng.random((3, 16)).astype(np.float32)
    maps[1] = mattered[1] ** 3  # the same order
    maps[2] = 0.5
    found = agreement(maps, mattered)
    assert found[0] == pytest.approx(spearmanr(maps[0], mattered[0]).statistic) and found[1] == pytest.approx(1)
    assert np.isnan(found[2])
    finer = np.kron(mattered[:1].reshape(4, 4), np.ones((2, 2), dtype=np.float32)).reshape(1, 64)
    assert agreement(finer, mattered[:1])[0] == pytest.approx(1)
