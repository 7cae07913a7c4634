"""No answer makes a scorer fail, take long, or return what JSON does not hold."""

import json
import time

import pytest

from tests.trainer.evaluation.scorers.cases import CASES
from tests.trainer.evaluation.scorers.replaced import replaced
from trainer.evaluation.scorers import boxes, choices, signals
from trainer.evaluation.scorers.drawing.compare import svg_in
from trainer.evaluation.scorers.instructions import follow

ODD = {
    "one long line": "ab " * 40_000,
    "many lines": "word\n" * 20_000,
    "5,000 digits": "9" * 5_000,
    "a boxed number of 5,000 digits": r"\boxed{" + "9" * 5_000 + "}",
    "a formula of 5,000 digits": "C" + "9" * 5_000,
    "open braces": r"\boxed{{" * 5_000,
    "nested": "{" * 5_000 + "}" * 5_000,
    "endless thinking": "<think>" + "so " * 20_000,
    "marks": "...!?.,;:" * 2_000,
    "surrogates and zeros": "\x00\x01\x7f\u2028 ½ ①",
}
LIMIT = 3.0  # CPU seconds for an answer and all scorers; quadratic rules take minutes


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_scorers_bear_any_answer(name: str) -> None:
    answer, start = ODD[name], time.process_time()
    with replaced():
        for title, case in CASES.items():
            if (
                "captions" not in title
            ):  # METEOR aligns words by its nature in quadratic time, and nltk is slow to import
                json.dumps(case.ours.one(answer, case.rows[0][1]))
    choices.option(answer, {"A": "x"})
    choices.letters(answer)
    choices.mmlu_pro(answer)
    choices.mmmu_pro(answer, {"A": "x"})
    boxes.box(answer)
    boxes.point(answer)
    svg_in(answer)
    signals.events([answer], [{"contain": True, "p": 3}], "STEAD")
    for check in ("count:numbers", "sentence:increment", "format:quotes", "words:palindrome"):
        follow.score(answer, [check], [{"N": 2, "small_n": 1}])
    assert time.process_time() - start < LIMIT
