"""The measurement of what media are worth to answers, on a small corpus and a run of a few steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.bench import media_used
from tests.bench.media_used import Result, Score, answers_of, measure, shuffled, signed
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
    found: np.ndarray = value[0]
    return found


def test_a_run_of_the_recipe_is_measured(cfg: Config) -> None:
    assert train(cfg) == 0
    reports: list[tuple[str, int, int]] = []
    results = measure(Path(str(cfg.run.dir)), lambda *report: reports.append(report))
    assert [result.source for result in results] == ["pictures", "signals"]
    for result in results:
        assert result.answers > 20
        assert 0 < result.right.nats < 7
        assert 0.1 < result.most_frequent < 0.6
        assert 0 <= result.shuffled.exact <= 1
        assert result.misses()
    ends = [what for what, done, of in reports if done == of]
    assert ends == [f"{source}, {media} media" for source in ("pictures", "signals") for media in ("right", "shuffled")]


@pytest.mark.parametrize(
    ("right", "shuffled", "misses"),
    [
        (Score(0.5, 0.60), Score(0.9, 0.25), 0),
        (Score(0.5, 0.60), Score(0.79, 0.25), 1),  # the loss
        (Score(0.5, 0.24), Score(0.9, 0.25), 1),  # right answers are as rare as a guess
        (Score(0.5, 0.60), Score(0.9, 0.30), 1),  # other media answer as well
        (Score(0.5, 0.20), Score(0.5, 0.50), 3),
    ],
)
def test_a_source_passes_when_its_answers_need_the_right_media(right: Score, shuffled: Score, misses: int) -> None:
    result = Result("signals", 100, right, shuffled, most_frequent=0.22)
    assert len(result.misses()) == misses


@pytest.mark.parametrize(("rise", "code"), [(0.4, 0), (0.2, 1)])
def test_the_exit_code_says_whether_all_sources_pass(
    rise: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, other = (
        Result(source, 100, Score(0.5, 0.6), Score(0.5 + of, 0.2), 0.22) for source, of in (("a", 0.4), ("b", rise))
    )
    monkeypatch.setattr(media_used, "measure", lambda run, report: [good, other])
    monkeypatch.setattr("sys.argv", ["media_used", "run"])
    assert media_used.main() == code
    assert capsys.readouterr().err.count("error: b") == code


def test_a_rise_has_a_sign_that_is_never_minus_zero() -> None:
    assert [signed(nats) for nats in (-0.004, 0.0, 0.004, -0.006, 0.314)] == [
        "+0.00",
        "+0.00",
        "+0.00",
        "-0.01",
        "+0.31",
    ]


def test_lines_about_progress_are_seconds_apart(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter((0.0, 4.0, 5.0, 6.0, 11.0))
    monkeypatch.setattr(media_used.time, "monotonic", lambda: next(clock))
    progress = media_used.Progress()
    for done in range(1, 5):
        progress("signals", done, 4)
    assert capsys.readouterr().err == "signals: 2 of 4 windows\nsignals: 4 of 4 windows\n"
