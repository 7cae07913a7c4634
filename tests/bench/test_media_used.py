"""The measurement of what media are worth to answers, on a small corpus and a run of a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench.media_used import answers_of, measure, shuffled
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.mixture import PhaseConfig
from trainer.corpora import toy
from trainer.corpora.media import builtin, recorded
from trainer.corpora.media.questions import QUESTIONS
from trainer.corpora.media.recorded import QUARTERS, series_files
from trainer.corpora.science.records import Record, Table
from trainer.corpora.tokenize import write
from trainer.data.build import build_data
from trainer.data.errors import DataError
from trainer.data.protocols import Data
from trainer.run.process import train

VOCABULARY = 480
COMPOUNDS = {  # name -> formula and SMILES
    "ethanol": ("C2H6O", "CCO"), "propanol": ("C3H8O", "CCCO"), "oxane": ("C5H10O", "C1CCOCC1"),
    "ethanamine": ("C2H7N", "CCN"), "piperidine": ("C5H11N", "C1CCNCC1"), "ethanethiol": ("C2H6S", "CCS"),
    "thiane": ("C5H10S", "C1CCSCC1"), "chloroethane": ("C2H5Cl", "CCCl"), "bromoethane": ("C2H5Br", "CCBr"),
    "fluoroethane": ("C2H5F", "CCF"), "fluorobenzene": ("C6H5F", "c1ccccc1F"), "bromobenzene": ("C6H5Br", "c1ccccc1Br"),
}  # fmt: skip
SMALL = [f"model.vocab_size={VOCABULARY}", "model.image_token=478", "model.signal_token=479"]
SMALL += ["model.hidden_size=64", "model.num_layers=1", "model.num_experts=8", "model.experts_per_token=8"]
SMALL += ["model.vision.out_width=64", "model.signals.out_width=64", "data.holdout_fraction=0.4"]
SMALL += ["data.sources.pictures.unique_tokens=4000", "data.sources.signals.unique_tokens=4000"]


def few_compounds() -> list[Table]:
    records = [
        Record(name, name, {"formula": formula, "smiles": smiles}) for name, (formula, smiles) in COMPOUNDS.items()
    ]
    return [Table("compounds", "compound", "compounds", {}, records)]


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The recipe with a small model, on a small corpus of its two sources with media, which is built."""
    pytest.importorskip("rdkit")
    try:
        series_files()
    except DataError as error:
        pytest.skip(str(error))
    run = tmp_path_factory.mktemp("media_used")
    few = ["train.steps=3", "train.global_batch=4", "train.micro_batch=4", "train.eval_every=0", "logging.console=off"]
    whole = compose(
        ["recipe=toy_multimodal", *SMALL, *few, f"data.cache_dir={run / 'cache'}", f"run.dir={run / 'run'}"]
    )
    sources = {name: source for name, source in whole.data.sources.items() if source.modality != "text"}
    phases = {"all": PhaseConfig(tokens=sum(source.tokens for source in sources.values()))}
    small = replace(whole, data=replace(whole.data, sources=sources, phases=phases))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "HAS_WHEEL", False)
        patch.setattr(toy, "VOCAB_SIZE", VOCABULARY)
        patch.setattr(recorded, "PER_QUARTER", 4)
        patch.setattr(builtin, "identities", few_compounds)
        build_data(small.data, seed=0, vocab_size=VOCABULARY, model=small.model)
    return small


@pytest.fixture
def data(cfg: Config) -> Data:
    return build_data(cfg.data, seed=0, vocab_size=VOCABULARY, model=cfg.model)


@pytest.mark.parametrize("source", ["pictures", "signals"])
def test_answers_are_found_and_media_change_places_among_the_same_questions(data: Data, source: str) -> None:
    assert data.text is not None
    windows = data.text.read_split("heldout", source, data.text.positions("heldout", source, 1 << 30))
    answers = [*answers_of(windows, data.text.tokenizer)]
    assert len(answers) == 2 * len(windows.media)
    for answer in answers:
        words = data.text.tokenizer.decode(windows.tokens_BL[answer.row, answer.first : answer.last].tolist())
        assert answer.answer in words
        assert len(words) <= len(answer.answer) + len(" .\n")
    quarters = [answer.answer for answer in answers if answer.question == QUESTIONS["quarter"]]
    assert set(quarters) == set(QUARTERS)
    (other,) = shuffled([windows], [answers])
    before, after = ([_values(medium.value).tobytes() for medium in one.media] for one in (windows, other))
    assert sorted(before) == sorted(after)
    assert sum(one == two for one, two in zip(before, after, strict=True)) < len(before) // 5  # equal pictures
    assert [medium[:4] for medium in windows.media] == [medium[:4] for medium in other.media]


def _values(value: object) -> np.ndarray:
    """The pixels of an image with its grid, or the values of a prepared signal."""
    found: np.ndarray = value[0]  # type: ignore[index]
    return found


def test_a_run_of_the_recipe_is_measured(cfg: Config) -> None:
    assert train(cfg) == 0
    results = measure(Path(str(cfg.run.dir)))
    assert [result.source for result in results] == ["pictures", "signals"]
    for result in results:
        assert result.answers > 20
        assert 0 < result.right.nats < 7
        assert 0.1 < result.most_frequent < 0.6
        assert 0 <= result.shuffled.exact <= 1
