"""Letters in answers, and boxes in images."""

import numpy as np
import pytest

from tests.trainer.evaluation.scorers.rows_choices import ANSWERS, OPTIONS
from trainer.evaluation.scorers import boxes, choices


@pytest.mark.parametrize(("answer", "option", "letters", "mmlu", "mmmu"), ANSWERS)
def test_letters_are_those_of_the_published_rules(
    answer: str, option: str | None, letters: str, mmlu: str | None, mmmu: str | None
) -> None:
    assert choices.option(answer, OPTIONS) == option
    assert choices.letters(answer) == letters
    assert choices.mmlu_pro(answer) == mmlu
    assert choices.mmmu_pro(answer, OPTIONS) == mmmu


def test_overlap_is_that_of_counted_pixels() -> None:
    generator = np.random.default_rng(0)
    for _ in range(50):
        masks, found = [], []
        for _ in range(2):
            (left, right), (top, bottom) = (sorted(generator.choice(60, 2, replace=False)) for _ in range(2))
            mask = np.zeros((60, 60), bool)
            mask[top:bottom, left:right] = True
            masks.append(mask)
            found.append((left, top, right, bottom))
        wanted = (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
        assert boxes.overlap(*found) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (20, 80, 60, 160)),  # shares of an image of 200 x 400
        ("The box is [100 200 300 400].", (20, 80, 60, 160)),  # thousandths
        ("[1001, 100, 20, 300]", (20, 100, 200, 300)),  # pixels, cut and in order
        ("1, 2 and [300, 400, 100, 200]", (20, 80, 60, 160)),
        ("x 100, y 200", None),
    ],
)
def test_boxes_are_read_in_three_units(answer: str, box: tuple[int, ...] | None) -> None:
    found = boxes.box(answer)
    if box is None:
        assert found is None
    else:
        assert found is not None
        assert boxes.in_pixels(found, 200, 400) == pytest.approx(box)
