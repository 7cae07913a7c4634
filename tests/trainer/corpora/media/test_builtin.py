"""Toy documents with images and signals: what is asked, what answers it, and that nothing else does."""

from __future__ import annotations

import io
from collections import Counter

import numpy as np
import pytest

from trainer.corpora.extras import ALONE
from trainer.corpora.media import builtin, recorded
from trainer.corpora.media.pictures import SIDE, drawing, molecule, plot
from trainer.corpora.media.questions import ANSWER, QUESTIONS, asked
from trainer.corpora.media.recorded import QUARTERS, STEPS, Piece, pieces, series_files
from trainer.corpora.packages import installed_version
from trainer.data.errors import DataError
from trainer.data.media.images import decode

pytest.importorskip("rdkit")


@pytest.fixture(scope="module")
def few() -> list[Piece]:
    try:
        series_files()
    except DataError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorded, "PER_QUARTER", 5)
        return pieces()


def pixels(png: bytes) -> np.ndarray:
    return decode(png, where="picture", max_pixels=SIDE**2)


def test_answers_are_read_as_they_were_written() -> None:
    text = asked(recorded="a hand", quarter="first") + "This is it, C2H6O.\n"
    assert ANSWER.findall(text) == [(QUESTIONS["recorded"], "a hand"), (QUESTIONS["quarter"], "first")]


def test_kind_quarter_and_length_do_not_predict_one_another(few: list[Piece]) -> None:
    counts = Counter((piece.kind, piece.quarter) for piece in few)
    assert len(counts) == 9 * len(QUARTERS)
    assert set(counts.values()) == {5}
    assert {piece.values.shape for piece in few} == {(STEPS,)}


def test_the_quarter_is_that_of_the_first_highest_value() -> None:
    values = np.zeros(STEPS)
    values[[17, 40]] = 3.0
    assert Piece("series", "0/0", "a hand", values, None).quarter == "second"


def test_a_motion_has_its_class_and_rate(few: list[Piece]) -> None:
    rates = {piece.kind: piece.rate for piece in few}
    assert {kind for kind, rate in rates.items() if rate == 10.0} == set(recorded.MOTIONS.values())


def test_a_plot_rises_where_its_values_do() -> None:
    blue = (pixels(plot(np.linspace(0.0, 1.0, STEPS))) == (0, 70, 200)).all(axis=2)
    rows, columns = np.nonzero(blue)
    assert np.corrcoef(rows, columns)[0, 1] < -0.99


def test_a_drawing_shows_an_element_in_its_colour() -> None:
    def red(smiles: str) -> int:
        image = pixels(drawing(molecule(smiles))).astype(int)
        return int(((image[:, :, 0] - image[:, :, 1:].max(axis=2)) > 80).sum())

    assert red("CCO") > 10
    assert red("CCN") == 0
    assert molecule("not a molecule") is None


@pytest.mark.slow  # all records of PubChem; quick: the parts above, and the run of tests/bench/test_media_used
def test_pictures_and_signals_ask_about_what_they_show(few: list[Piece], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "PER_QUARTER", 2)
    monkeypatch.setattr(builtin, "PER_RINGS", 2)
    pictures, signals = [*builtin.read_pictures()], [*builtin.read_signals()]
    drawn = [document for document in pictures if document.origin.startswith("drawing/")]
    assert len(pictures) - len(drawn) == len(signals) == 9 * len(QUARTERS) * 2
    elements = Counter(ANSWER.findall(document.parts[1])[0][1] for document in drawn)
    assert elements == dict.fromkeys(("oxygen", "nitrogen", "sulfur", "fluorine", "chlorine", "bromine"), 6)
    assert all("This is " in document.parts[1] for document in drawn)
    with io.BytesIO(pictures[0].parts[0]["bytes"]) as file:
        assert file.read(4) == b"\x89PNG"
    assert {tuple(signal.parts[0]["values"].shape) for signal in signals} == {(STEPS,)}


def test_a_missing_package_that_is_installed_alone_is_named_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALONE, "no-such-package", "no-such-package==1.0")
    with pytest.raises(DataError) as caught:
        installed_version("no-such-package")
    assert caught.value.allowed == "pip install --no-deps no-such-package==1.0"
