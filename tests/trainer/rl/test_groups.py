"""Advantages of groups, and packing."""

import numpy as np
import pytest

from trainer.rl.batches import pack
from trainer.rl.groups import leave_one_out


def test_leave_one_out_sums_to_zero_and_is_a_scaled_centring():
    rewards = np.random.default_rng(0).random((20, 8))
    for group in rewards:
        found = leave_one_out(group)
        assert abs(found.sum()) < 1e-12
        assert np.allclose(found, 8 / 7 * (group - group.mean()))
        others = [np.delete(group, at).mean() for at in range(8)]
        assert np.allclose(found, group - others)


def test_equal_rewards_have_no_advantage_and_one_rollout_no_baseline():
    assert not leave_one_out(np.full(4, 0.3)).any()
    with pytest.raises(ValueError, match="two"):
        leave_one_out(np.ones(1))


def test_packs_hold_every_document_once_and_whole():
    lengths = np.random.default_rng(1).integers(1, 50, 200).tolist()
    windows = pack(lengths, 64)
    assert sorted(number for window in windows for number in window) == list(range(200))
    assert all(sum(lengths[number] for number in window) <= 64 for window in windows)
    assert len(windows) <= 1.1 * sum(lengths) / 64
    assert pack([], 64) == []
