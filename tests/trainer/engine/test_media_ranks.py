"""Images and signals of requests on ranks that share the experts: each rank's answers have the bits of training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.data.media import illustrated
from tests.trainer.engine.asked import Trained
from tests.trainer.illustrated_run import train_illustrated
from trainer import api
from trainer.data.batch import media_of
from trainer.data.media.readers.recording import Recording
from trainer.data.windows import Prepared

ASKED = ("see <IMG_CONTEXT> beside <TS_CONTEXT> here", "what is <IMG_CONTEXT>", "a text alone, longer than the others")
GIVEN = ("image signal", "image", "")  # media of each prompt


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model has both towers and two router groups."""
    return train_illustrated(tmp_path_factory.mktemp("illustrated"), init_std=0.3, router_groups=2)


def answer_and_train(run: Path) -> list[float]:
    """Answers of this rank, compared with one packed pass of the same model over them and their media. Returns the
    first log-probability of each."""
    model = api.load(run, device="cpu")
    world = model.world
    mine = (0, 2) if world.rank == 0 else (1,)
    media = [
        [
            model.image(illustrated.image(10 * world.rank + number, 1, 2))
            if kind == "image"
            else model.signal(Recording(illustrated.wave(number + 1), 25.0, ("a", "b"), ("", "")))
            for kind in GIVEN[number].split()
        ]
        for number in mine
    ]
    answers = model.complete([ASKED[number] for number in mine], 6, media=media, score_prompt=True)
    sequences = [[*answer.prompt, *answer.ids] for answer in answers]
    tokens = sum(map(len, sequences))
    fillers = [[0] * (max(world.gather_count(tokens)) + 1 - tokens)]  # equally many tokens on each rank
    everything = [medium for some in media for medium in some]
    given = media_of([Prepared(one.kind, 0, 0, one.tokens, one.value) for one in everything])
    assert given is not None
    trained = Trained(model.engine.model, [*sequences, *fillers], images=given.images, signals=given.signals)
    for number, answer in enumerate(answers):
        log_probs, routes = trained.of(number, len(answer.prompt))
        assert np.array_equal(answer.log_probs, log_probs)
        assert np.array_equal(answer.routes, routes)
        assert answer.prompt_scores is not None
        trained.check_scores(number, 1, answer.prompt_scores, 0)
    return [float(answer.log_probs[0]) for answer in answers]


def test_ranks_with_media_of_their_own_equal_training_at_equal_ep(run: Path) -> None:
    (first, alone), (other,) = on_ranks(2, answer_and_train, run)
    assert len({first, alone, other}) == 3
