"""Scenes changed by hand: states by hand, pictures by MuJoCo's own segmentation."""

import numpy as np
import pytest
from test_demos import make_episode

from lar_core.measure.pixels import NEAR, approaching, heads_for, places
from lar_core.run.settings import Profile
from lar_core.scene.env import environment, official_init_states
from lar_core.scene.placements import BOWLS, COOKIES, RAMEKIN, X_ADDRESS
from lar_core.scene.rerender import CHANGES, changed, partners, repaint

SIZE = 64
PROFILE = Profile(tasks=(5,), image_size=SIZE, wrist_size=0)


def test_partners_are_what_both_bowls_stand_on_or_next_to_where_that_can_be_moved():
    assert partners(5) == (RAMEKIN, COOKIES)  # on the ramekin; the other one on the cookie box
    assert [task for task in range(10) if partners(task)] == [1, 5, 8]


def test_changed_states_differ_in_what_is_changed_alone():
    state = official_init_states(5)[0]
    where = {name: slice(X_ADDRESS[name], X_ADDRESS[name] + 3) for name in (*BOWLS, RAMEKIN, COOKIES)}
    assert np.array_equal(changed(state, "as_it_was", BOWLS), state)
    for change, bowl in zip(("named_gone", "other_gone"), BOWLS):
        assert np.flatnonzero(changed(state, change, BOWLS) != state).tolist() == [X_ADDRESS[bowl] + 2]
    swapped = changed(state, "swapped", BOWLS, (RAMEKIN, COOKIES))
    assert np.allclose(swapped[where[RAMEKIN]][:2], state[where[COOKIES]][:2])
    assert np.allclose(swapped[where[BOWLS[0]]] - swapped[where[RAMEKIN]], state[where[BOWLS[0]]] - state[where[RAMEKIN]])
    assert np.allclose(changed(swapped, "swapped", BOWLS, (RAMEKIN, COOKIES)), state)


def test_pictures_show_what_was_changed():
    state = official_init_states(5)[0]
    states = [changed(state, change, BOWLS, (RAMEKIN, COOKIES)) for change in CHANGES]
    drawn = dict(zip(CHANGES, repaint(PROFILE, [(7, state) for state in states])))
    numbers = [environment(5, SIZE, 0).objects.index(bowl) + 1 for bowl in BOWLS]
    counts = {change: [(one["segmentation"] == number).sum() for number in numbers] for change, one in drawn.items()}
    assert min(counts["as_it_was"]) > 10
    assert counts["named_gone"][0] == 0 and counts["named_gone"][1] >= counts["as_it_was"][1]
    assert counts["other_gone"][1] == 0
    def middle(change, number):
        return np.argwhere(drawn[change]["segmentation"] == number).mean(axis=0)
    assert np.linalg.norm(middle("swapped", numbers[0]) - middle("as_it_was", numbers[1])) < 4  # pixels
    assert np.linalg.norm(middle("as_it_was", numbers[0]) - middle("as_it_was", numbers[1])) > 8


def test_a_motion_heads_for_the_bowl_that_it_points_to_seen_from_above():
    hand, bowls = np.zeros((2, 3)), np.array([[[0.2, 0, 0], [0, 0.1, 0]]] * 2)
    motion = np.array([[0.01, 0.005, -1, 0, 0, 0], [0.01, 0.02, 1, 0, 0, 0]])
    assert heads_for(motion, hand, bowls).tolist() == [1.0, 0.0]
    assert heads_for(motion, hand, bowls[:, ::-1]).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("stored", [True, False])
def test_only_the_way_to_the_bowls_is_asked(stored):
    episode = make_episode(steps=4)
    episode.actions[:, 6] = [-1, -1, 1, -1]  # closes at the third step
    episode.ee_pos = places(episode.states, BOWLS)[:, 0] + 2 * NEAR
    episode.ee_pos[0] = places(episode.states, BOWLS)[0, 1]  # at the other bowl
    episode.states = episode.states if stored else None
    assert approaching(episode) == ([1] if stored else [])
