"""The index: quotas, epochs, phases and seeks, and that nothing but the sample number enters."""

import time
from fractions import Fraction

import numpy as np
import pytest

from trainer.data.errors import DataError
from trainer.data.hashing import mix64, text_key
from trainer.data.mixture.index import ORDER_OF_EPOCH, QUOTA_BLOCK, STRETCH, MixtureIndex
from trainer.data.mixture.permutation import permute

S = 16
WINDOWS = {"chem": 30_011, "code": 90_001, "rare": 7, "late": 1000}
WEIGHTS = {
    "stable": {"chem": 3.0, "code": 6.5, "rare": 0.01},
    "anneal": {"chem": 1.0, "rare": 0.02, "late": 0.25},
    "end": {"code": 1.0, "late": 2.0},
}
# Short blocks at the ends of the first two: 2 blocks and 5,000 samples, less than a block, as long as one likes.
PHASES = {"stable": (2 * QUOTA_BLOCK + 5000) * S + 3, "anneal": 40_000 * S, "end": 10_000 * S}
SAMPLES = 2 * QUOTA_BLOCK + 5000 + 40_000 + 10_000  # of all phases


def index(seed: int = 3, **changed) -> MixtureIndex:
    parts = {"phases": PHASES, "weights": WEIGHTS, "num_windows": WINDOWS, **changed}
    return MixtureIndex(parts["phases"], parts["weights"], parts["num_windows"], seq_len=S, seed=seed)


@pytest.fixture(scope="module")
def whole() -> np.ndarray:
    """[3, N]: source, epoch and position of all samples, and half as many past the phases' end."""
    return np.stack(index().lookup(np.arange(3 * SAMPLES // 2)))


def looked_up(mixture: MixtureIndex, first: int, count: int) -> np.ndarray:
    return np.stack(mixture.lookup(np.arange(first, first + count)))


def test_every_block_is_within_one_sample_of_each_quota(whole):
    first = 0
    lengths = {"stable": [QUOTA_BLOCK, QUOTA_BLOCK, 5000], "anneal": [40_000], "end": [QUOTA_BLOCK]}
    for phase, blocks in lengths.items():
        total = sum(map(Fraction, map(str, WEIGHTS[phase].values())))
        for length in blocks:
            counts = np.bincount(whole[0, first : first + length], minlength=4)
            for name, count in zip(WINDOWS, counts.tolist(), strict=True):
                due = length * Fraction(str(WEIGHTS[phase].get(name, 0))) / total
                assert abs(count - due) < 1, (phase, name)
            first += length


def test_every_position_comes_once_an_epoch_over_blocks_and_phases(whole):
    """Positions of each source in the order of its samples: epoch after epoch, none short but the last."""
    for source, windows in enumerate(WINDOWS.values()):
        epoch, position = whole[1:, whole[0] == source]
        assert np.array_equal(epoch, np.arange(len(epoch)) // windows)
        full = len(epoch) // windows
        assert full >= 1
        in_epochs = position[: full * windows].reshape(full, windows)
        assert np.array_equal(np.sort(in_epochs, axis=1), np.tile(np.arange(windows), (full, 1)))
        rest = position[full * windows :]
        assert len(np.unique(rest)) == len(rest)
        orders = {tuple(order) for order in in_epochs.tolist()}
        assert len(orders) > 0.9 * full


def test_positions_are_the_epochs_permutation_of_the_draws(whole):
    """Draw t of a source, written as the definition says it."""
    for source, (name, windows) in enumerate(WINDOWS.items()):
        key = int(mix64(3, ORDER_OF_EPOCH, text_key(name))[0])
        position = whole[2, whole[0] == source]
        for epoch in range(0, len(position) // windows, 7):
            order = permute(np.arange(windows), np.array([windows]), mix64(key, epoch))
            assert np.array_equal(position[epoch * windows : (epoch + 1) * windows], order)


def test_short_stretches_are_mixed_too(whole):
    """Any 2,560 samples hold ten stretches less two cut ones; and a source's place in a stretch is random."""
    due = 2560 * 6.5 / 9.51
    for first in range(0, 2 * QUOTA_BLOCK - 2560, 997):
        assert abs((whole[0, first : first + 2560] == 1).sum() - due) < 10 + 2 * 10 * 4
    stretches = whole[0, :QUOTA_BLOCK].reshape(-1, STRETCH)
    share = (stretches == 1).mean(axis=0)
    assert abs(share - 6.5 / 9.51).max() < 5 * np.sqrt(0.25 / len(stretches))


@pytest.mark.parametrize(("ranks", "micro"), [(1, 24), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1), (12, 2), (1, 1)])
def test_global_batches_are_the_same_for_any_number_of_ranks_and_micro_batch(whole, ranks, micro):
    """Each rank looks up its own samples; around a block's, an epoch's and a phase's edge."""
    edges = [0, QUOTA_BLOCK - 30, 2 * QUOTA_BLOCK + 5000 - 17, SAMPLES - 12]
    per_rank = [index() for _ in range(ranks)]
    for first in edges:
        rows = {}
        for start in range(first, first + 48, ranks * micro):
            for rank, mixture in enumerate(per_rank):
                samples = start + rank * micro + np.arange(micro)
                rows.update(zip(samples.tolist(), np.stack(mixture.lookup(samples)).T.tolist(), strict=True))
        assert [rows[n] for n in range(first, first + 48)] == whole[:, first : first + 48].T.tolist()


def test_a_sample_does_not_depend_on_what_was_asked_with_it(whole):
    mixture = index()
    samples = np.random.default_rng(0).integers(0, whole.shape[1], 3000)
    assert np.array_equal(np.stack(mixture.lookup(samples)), whole[:, samples])
    for sample in (
        0,
        QUOTA_BLOCK - 1,
        QUOTA_BLOCK,
        2 * QUOTA_BLOCK + 4999,
        2 * QUOTA_BLOCK + 5000,
        SAMPLES,
    ):
        assert np.array_equal(looked_up(index(), sample, 1), whole[:, sample : sample + 1])


def test_a_longer_run_starts_with_the_samples_of_a_shorter_one(whole):
    """Past the phases' tokens the last phase continues, and declaring more tokens of it changes nothing."""
    longer = index(phases={**PHASES, "end": 10**15 * S})
    assert np.array_equal(looked_up(longer, 0, whole.shape[1]), whole)


def test_seeds_and_names_give_other_orders_of_the_same_draws(whole):
    first = 2 * QUOTA_BLOCK + 5000  # what one phase draws is the same set of windows only where epochs are complete
    other = looked_up(index(seed=4), 0, first)
    assert np.array_equal(np.bincount(other[0]), np.bincount(whole[0, :first]))
    assert not np.array_equal(other[0], whole[0, :first])
    renamed = index(
        num_windows={"other": WINDOWS["chem"], **{n: w for n, w in WINDOWS.items() if n != "chem"}},
        weights={p: {"other" if n == "chem" else n: w for n, w in ws.items()} for p, ws in WEIGHTS.items()},
    )
    again = looked_up(renamed, 0, 1000)
    assert np.array_equal(again[0], whole[0, :1000])
    assert not np.array_equal(again[2][again[0] == 0], whole[2, :1000][whole[0, :1000] == 0])


def test_counts_before_and_phases(whole):
    mixture = index()
    for sample in (
        0,
        1,
        1000,
        QUOTA_BLOCK,
        QUOTA_BLOCK + 1,
        2 * QUOTA_BLOCK + 5000,
        2 * QUOTA_BLOCK + 5001,
        SAMPLES + 7,
    ):
        counts = np.bincount(whole[0, :sample], minlength=4)
        assert list(mixture.counts_before(sample).values()) == counts.tolist()
    edges = [
        0,
        2 * QUOTA_BLOCK + 4999,
        2 * QUOTA_BLOCK + 5000,
        2 * QUOTA_BLOCK + 44_999,
        2 * QUOTA_BLOCK + 45_000,
        10**12,
    ]
    assert [mixture.phase_at(sample) for sample in edges] == ["stable", "stable", "anneal", "anneal", "end", "end"]


def test_a_mixture_is_these_numbers_everywhere():
    assert looked_up(index(), 10**9, 4).tolist() == [
        [1, 3, 1, 1],
        [3704, 666557, 3704, 3704],
        [16901, 333, 69230, 22824],
    ]


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="numbers start at 0"):
        index().lookup(np.array([5, -1]))
    for changes, where, value in (
        ({"num_windows": {**WINDOWS, "rare": 0}}, "data.sources.rare", 0),
        ({"weights": {**WEIGHTS, "anneal": {}}}, "data.phases.anneal", ()),
        ({"phases": {**PHASES, "stable": 100 * S, "anneal": 15}}, "data.phases.anneal.tokens", 15),
    ):
        with pytest.raises(DataError) as error:
            index(**changes)
        assert (error.value.where, error.value.value) == (where, value)
        assert error.value.allowed
    assert [part.tolist() for part in index().lookup(np.array([], np.int64))] == [[], [], []]


# -- six trillion tokens ---------------------------------------------------------------------------------------------


def test_numbers_stay_right_up_to_the_largest_sample():
    """Epochs of sources of 2**40 windows, and the last sample number that int64 holds."""
    mixture = MixtureIndex(
        {"a": 10**12 * S, "b": 10**12 * S},
        {"a": {"big": 1.0, "small": 1e-6}, "b": {"big": 1.0, "small": 1.0}},
        {"big": 2**40 + 1, "small": 3},
        seq_len=S,
        seed=0,
    )
    last = 2**63 - 1
    samples = last - np.arange(100)
    source, epoch, position = mixture.lookup(samples)
    assert set(source.tolist()) == {0, 1}
    windows = np.array([2**40 + 1, 3])[source]
    assert (position >= 0).all()
    assert (position < windows).all()
    before = mixture.counts_before(last - 99)
    assert sum(before.values()) == last - 99
    order = np.argsort(samples)
    for number, name in enumerate(("big", "small")):
        epochs = epoch[order][source[order] == number].tolist()
        assert epochs == [(before[name] + draw) // (2**40 + 1, 3)[number] for draw in range(len(epochs))]


def test_a_hash_of_one_use_is_not_that_of_another():
    assert mix64(0, 1, 2).tolist() != mix64(0, 2, 1).tolist()
    for number in (0, 7, 2**64 - 1, -3, 2**70 + 5):  # numbers alone have a way of their own
        assert mix64(5, number) == mix64(5, np.array([number % 2**64], np.uint64))


def test_start_and_seek_do_not_depend_on_the_size():
    """A mixture of 1.46e9 samples against one of 1.46e5: the same work, in CPU time; generous for a busy machine."""

    def seconds(scale: float) -> float:
        names = {f"s{n}": n + 1.0 for n in range(9)}
        best = []
        for attempt in range(5):
            start = time.process_time()
            mixture = MixtureIndex(
                {"stable": int(5.4e8 * scale), "anneal": int(0.6e8 * scale)},
                {"stable": names, "anneal": names},
                {name: int(weight * 3000 * scale) for name, weight in names.items()},
                seq_len=4096,
                seed=attempt,
            )
            mixture.lookup(np.array([int(6e8 * scale) // 4096 - 1]))
            best.append(time.process_time() - start)
        return min(best)

    assert seconds(10_000) < 3 * seconds(1) + 0.002
