import numpy as np
import pytest

from trainer.corpora.captions.routing.__main__ import main
from trainer.corpora.captions.routing.fit import Labelled, calibrate, fit
from trainer.corpora.captions.routing.measure import measure, reliability, table
from trainer.corpora.captions.routing.model import BUILT_IN, Calibration, Scored, TextModel
from trainer.corpora.captions.routing.subjects import SUBJECTS
from trainer.data.errors import DataError

WORDS = {
    "life": "cells tissue gene expression mice neurons protein membrane antibody species larvae genome",
    "earth": "rainfall sediment basin seismic crust glacier monsoon aquifer latitude sea level cloud",
    "other": "invoice customer login server request template browser session account button query email",
}

EVERYDAY = ["the", "mean", "of", "all", "over", "time", "and", "its", "change"]


def texts_of(packages):
    """Sentences that mix a subject's words with everyday ones."""
    found = []
    for subject, words in WORDS.items():
        for number in range(packages):
            draw = np.random.default_rng([number, len(subject)])
            for _ in range(30):
                chosen = [
                    *draw.choice(words.split(), 6),
                    *draw.choice(EVERYDAY, 6),
                ]
                found.append(Labelled(f"{subject}{number}", subject, " ".join(chosen[:9]), " ".join(chosen[9:])))
    return found


@pytest.fixture(scope="module")
def trained():
    return fit(texts_of(4), features=2000, folds=2)


def test_training_learns_the_words_of_packages_and_holds_for_others(trained):
    held_out = [text for text in texts_of(6) if text.package[-1] in "45"]
    figures = measure(trained, held_out, 1)
    assert figures["all"]["accuracy"] > 0.98
    assert figures["all"]["texts"] == len(held_out) == sum(map(sum, figures["confusion"]))
    assert set(figures["packages"]) == {text.package for text in held_out}
    assert f"| all | {len(held_out)} |" in table(figures)


def test_the_same_texts_give_the_same_file_and_it_is_read_back(trained, tmp_path):
    fit(texts_of(4), features=2000, folds=2).save(tmp_path / "again.npz")
    trained.save(tmp_path / "model.npz")
    assert (tmp_path / "model.npz").read_bytes() == (tmp_path / "again.npz").read_bytes()
    texts = (["Sediment of a basin", "Login of a customer", ""], ["", "seismic", ""])
    read = TextModel.load(tmp_path / "model.npz")
    found = read.probabilities(*texts)
    assert (found == trained.probabilities(*texts)).all()
    assert np.allclose(found.sum(1), 1)
    assert found[:, [SUBJECTS.index(subject) for subject in WORDS]].sum(1) == pytest.approx(1)  # it has no other texts


def test_a_text_that_says_little_has_the_subject_of_its_document(trained):
    """The same words beside crops about glaciers, and beside crops about invoices."""
    for subject, words in WORDS.items():
        found = trained.probabilities(["Change of the mean", words], ["", words])
        assert SUBJECTS[found[0].argmax()] == subject


def test_a_document_without_a_known_word_is_left_open(trained):
    for texts in ([""], ["12 %"], ["", "Łódź"]):
        found = trained.probabilities(texts, [""] * len(texts))
        assert (found == found[0]).all()
        assert found[0].sum() - found[0, SUBJECTS.index("other")] == pytest.approx(0.5)


def test_files_that_are_not_models_are_reported_and_not_executed(trained, tmp_path):
    trained.save(tmp_path / "good.npz")
    good = dict(np.load(tmp_path / "good.npz"))
    ran = tmp_path / "ran"

    class Trap:
        def __reduce__(self):
            return ran.touch, ()

    pickled = np.empty(1, object)
    pickled[0] = Trap()
    wrong = {
        "pickled": good | {"bias": pickled}, "short": good | {"rarity": good["rarity"][1:]},
        "typed": good | {"weights": good["weights"].astype(float)},
        "lacking": {name: array for name, array in good.items() if name != "scale"},
        "about": good | {"about": np.frombuffer(b'{"format": "x", "subjects": []}', np.uint8)},
    }  # fmt: skip
    for name, arrays in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "good.npz").read_bytes()[:500])
    for name in (*wrong, "cut"):
        with pytest.raises(DataError) as caught:
            TextModel.load(tmp_path / f"{name}.npz")
        assert caught.value.where == str(tmp_path / f"{name}.npz")
    assert not ran.exists()


def test_calibration_makes_probabilities_frequencies():
    """Labels drawn from known probabilities, of logits that are far too sure, most so for short texts."""
    draw = np.random.default_rng(0)
    logits, known = draw.normal(size=(4000, 7)), draw.integers(1, 200, 4000)
    shift = (0.3, 0, 0, -0.3, 0, 0, 0)
    true = Calibration(a=-0.5, b=0.4, shift=shift).probabilities(Scored(logits, known, 0 * logits, known))
    labels = np.array([draw.choice(7, p=row) for row in true])
    raw = Scored(logits * 20, known, 0 * logits, known)
    found = calibrate(raw, labels, np.ones(4000))
    assert found.b == pytest.approx(0.4, abs=0.06)

    def error(calibration):
        p = calibration.probabilities(raw)
        return reliability(p.max(1), p.argmax(1) == labels, np.ones(4000)).error

    assert error(found) < 0.02 < 0.1 < error(Calibration())


def test_reliability_compares_each_bin_with_what_is_so():
    found = reliability(np.array([0.1, 0.1, 0.95, 1.0]), np.array([0, 1, 1, 1]), np.array([1.0, 1.0, 2.0, 2.0]))
    assert found.rows == ((pytest.approx(1 / 3), 0.1, 0.5), (pytest.approx(2 / 3), 0.975, 1.0))
    assert found.error == pytest.approx(0.4 / 3 + 0.025 * 2 / 3)


def test_the_model_of_the_package_is_small_and_its_figures_are_those_promised():
    assert BUILT_IN.stat().st_size < 1e6
    model = TextModel.load()
    alone, documents = model.facts["held_out_1"], model.facts["held_out_8"]
    assert alone["all"]["texts"] == documents["all"]["texts"] > 4000
    assert documents["all"]["accuracy"] >= 0.9
    assert documents["all"]["mean_of_subjects"] >= 0.85
    assert documents["all"]["science"] >= 0.99
    assert alone["all"]["science"] >= 0.9
    for figures in (alone, documents):
        assert figures["reliability_of_science"]["error"] < 0.05
        assert figures["reliability_of_subject"]["error"] < 0.05


def test_the_model_of_the_package_names_the_subject_of_captions():
    captions = {
        "life": "Expression of the transgene in neurons of the hippocampus of mice, stained with an antibody.",
        "chemistry": "Reaction scheme for the synthesis of the ligand; yields after purification of the molecule.",
        "earth": "Map of seismic stations and earthquake epicentres along the fault, with rainfall of the basin.",
        "materials": "Crystal structure of the perovskite oxide with its lattice parameters and phonon band structure.",
        "physics": "Light curve of the star observed by the telescope, and the spectrum of the galaxy at its redshift.",
        "mathematics": "Every finite group acts on the vertices of the graph; proof of the theorem for polynomials.",
        "other": "Screenshot of the login page of the web application, where users enter a password to send a request.",
    }
    model = TextModel.load()
    assert [SUBJECTS[model.probabilities([text], [""]).argmax()] for text in captions.values()] == [*captions]


@pytest.mark.parametrize(
    "words", [[], ["weigh", "model.npz"], ["measure", "model.npz", "--wheels=x"], ["train", "wheels"]]
)
def test_a_wrong_command_is_one_line_and_2(words, capsys):
    assert main(words) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_the_built_in_model_prints_its_figures(capsys):
    assert main(["measure", str(BUILT_IN)]) == 0
    assert "| all | 4377 |" in capsys.readouterr().out
