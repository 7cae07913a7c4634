"""Documents about recordings: excerpts, texts whose answers are right, and recordings that cannot be used."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.trainer.corpora.science.recordings import layouts
from trainer.corpora.science.draw import Draw
from trainer.corpora.science.recordings.card import card
from trainer.corpora.science.recordings.documents import Made, documents
from trainer.corpora.science.recordings.forms import CHOICE, FORMS, NARRATION, OPEN, YES_NO, described, task
from trainer.corpora.science.recordings.labelled import Item, Label, Survey
from trainer.corpora.science.recordings.sources import CALLS, ECG, EEG, RECORDED, RecordedSource
from trainer.data.errors import DataError
from trainer.data.media.readers.read import read_recording
from trainer.data.media.readers.recording import Recording

pytest.importorskip("pyedflib")
pytest.importorskip("soundfile")


def lines(source: RecordedSource, survey: Survey, made: Made | None = None, **changes: Any) -> list[dict[str, Any]]:
    options = {"root": None, "seed": 0, "tasks": 1, "seconds": source.seconds, "skip": False, **changes}
    return [*documents(source, survey, made or Made(), **options)]


def text_of(line: dict[str, Any]) -> str:
    text = line["content"][1]["text"]
    assert isinstance(text, str)
    return text


def read(part: dict[str, Any], root: Path | None = None) -> Recording:
    """The recording of a part, as `octavo tokenize` reads it."""
    options = {key: value for key, value in part.items() if key not in ("type", "path")}
    return read_recording(Path(root or "", part["path"]), where="part", **options)


@pytest.fixture(scope="module")
def scalp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return layouts.write_eeg(tmp_path_factory.mktemp("disk") / "mumtaz", seconds=7, rate=32)


# -- excerpts --------------------------------------------------------------------------------------------------------


def test_a_long_recording_becomes_excerpts_of_equal_length_with_every_step_once(scalp: Path) -> None:
    made = Made()
    found = lines(EEG, EEG.survey(scalp), made, seconds=3.0)
    parts = [line["content"][0] for line in found]
    assert (len(found), made.documents, made.recordings) == (72, 72, 24)
    path = scalp / "H S2 EC.edf"
    own = [part for part in parts if part["path"] == str(path.resolve())]
    whole = read_recording(path, where="whole", channels=EEG.survey(scalp).channels)
    np.testing.assert_array_equal(np.concatenate([read(part).values for part in own]), whole.values)
    assert {round(part["seconds"], 3) for part in parts} == {2.333}
    assert (read(own[1]).rate, read(own[1]).channels, set(read(own[1]).units)) == (32.0, whole.channels, {"uV"})
    assert "19 channels (Fp1, F3, C3," in text_of(found[0])
    assert re.search(r"in uV[,;] 32 Hz[,;] 2.3\d s[,;] with the eyes open", text_of(found[0]))


def test_a_short_recording_is_whole(scalp: Path) -> None:
    found = lines(EEG, EEG.survey(scalp))
    assert len(found) == 24
    assert all({*line["content"][0]} == {"type", "path", "channels"} for line in found)
    assert read(found[0]["content"][0]).steps == 7 * 32


def test_spans_of_a_file_are_read_once_and_end_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = layouts.write_infants(tmp_path / "infants", twins=2, rate=8000)
    survey = CALLS.survey(directory)
    last = survey.items[10]
    survey.items[10] = replace(last, span=(1.95, 2.3))
    reads: list[Path] = []
    monkeypatch.setattr(
        "trainer.corpora.science.recordings.documents.read_recording",
        lambda path, **more: (reads.append(path), read_recording(path, **more))[1],
    )
    found = lines(CALLS, survey, root=tmp_path)
    assert len(reads) == len({*reads}) == 4
    assert found[1]["content"][0] == {
        "type": "signal", "path": "infants/data/twin_1/20160901_Twin1_marmoset1.wav", "start": 0.15, "seconds": 0.1,
    }  # fmt: skip
    assert read(found[1]["content"][0], tmp_path).steps == 800
    assert found[10]["content"][0]["seconds"] == pytest.approx(0.05)
    assert found[1]["labels"] == ["phee"]


def test_the_split_of_a_subject_is_that_of_all_its_documents(scalp: Path) -> None:
    made, survey = Made(), EEG.survey(scalp)
    found = lines(EEG, survey, made, tasks=4, seconds=3.0)
    splits = {(line["origin"], line["split"]) for line in found}
    assert len(splits) == len({origin for origin, _ in splits}) == 8
    held = {origin for origin, split in splits if split == "heldout"}
    assert held == {f"eeg_depression/{subject}" for subject in survey.held_out} == {*made.held_out}
    assert Counter(line["form"] for line in found) == dict.fromkeys(FORMS, 72)


def test_a_recording_under_the_name_of_another_subject_is_left_out(scalp: Path, tmp_path: Path) -> None:
    """As in the published files; a copy would be on both sides of a split."""
    for name in ("H S1 EC", "H S2 EC"):
        (tmp_path / f"{name}.edf").write_bytes((scalp / "H S1 EC.edf").read_bytes())
    made = Made()
    (line,) = lines(EEG, EEG.survey(tmp_path), made)
    assert line["origin"] == "eeg_depression/H S1"
    assert sum(made.left_out.values()) == 1
    assert "H S2 EC.edf" in next(iter(made.left_out))


def test_a_recording_with_two_labels_ends_the_work_or_is_listed(scalp: Path, tmp_path: Path) -> None:
    for name in ("H S1 EC", "MDD S2 EC"):
        (tmp_path / f"{name}.edf").write_bytes((scalp / "H S1 EC.edf").read_bytes())
    made = Made()
    assert len(lines(EEG, EEG.survey(tmp_path), made, skip=True)) == 1
    assert [where for where, _ in made.bad] == [str(tmp_path / "MDD S2 EC.edf")]
    with pytest.raises(DataError) as error:
        lines(EEG, EEG.survey(tmp_path))
    assert (error.value.value, error.value.allowed) == (("MDD",), ("H",))


def test_a_data_set_without_documents_is_refused(scalp: Path) -> None:
    survey = replace(EEG.survey(scalp), items=[])
    with pytest.raises(DataError) as error:
        lines(EEG, survey)
    assert error.value.where == "--recordings"


def test_paths_lead_from_behind_links(scalp: Path, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    line = lines(EEG, EEG.survey(scalp), root=tmp_path / "link")[0]
    assert (tmp_path / "link" / line["content"][0]["path"]).is_file()


# -- recordings that cannot be used ----------------------------------------------------------------------------------


@pytest.fixture
def broken(scalp: Path, tmp_path: Path) -> list[str]:
    """Paths of the recordings that cannot be used, of 24."""
    import pyedflib

    for path in scalp.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    cut, other = tmp_path / "H S2 EO.edf", tmp_path / "H S3 TASK.edf"
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pyedflib.EdfWriter(str(other), 1) as file:
        file.setSignalHeader(0, {"label": "EEG Fp1-LE", "dimension": "uV", "sample_frequency": 32, "physical_max": 1.0,
                                 "physical_min": -1.0, "digital_max": 100, "digital_min": -100})  # fmt: skip
        file.writeSamples([np.zeros(64)])
    return [str(cut), str(other)]


def test_the_first_recording_that_cannot_be_read_ends_the_work(broken: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        lines(EEG, EEG.survey(tmp_path))
    assert (error.value.where, error.value.allowed) == (broken[0], "--bad-media skip")


def test_recordings_that_cannot_be_read_are_left_out_and_listed(broken: list[str], tmp_path: Path) -> None:
    survey, made = EEG.survey(tmp_path), Made()
    survey.items.append(replace(survey.items[0], path=tmp_path / "H S9 EC.edf", where="a row"))
    found = lines(EEG, survey, made, skip=True)
    assert [where for where, _ in made.bad] == [*broken, "a row"]
    assert len(found) == made.documents == 22
    assert "- 3 recordings that cannot be read" in card(EEG, survey, made, 30.0, "").splitlines()


def test_a_missing_library_is_no_fault_of_a_recording(scalp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyedflib", None)
    with pytest.raises(DataError) as error:
        lines(EEG, EEG.survey(scalp), skip=True)
    assert error.value.allowed == ".[signals]"


# -- texts -----------------------------------------------------------------------------------------------------------

ASKED = re.compile(
    r"(?:Question: (?P<q1>.*)\nAnswer: (?P<a1>.*)\.\n|(?P<q2>.*)\n\n(?P<a2>.*)\.\n|Q: (?P<q3>.*)\nA: (?P<a3>.*)\.\n)",
    re.DOTALL,
)
CASES = [
    *((EEG, "mumtaz", labels) for labels in (("H",), ("MDD",))),
    *((ECG, "ptb-xl", labels) for labels in (("NORM",), ("MI",), ("CD", "HYP"), ("MI", "STTC", "CD", "HYP"))),
    *((CALLS, "infants", (label,)) for label in ("egg", "twitter")),
]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory, scalp: Path) -> dict[str, Survey]:
    root = tmp_path_factory.mktemp("known")
    infants, ptb_xl = root / "infants", root / "ptb-xl"
    return {
        "mumtaz": EEG.survey(scalp),
        "infants": CALLS.survey(layouts.write_infants(infants, twins=1, rate=1000)),
        "ptb-xl": ECG.survey(layouts.write_ptb_xl(ptb_xl, patients=1, rates=(100,), seconds=1)),
    }


@pytest.mark.parametrize(("source", "name", "labels"), CASES, ids=lambda case: str(getattr(case, "name", case)))
def test_answers_are_right(
    source: RecordedSource, name: str, labels: tuple[str, ...], known: dict[str, Survey]
) -> None:
    words, templates = known[name].labels, source.templates
    answers: Counter[str] = Counter()
    places: Counter[str] = Counter()
    used: set[str] = set()
    for number in range(300):
        for form in FORMS:
            text = task(form, labels, words, templates, Draw(str(number)))
            if form == NARRATION:
                assert all(words[label].phrase in text for label in labels)
                assert not any(words[label].phrase in text for label in words if label not in labels)
                continue
            match = ASKED.fullmatch(text)
            assert match is not None
            question, answer = (next(filter(None, match.group(f"{key}1", f"{key}2", f"{key}3"))) for key in "qa")
            head, *options = question.split("\n")
            used.add(head)
            if form == OPEN:
                assert answer.replace(" and ", ", ").split(", ") == [words[label].name for label in labels]
            elif form == CHOICE:
                by_letter = dict(option.split(". ", 1) for option in options)
                assert [*by_letter] == sorted(by_letter)
                letters = answer.replace(" and ", ", ").split(", ")
                assert {by_letter[letter] for letter in letters} == {words[label].name for label in labels}
                assert len(by_letter) == min(6, len(words))
                places[letters[0]] += 1
            else:
                asked = [label for label in words if words[label].phrase in question]
                opposite = [absent for question_, absent in templates.opposite if question_ == head]
                expected = opposite[0] not in labels if opposite else asked[0] in labels
                assert answer == ("Yes" if expected else "No")
                answers[answer] += 1
    # Half of the questions about a label are about one that there is.
    assert 80 < answers["Yes"] < 220
    if len(labels) == 1:
        assert len(places) == min(6, len(words))
    assert {head for head in used if head in templates.open} == {*templates.open}


def test_a_document_depends_on_its_recording_and_seed(scalp: Path) -> None:
    survey = EEG.survey(scalp)
    some = {(line["origin"], text_of(line)) for line in lines(EEG, survey)}
    survey.items.reverse()
    assert {(line["origin"], text_of(line)) for line in lines(EEG, survey)} == some
    assert {(line["origin"], text_of(line)) for line in lines(EEG, survey, seed=1)} != some
    del survey.items[5:]
    assert {(line["origin"], text_of(line)) for line in lines(EEG, survey)} < some


def test_a_signal_is_described_by_what_is_known_of_it() -> None:
    draw, values = Draw("a"), np.zeros((1000, 1))
    sound = described(Recording(values, 44_100.0, ("0",), ("",)), CALLS.templates, "", draw)
    assert re.fullmatch(r".*1 channel[,;] 44100 Hz[,;] 0.0227 s\.?\n", sound)
    unknown = described(Recording(values, None, ("II",), ("mV",)), ECG.templates, "at rest", draw)
    assert re.fullmatch(r".*1 channel \(II\) in mV[,;] at rest\.?\n", unknown)
    many = Recording(np.zeros((2, 40)), 2.0, tuple(f"E{n}" for n in range(40)), ("mV",) * 20 + ("uV",) * 20)
    assert re.search(r"40 channels in mV, uV[,;] 2 Hz[,;] 1 s", described(many, EEG.templates, "", draw))


def test_a_recording_without_a_rate_is_whole_or_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(9.0))
    item = Item(tmp_path / "a.npy", "a", "someone", ("phee",))
    survey, made = Survey("some", {"phee": Label("phee", "a phee call")}, [item], frozenset(), ""), Made()
    (line,) = lines(CALLS, survey, made)
    assert "- 1 recording: unknown; 1 channel (0); unit none" in card(CALLS, survey, made, None, "").splitlines()
    assert line["content"][0] == {"type": "signal", "path": str(tmp_path / "a.npy")}
    with pytest.raises(DataError) as error:
        lines(CALLS, survey, seconds=1.0)
    assert error.value.where == "a"


def test_the_card_counts_labels_by_split_and_has_the_facts_of_the_signals(scalp: Path) -> None:
    survey, made = EEG.survey(scalp), Made()
    lines(EEG, survey, made, seconds=3.0)
    found = card(EEG, survey, made, 3.0, "--source eeg_depression").splitlines()
    assert "| MDD | major depressive disorder | 27 | 9 |" in found
    assert "| subjects | | 6 | 2 |" in found
    assert any("32 Hz; 19 channels (EEG Fp1-LE," in line and line.endswith("unit uV") for line in found)
    assert any("3 s" in line for line in found)
    assert any("Licence" in line for line in found)
    assert {*RECORDED} == {"eeg_depression", "ecg_abnormality", "marmoset_calls"}
    assert YES_NO in " ".join(found)
