"""Published data sets as they are on disk: labels, subjects, splits, what is left out, and what is refused."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.corpora.science.recordings import layouts
from trainer.corpora.science.recordings import calls, ecg, eeg
from trainer.corpora.science.recordings.labelled import Item, Label, hold_out
from trainer.data.errors import DataError

pytest.importorskip("pyedflib")
pytest.importorskip("wfdb")
pytest.importorskip("soundfile")


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All layouts; tests that change a file copy theirs."""
    root = tmp_path_factory.mktemp("published")
    layouts.write_eeg(root / "mumtaz", people=11, seconds=1, rate=16)
    layouts.write_ptb_xl(root / "ptb-xl", rates=(100,), seconds=1)
    layouts.write_marmaudio(root / "marmaudio", rate=8000)
    layouts.write_infants(root / "infants", rate=8000)
    return root


def copied(disk: Path, name: str, to: Path) -> Path:
    return Path(shutil.copytree(disk / name, to / name))


def rewrite(path: Path, change: Callable[[str], str]) -> None:
    old = path.read_text()
    path.write_text(change(old))
    assert path.read_text() != old


def test_eeg_has_its_labels_subjects_and_conditions_in_its_names(disk: Path) -> None:
    found = eeg.survey(disk / "mumtaz")
    assert Counter(item.labels for item in found.items) == {("H",): 33, ("MDD",): 33}
    assert Counter(item.subject for item in found.items) == {
        f"{group} S{number}": 3 for group in ("H", "MDD") for number in range(1, 12)
    }
    settings = {item.path.stem: item.setting for item in found.items}
    assert settings["6921143_H S1 EO"] == "with the eyes open"
    assert settings["MDD S2  EC"] == "with the eyes closed"
    assert settings["H S3 TASK"] == "during a visual oddball task"
    assert len(found.channels) == 19
    assert Counter(subject.split()[0] for subject in found.held_out) == {"H": 1, "MDD": 1}


def test_an_ecg_has_the_classes_of_its_diagnostic_statements(disk: Path) -> None:
    found = ecg.survey(disk / "ptb-xl")
    labels = {item.where.partition("record ")[2].rstrip(")"): item.labels for item in found.items}
    # 5 and 13 have a statement of rhythm alone; 6 and 14 are normal and not.
    assert labels == {
        **dict.fromkeys(("2", "8", "10", "16", "18"), ("NORM",)), **dict.fromkeys(("1", "9", "17"), ("MI",)),
        **dict.fromkeys(("3", "11", "19"), ("STTC", "CD")), **dict.fromkeys(("4", "12", "20"), ("HYP",)),
        **dict.fromkeys(("7", "15"), ("MI", "STTC", "HYP")),
    }  # fmt: skip
    assert sum(found.left_out.values()) == 4
    assert found.held_out == {"patient 15010"}
    assert {item.subject for item in found.items if item.path.stem in ("00019_lr", "00020_lr")} == {"patient 15010"}


def test_the_faster_of_two_published_rates_is_read(disk: Path, tmp_path: Path) -> None:
    directory = copied(disk, "ptb-xl", tmp_path)
    assert ecg.survey(directory).items[0].path == directory / "records100/00000/00001_lr.hea"
    (directory / "records500").mkdir()
    assert ecg.survey(directory).items[0].path == directory / "records500/00000/00001_hr.hea"


def test_calls_of_marmaudio_are_split_by_day(disk: Path) -> None:
    found = calls.survey(disk / "marmaudio")
    assert Counter(item.labels[0] for item in found.items) == dict.fromkeys(
        ("twitter", "phee", "trill", "tsik", "seep", "infant cry"), 6
    )
    assert found.left_out == {"calls without a type": 6}
    assert all(item.path.is_file() for item in found.items)  # WAV files under the names of FLAC files
    assert Counter(item.subject for item in found.items) == {
        f"day 2020-{1 + day // 4:02}-{day:02}": 6 for day in range(1, 7)
    }
    assert len(found.held_out) == 1


def test_without_dates_calls_are_split_by_directory(disk: Path, tmp_path: Path) -> None:
    directory = copied(disk, "marmaudio", tmp_path)
    rewrite(directory / "Annotations.tsv", lambda text: text.replace("\tday\t", "\tweekday\t"))
    assert {item.subject for item in calls.survey(directory).items} == {"2020_1_0", "2020_2_0"}


def test_calls_without_a_date_beside_others_are_left_out(disk: Path, tmp_path: Path) -> None:
    directory = copied(disk, "marmaudio", tmp_path)
    rewrite(directory / "Annotations.tsv", lambda text: "\ufeff" + text.replace("\t2020\t1\t1\t", "\t\t1\t1\t") + "\n")
    found = calls.survey(directory)
    assert sum(found.left_out.values()) == 12
    assert all(item.subject.startswith("day ") for item in found.items)


def test_calls_of_infants_are_spans_of_files_and_split_by_twins(disk: Path) -> None:
    found = calls.survey(disk / "infants")
    assert Counter(item.labels[0] for item in found.items) == dict.fromkeys(calls.INFANTS, 6)
    assert found.left_out == {"silences": 6, "noises": 6}
    first = found.items[1]
    assert (first.path.name, first.labels, first.span) == ("20160901_Twin1_marmoset1.wav", ("phee",), (0.15, 0.25))
    assert {item.subject for item in found.items} == {"twins 1", "twins 2", "twins 3"}
    assert len(found.held_out) == 1


def test_every_label_has_held_out_subjects_and_the_split_is_stable() -> None:
    items = [Item(Path("a"), "a", f"{label} {n}", (label,)) for label, count in (("x", 40), ("y", 3), ("z", 1))
             for n in range(count)]  # fmt: skip
    held = hold_out("some", items)
    assert Counter(subject[0] for subject in held) == {"x": 4, "y": 1}
    assert hold_out("some", items[::-1]) == held != hold_out("others", items)
    assert len(hold_out("some", items[-2:])) == 1
    assert hold_out("some", items[-1:]) == frozenset()


# name of the data set, a file of it and a change of its text, and the value and what is allowed of the error
REFUSED: dict[str, tuple[str, str, Callable[[str], str] | None, Any, Any]] = {
    "no statements": ("ptb-xl", "scp_statements.csv", None, None, ...),
    "no database": ("ptb-xl", "ptbxl_database.csv", None, None, ...),
    "unknown statement": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text.replace("'ASMI'", "'XMI'"), "XMI", tuple(layouts.CLASSES)
    ),
    "unknown class": (
        "ptb-xl", "scp_statements.csv", lambda text: text.replace("1.0,,,CD", "1.0,,,ARR"), "ARR", tuple(ecg.LABELS)
    ),
    "statements that are not a dictionary": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text.replace("{'NORM': 80.0}", "NORM"), "NORM", ...
    ),
    "a statement that cannot be a key": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text.replace("{'NORM': 80.0}", "{[1]: 80.0}"), "{[1]: 80.0}", ...
    ),
    "a fold that is not a number": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text.replace(",10,records", ",nan,records"), "nan", "a number"
    ),
    "half a patient": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text.replace("15003.0", "15003.5"), "15003.5", "a whole number"
    ),
    "half a call": ("infants", "labels.csv", lambda text: text.replace(",7,", ",6.5,"), "6.5", "a whole number"),
    "a call without a time": ("infants", "labels.csv", lambda text: text.replace(",1.05,", ",nan,"), "nan", "a number"),
    "no fold": ("ptb-xl", "ptbxl_database.csv", lambda text: text.replace("strat_fold", "fold"), ..., ...),
    "a patient that is not a number": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text.replace("15003.0", "anna"), "anna", "a number"
    ),
    "a row that is cut off": (
        "ptb-xl", "ptbxl_database.csv", lambda text: text[: text.rindex(",")], len(layouts.PTB_XL.split(",")) - 1,
        len(layouts.PTB_XL.split(","))
    ),
    "no annotations": ("marmaudio", "Annotations.tsv", None, None, ("Annotations.tsv", "labels.csv")),
    "unknown call": (
        "marmaudio", "Annotations.tsv", lambda text: text.replace("\tTsik\t", "\tBark\t"), "Bark",
        (*calls.MARMAUDIO, *calls.UNTYPED)
    ),
    "unknown number of a call": ("infants", "labels.csv", lambda text: text.replace(",7,", ",17,"), "17", ...),
    "a file without twins": ("infants", "labels.csv", lambda text: text.replace("_Twin2_", "_"), ..., ...),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_missing_or_unknown_is_named(case: str, disk: Path, tmp_path: Path) -> None:
    name, file, change, value, allowed = REFUSED[case]
    path = copied(disk, name, tmp_path) / file
    if change is None:
        path.unlink()
    else:
        rewrite(path, change)
    with pytest.raises(DataError) as error:
        {"ptb-xl": ecg, "marmaudio": calls, "infants": calls}[name].survey(path.parent)
    assert len(error.value.lines) == 1
    assert error.value.where.startswith(str(path.parent))
    assert value is ... or error.value.value == value
    assert error.value.allowed is not None
    assert allowed is ... or error.value.allowed == allowed


def test_a_directory_without_labelled_eeg_is_refused(disk: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        eeg.survey(disk / "ptb-xl")
    assert (error.value.where, error.value.value) == (str(disk / "ptb-xl"), 0)
    directory = copied(disk, "mumtaz", tmp_path)
    (directory / "H S1 EC.edf").rename(directory / "control 1.edf")
    assert sum(eeg.survey(directory).left_out.values()) == 1


def test_a_label_has_an_article() -> None:
    assert calls.MARMAUDIO["phee"] == Label("phee", "a phee call")
    assert calls._call("egg") == Label("egg", "an egg call")
