"""The shortcut probe: by hand on a policy that copies what it sees, and on policies that cannot see."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_demos import make_episode

from lar_core.data.dataset import Stats, make_dataset
from lar_core.measure.probes import GREY, shortcut
from lar_core.model.losses import absolute_error
from lar_core.run.config import make_config


@pytest.fixture(scope="module")
def dataset():
    """Two episodes of six frames."""
    episodes = [make_episode(steps=6, seed=seed, size=64, wrist=32) for seed in range(2)]
    return make_dataset(episodes, Stats.of(episodes), make_config("action_only", "micro"))


FRAMES = np.arange(12)


class Copycat:
    """Answers with the brightness of the first pixel, in every step and degree of freedom; remembers what it saw."""

    device = "cpu"

    def __init__(self, reads_layers):
        self.seen = []
        self.head = Eye(reads_layers)

    def encode(self, batch, *, saliency):
        self.seen.append((batch["images"], batch["wrist"]))
        return SimpleNamespace(brightness=batch["images"][:, 0, 0, 0] / 255, steps=batch["actions"].shape[1])


class Eye:
    l1 = True
    loss, decode = staticmethod(absolute_error), staticmethod(lambda answer: answer)

    def __init__(self, reads_layers):
        self.reads_layers = reads_layers

    def __call__(self, encoding, seen=None):
        return (seen or encoding).brightness[:, None, None].expand(-1, encoding.steps, 7)


def expected(dataset, brightness):
    """Mean absolute error of that answer, of episode means."""
    batch = dataset.batch(FRAMES)
    valid = ~batch["action_pad"].numpy()
    errors = [np.abs(value - actions[mask]).mean()
              for value, actions, mask in zip(brightness, batch["actions"].numpy(), valid)]
    return np.mean([np.mean(errors[:6]), np.mean(errors[6:])])


def test_losses_are_those_of_what_was_shown(dataset):
    brightness = dataset.batch(FRAMES)["images"][:, 0, 0, 0].numpy() / 255
    right, blank = expected(dataset, brightness), expected(dataset, np.full(12, GREY / 255))
    shuffled = expected(dataset, np.roll(brightness, 6))
    result = shortcut(Copycat(True), dataset, FRAMES)
    assert result["right"]["loss"]["mean"] == pytest.approx(right, rel=1e-5)
    assert result["right"]["l1"]["mean"] == pytest.approx(right, rel=1e-5)
    for place in ("whole", "head"):
        assert result[place]["blank"]["loss"]["mean"] == pytest.approx(blank, rel=1e-5)
        assert result[place]["shuffled"]["increase"]["mean"] == pytest.approx(shuffled - right, abs=1e-5)
    assert result["unit"] == "normalised" and result["frames"] == 12 and result["episodes"] == 2


def test_both_cameras_show_grey_or_another_episode(dataset):
    policy = Copycat(False)
    assert shortcut(policy, dataset, FRAMES)["head"] is None
    (images, wrist), grey, others = policy.seen
    assert all((camera == GREY).all() for camera in grey)
    for right, other in ((images, others[0]), (wrist, others[1])):
        assert torch.equal(other[:6], right[6:]) and torch.equal(other[6:], right[:6])


@pytest.mark.parametrize("head", ["parallel", "autoregressive", "bridge", "focus"])
def test_a_blind_policy_loses_nothing_and_every_other_something(policy_of, dataset, head):
    blind, seeing = (shortcut(policy_of(condition, head=head).eval(), dataset, FRAMES)
                     for condition in ("blind", "action_only"))
    for kind in ("blank", "shuffled"):
        assert blind["whole"][kind]["increase"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
        assert seeing["whole"][kind]["increase"]["mean"] != 0
    assert (seeing["head"] is None) == (head in ("parallel", "autoregressive"))


def test_a_policy_that_lives_on_its_queries_is_found_out(policy_of, dataset):
    """Nothing of the patches passes, so its own view can be changed at no cost, although the whole needs the image."""
    policy = policy_of("bridge_head").eval()
    for block in policy.head.blocks:
        torch.nn.init.zeros_(block.of_vision.value.weight)
    result = shortcut(policy, dataset, FRAMES)
    assert result["head"]["shuffled"]["increase"]["mean"] == 0 != result["whole"]["shuffled"]["increase"]["mean"]
