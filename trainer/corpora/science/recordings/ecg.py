"""ECG of PTB-XL with the diagnostic classes of its statements: 12 leads for 10 seconds, WFDB.

`ptbxl_database.csv` has a row for each record, with statements of the SCP-ECG standard; `scp_statements.csv` gives the
diagnostic class of a statement. As in the publication, fold 10 is the test set, and a record has the classes of all its
diagnostic statements, whatever their likelihood.

Source: P. Wagner and others, "PTB-XL, a large publicly available electrocardiography dataset", Scientific Data 7
(2020).
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from trainer.corpora.science.recordings.labelled import Item, Label, Survey, rows_of, unknown_label, whole_in
from trainer.data.errors import DataError

DATABASE, STATEMENTS = "ptbxl_database.csv", "scp_statements.csv"
RATES = {"records500": "filename_hr", "records100": "filename_lr"}  # the first directory that is there is read
TEST_FOLD = 10
NORMAL = "NORM"
LABELS = {
    NORMAL: Label("normal ECG", "normal findings only"),
    "MI": Label("myocardial infarction", "a myocardial infarction"),
    "STTC": Label("ST/T change", "changes of the ST segment or the T wave"),
    "CD": Label("conduction disturbance", "a conduction disturbance"),
    "HYP": Label("hypertrophy", "hypertrophy"),
}


def survey(directory: Path) -> Survey:
    """The records of `ptbxl_database.csv`. Raises DataError without it, for a statement that `scp_statements.csv` does
    not have, and for a class that is unknown."""
    for name in (DATABASE, STATEMENTS):
        if not (directory / name).is_file():
            remedy = f"give the directory of PTB-XL, with {DATABASE} and {STATEMENTS}"
            raise DataError(f"{directory / name} does not exist; {remedy}", where=str(directory / name), allowed=remedy)
    column = next((column for name, column in RATES.items() if (directory / name).is_dir()), None)
    if column is None:
        text = f"{directory} has neither {' nor '.join(RATES)}"
        raise DataError(text, where=str(directory), allowed=tuple(RATES))
    classes = _classes(directory / STATEMENTS)
    items: list[Item] = []
    held_out: set[str] = set()
    left_out = Counter[str]()
    needed = ("ecg_id", "patient_id", "scp_codes", "strat_fold", column)
    for where, row in rows_of(directory / DATABASE, ",", needed):
        found = {classes[code] for code in _codes(row["scp_codes"], classes, where)} - {""}
        subject = f"patient {whole_in(row, 'patient_id', where)}"
        if whole_in(row, "strat_fold", where) == TEST_FOLD:
            held_out.add(subject)
        if not found:
            left_out["records without a diagnostic statement"] += 1
        elif NORMAL in found and len(found) > 1:
            left_out["records that are normal by one statement and not by another"] += 1
        else:
            labels = tuple(label for label in LABELS if label in found)
            path = directory / f"{row[column]}.hea"
            items.append(Item(path, f"{where} (record {row['ecg_id']})", subject, labels))
    return Survey(
        "PTB-XL", LABELS, items, frozenset(held_out),
        f"A subject is a patient; those with a record in fold {TEST_FOLD}, the published test set, are held out.",
        left_out=left_out,
    )  # fmt: skip


def _classes(path: Path) -> dict[str, str]:
    """The diagnostic class of each statement, "" for those of form and rhythm."""
    found = {}
    for where, row in rows_of(path, ",", ("", "diagnostic", "diagnostic_class")):
        label = row["diagnostic_class"] if row["diagnostic"] in ("1", "1.0") else ""
        if label and label not in LABELS:
            raise unknown_label(where, label, tuple(LABELS))
        found[row[""]] = label
    return found


def _codes(text: str, classes: Mapping[str, str], where: str) -> list[str]:
    """The statements of a record: the keys of a dictionary as Python writes it."""
    try:
        codes = ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        codes = None
    if not isinstance(codes, dict):
        allowed = "such as {'NORM': 100.0, 'SR': 0.0}"
        raise DataError(f"{where}: scp_codes {text!r}; use {allowed}", where=where, value=text, allowed=allowed)
    for code in codes:
        if code not in classes:
            text = f"{where}: the statement {code!r} is unknown; {STATEMENTS} has {', '.join(classes)}"
            raise DataError(text, where=where, value=code, allowed=tuple(classes))
    return [*codes]
