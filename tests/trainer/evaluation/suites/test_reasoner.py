"""SciReasoner on files that we write."""

import json
from pathlib import Path

import pytest

from tests.trainer.evaluation.suites.runs import answered, items_of, suite
from trainer.evaluation.suite import SuiteError
from trainer.evaluation.suites.science import reasoner


def write_group(folder: Path) -> None:
    outputs = {"GUE": "It is there.", "PEER": "The answer is Yes", "OPI": "a; b"}
    for name in reasoner.METRICS:
        group, task = name.split("/")[:2]
        if group != folder.name:
            continue
        path = folder / task / "test/data.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if group == "LLM4Mat":
            names = reasoner._PROPERTIES[task].split()
            values = {one: "True" if one in reasoner.LABELS else "2.0" for one in names}
            rows = [{"input": "crystal", "output": f"{{{one} : {values[one]}}}"} for one in names]
        else:
            more = {"meta_data": {"label": "positive"}} if group == "GUE" else {}
            output = "1.5" if task == "stability" else outputs[group]
            rows = [{"input": "sequence", "output": output, **more}]
        path.write_text(json.dumps(rows))


def test_there_are_the_tasks_of_four_groups() -> None:
    counts = {group: sum(name.startswith(group + "/") for name in reasoner.METRICS) for group in reasoner.GROUPS}
    assert counts == {"GUE": 11, "PEER": 4, "OPI": 16, "LLM4Mat": 65}


def test_groups_are_averaged_and_those_without_files_are_passed_over(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as nothing:
        [*suite("SciReasoner").read(tmp_path)]
    assert (nothing.value.where, nothing.value.allowed) == (str(tmp_path), reasoner.GROUPS)
    write_group(tmp_path / "PEER")
    write_group(tmp_path / "OPI")
    items = items_of("SciReasoner", tmp_path)
    assert len(items) == 20
    peer = answered("SciReasoner", items, lambda item: "1.2" if "stability" in item.id else "The answer is\nno")
    assert peer.categories == {"PEER": 25, "OPI": 0}
    assert peer.value == 12.5
    right = answered("SciReasoner", items, lambda item: item.reference)
    assert right.categories == {"PEER": 100, "OPI": 100}
    write_group(tmp_path / "GUE")
    write_group(tmp_path / "LLM4Mat")
    items = items_of("SciReasoner", tmp_path)
    assert len(items) == 96
    every = answered("SciReasoner", items, lambda item: item.reference)
    # one row has neither a deviation nor two labels: such figures count as 0
    assert every.categories == {"GUE": 0, "PEER": 100, "OPI": 100, "LLM4Mat": 0}
    path = tmp_path / "GUE/tf-h-0/test/data.json"
    path.write_text(json.dumps([{"input": "i", "output": "o"}]))
    with pytest.raises(SuiteError) as fault:
        [*suite("SciReasoner").read(tmp_path)]
    assert (fault.value.where, fault.value.allowed) == (f"{path}:1:meta_data", "an object with names")
