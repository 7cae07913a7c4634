"""Cuts of experts by what is used together: against every cut there is and against random ones."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tests.trainer.weights.directories import checkpoint
from trainer.config.model import ModelConfig
from trainer.model.decoder import Decoder
from trainer.weights.hf_files import open_directory
from trainer.weights.hf_survey import SourceModel, survey_directory
from trainer.weights.upcycle.coactivation import (
    Counts,
    best_cut,
    best_cuts,
    expected_survival,
    model_digest,
    survival,
)
from trainer.weights.upcycle.errors import UpcycleError

MODEL = ModelConfig(
    vocab_size=128, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
    num_experts=16, experts_per_token=4, router_groups=1, expert_width=8,
)  # fmt: skip


def random_cut(experts: int, parts: int, generator: np.random.Generator) -> list[list[int]]:
    return [sorted(part) for part in generator.permutation(experts).reshape(parts, -1).tolist()]


def all_cuts(experts: list[int], size: int):
    """Every way to cut `experts` into parts of `size`."""
    if not experts:
        yield []
        return
    first, *others = experts
    for mates in combinations(others, size - 1):
        for rest in all_cuts([e for e in others if e not in mates], size):
            yield [[first, *mates], *rest]


def apart(pairs: np.ndarray, cut: list[list[int]]) -> int:
    """Tokens whose two experts are in different parts, counted pair by pair."""
    part = {expert: number for number, experts in enumerate(cut) for expert in experts}
    return sum(int(n) for (a, b), n in np.ndenumerate(pairs) if part[a] != part[b])


def skewed(experts: int, seed: int) -> np.ndarray:
    """Few pairs have most of the tokens, as in a trained model."""
    counts = np.random.default_rng(seed).pareto(0.7, (experts, experts)) * 10
    return np.triu(counts, 1).astype(np.int64)


@pytest.mark.parametrize(("parts", "experts"), [(2, 8), (3, 9), (4, 8), (2, 10), (5, 10)])
def test_small_cuts_are_the_best_there_are(parts: int, experts: int):
    for seed in range(3):
        pairs = skewed(experts, seed)
        best = max(apart(pairs, cut) for cut in all_cuts(list(range(experts)), experts // parts))
        found = best_cut(pairs, parts, seed=0)
        assert apart(pairs, found) == best
        assert survival(pairs, found) == best / pairs.sum()


def hubs(experts: int) -> np.ndarray:
    """One expert in every pair: all cuts are alike but for whom the hub is with."""
    pairs = np.zeros((experts, experts), np.int64)
    pairs[0, 1:] = np.arange(1, experts) ** 3
    return pairs


def two_camps(experts: int) -> np.ndarray:
    """Only pairs between the even and the odd, which one cut alone keeps all; a little noise beside."""
    pairs = np.triu(np.random.default_rng(1).integers(0, 3, (experts, experts)), 1)
    even, odd = np.arange(0, experts, 2), np.arange(1, experts, 2)
    pairs[np.minimum(even[:, None], odd), np.maximum(even[:, None], odd)] += 5
    return pairs


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("pairs", [skewed(64, 0), hubs(64), two_camps(64), np.zeros((64, 64), np.int64)])
def test_a_cut_keeps_at_least_what_the_best_of_20_random_ones_keeps(pairs: np.ndarray, parts: int):
    generator = np.random.default_rng(7)
    found = best_cut(pairs, parts, seed=0)
    assert sorted(e for part in found for e in part) == list(range(64))
    assert {len(part) for part in found} == {64 // parts}
    assert apart(pairs, found) >= max(apart(pairs, random_cut(64, parts, generator)) for _ in range(20))
    assert best_cut(pairs, parts, seed=0) == found


def test_two_camps_are_found_whole():
    assert best_cut(two_camps(64), 2, seed=3) == [list(range(0, 64, 2)), list(range(1, 64, 2))]


def test_parts_have_one_size():
    with pytest.raises(ValueError, match="10 experts"):
        best_cut(skewed(10, 0), 4, seed=0)


def test_the_expectation_of_random_cuts_is_their_mean():
    generator = np.random.default_rng(0)
    pairs = skewed(12, 5)
    for parts, cuts in ((2, 1), (3, 1), (2, 2)):
        shares = [survival(pairs, *(random_cut(12, parts, generator) for _ in range(cuts))) for _ in range(2000)]
        assert np.mean(shares) == pytest.approx(expected_survival(12, parts, cuts), abs=4 * np.std(shares) / 2000**0.5)
    assert expected_survival(128, 2) == pytest.approx(64 / 127)


def test_distinct_cuts_differ_and_complement_each_other():
    pairs = skewed(32, 2)
    cuts = best_cuts(pairs, 2, 4, seed=0)
    assert len({str(cut) for cut in cuts}) == 4
    assert cuts[0] == best_cuts(pairs, 2, 1, seed=0)[0]
    covered = [survival(pairs, *cuts[:n]) for n in (1, 2, 3, 4)]
    assert covered == sorted(covered)
    assert covered[3] > expected_survival(32, 2, 4)
    # Counts that one cut satisfies alone do not make the others its copies.
    assert len({str(cut) for cut in best_cuts(two_camps(16), 2, 4, seed=0)}) == 4
    assert len({str(cut) for cut in best_cuts(np.zeros((4, 4), np.int64), 2, 3, seed=0)}) == 3
    with pytest.raises(ValueError, match="4 experts"):
        best_cuts(np.zeros((4, 4), np.int64), 2, 4, seed=0)


def source_in(directory: Path, seed: int) -> SourceModel:
    model = Decoder(MODEL)
    model.init_weights(seed)
    return survey_directory(open_directory(checkpoint(directory, model).write()))


def counts_of(source: SourceModel) -> Counts:
    pairs = np.stack([skewed(16, layer) for layer in range(2)])
    return Counts(pairs.sum(1), pairs, int(pairs[0].sum()), model_digest(source))


def test_counts_are_read_as_they_were_saved(tmp_path: Path):
    source = source_in(tmp_path / "model", seed=0)
    counts = counts_of(source)
    counts.save(tmp_path / "counts")
    read = Counts.load(tmp_path / "counts", source)
    assert (read.top1 == counts.top1).all()
    assert (read.pairs == counts.pairs).all()
    assert (read.tokens, read.model) == (counts.tokens, counts.model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts", "model"]


def test_counts_of_another_model_or_none_are_refused(tmp_path: Path):
    source = source_in(tmp_path / "model", seed=0)
    counts_of(source).save(tmp_path / "counts")
    with pytest.raises(UpcycleError) as refused:
        Counts.load(tmp_path / "counts", source_in(tmp_path / "other", seed=1))
    assert (refused.value.where, refused.value.allowed) == (str(tmp_path / "counts"), f"counts of {tmp_path / 'other'}")
    fewer = replace(counts_of(source), pairs=counts_of(source).pairs[:1])
    fewer.save(tmp_path / "fewer")
    with pytest.raises(UpcycleError) as refused:
        Counts.load(tmp_path / "fewer", source)
    assert refused.value.allowed == f"counts of {tmp_path / 'model'}"
    (tmp_path / "text").write_text("text")
    np.save(tmp_path / "objects.npy", np.array([1, None]))
    np.save(tmp_path / "ids.npy", np.arange(3))
    (tmp_path / "short").write_bytes((tmp_path / "counts").read_bytes()[:-30])
    made_by = "a file that octavo upcycle --calibrate wrote"
    for name, value, allowed in (
        ("text", None, made_by),
        ("objects.npy", None, made_by),
        ("ids.npy", None, made_by),
        ("short", None, made_by),
        ("none", "No such file or directory", "a readable file"),
        ("model", "Is a directory", "a readable file"),
    ):
        with pytest.raises(UpcycleError) as refused:
            Counts.load(tmp_path / name, source)
        error = refused.value
        assert (error.where, error.value, error.allowed) == (str(tmp_path / name), value, allowed)
        assert len(error.lines) == 1
    with pytest.raises(UpcycleError) as refused:
        counts_of(source).save(tmp_path / "text" / "counts")  # "text" is a file
    assert refused.value.where == str(tmp_path / "text" / "counts")
    assert refused.value.allowed == "a path that can be written"
