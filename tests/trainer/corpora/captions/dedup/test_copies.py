"""Copies of figures are removed, and different figures with the same axes are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.trainer.corpora.captions.dedup import drawn
from trainer.corpora.captions.dedup.clusters import Near, by_rank, find_near, near_copies
from trainer.corpora.captions.dedup.compare import Thumbnail, are_copies, thumbnail
from trainer.corpora.captions.dedup.looks import Looks, looks_of, without_margins


def small(picture: drawn.Picture) -> Thumbnail:
    inside = without_margins(picture)
    assert inside is not None
    return thumbnail(inside)


def test_different_curves_with_one_phash_are_not_copies() -> None:
    """Two peaks whose hashes are equal, and a copy of the first with another line."""
    figures = [drawn.Figure("pillow", "peak", peak(centre)) for centre in (0.5, 0.53)]
    first, second = map(drawn.draw, figures)
    assert distance(looks_of(first), looks_of(second)) <= 4
    assert not are_copies(small(first), small(second))
    recoloured = drawn.copy_of(figures[0], "colours")
    assert recoloured.tobytes() != first.tobytes()
    assert are_copies(small(first), small(recoloured))


def peak(centre: float) -> drawn.Floats:
    return 0.8 * np.exp(-(((np.linspace(0, 1, 300) - centre) / 0.08) ** 2))


def distance(one: Looks, other: Looks) -> int:
    return (one.phash ^ other.phash).bit_count()


def test_a_margin_changes_no_hash() -> None:
    shown = drawn.figure("pillow", "spectrum", 0)
    one, other = looks_of(drawn.draw(shown)), looks_of(drawn.copy_of(shown, "margin"))
    assert one.exact != other.exact
    assert (one.phash, one.turns) == (other.phash, other.turns)


def test_a_chain_of_near_copies_does_not_run_together() -> None:
    """0 is like 1, 1 like 2, 2 like 3: the first is kept for the second, the third for the fourth."""
    values = np.array([0b0, 0b1111, 0b11111111, 0b111111111111], np.uint64)
    pixels, ids = np.array([4, 3, 2, 1]), np.array([b"a", b"b", b"c", b"d"], "S16")
    space = find_near(values, 4)
    found = near_copies(by_rank(pixels, ids), [space], lambda one, other: True)
    assert found.of.tolist() == [0, 0, 2, 2]
    assert found.pairs == 3


def test_a_hash_of_many_figures_is_not_compared_quadratically() -> None:
    count = 3000
    space: Near = find_near(np.zeros(count, np.uint64), 4)
    ranked = np.arange(count)
    found = near_copies(ranked, [space], lambda one, other: False)
    assert found.of.tolist() == list(range(count))
    assert found.compared < 64 * count
    assert found.cut == count - 65


def test_copies_are_removed_and_figures_kept_in_a_style_not_tuned_on(tmp_path: Path) -> None:
    counts = {"peak": 2, "sines": 2, "heat": 1, "logo": 6}  # one logo's hashes at 80 pixels are 6 bits off
    found = drawn.judged(tmp_path, ["serif"], counts, drawn.COPIES)
    assert (found.copies, found.figures) == (5 + 6 * 4, 5 + 6)
    assert found.removed == found.copies, found.left
    assert found.lost == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_copies_and_figures_of_styles_not_tuned_on(tmp_path: Path) -> None:
    counts = {"peak": 30, "spectrum": 6, "sines": 20, "bars": 6, "scatter": 6, "heat": 12, "logo": 6}
    found = []
    for style in drawn.HELD_OUT:
        (tmp_path / style).mkdir()
        found.append(drawn.judged(tmp_path / style, [style], counts, drawn.COPIES))
    assert sum(one.removed for one in found) >= 0.98 * sum(one.copies for one in found), [one.left for one in found]
    assert sum(one.lost for one in found) <= 0.01 * sum(one.figures for one in found)
