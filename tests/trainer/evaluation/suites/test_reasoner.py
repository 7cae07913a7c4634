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
            output = MOL.get(task, "<SMILES>CCO</SMILES>") if group == "Mol_Instructions" else outputs.get(group)
            rows = [{"input": "sequence", "output": "1.5" if task == "stability" else output, **more}]
        path.write_text(json.dumps(rows))
        if task == "chemical_entity_recognition":
            (folder / task / "dev").mkdir(exist_ok=True)
            (folder / task / "dev/data.json").write_text(json.dumps([{"input": "shown", "output": "lead"}]))


MOL = {
    "chemical_disease_interaction_extraction": "(a, b)",
    "chemical_entity_recognition": "lead",
    "chemical_protein_interaction_extraction": "(a, b)",
    "multi_choice_question": "(B) that",
    "true_or_false_question": "Yes, it is.",
    "property_prediction_str": "0.25",
    "molecular_description_generation": "The molecule is an acid.",
}


def test_there_are_the_tasks_of_four_groups() -> None:
    counts = {group: sum(name.startswith(group + "/") for name in reasoner.METRICS) for group in reasoner.GROUPS}
    assert counts == {"GUE": 11, "PEER": 4, "OPI": 16, "LLM4Mat": 65, "Mol_Instructions": 11}


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
    write_group(tmp_path / "Mol_Instructions")
    items = [item for item in items_of("SciReasoner", tmp_path) if item.meta["group"] == "Mol_Instructions"]
    assert len(items) == 11
    shown = next(item for item in items if "entity" in item.id)
    assert [message["role"] for message in shown.messages] == ["system", "user", "assistant", "user"]
    assert answered("SciReasoner", items, lambda item: item.reference).value == 100
    none = answered("SciReasoner", items, lambda item: "0.24" if "property" in item.id else "")
    assert none.categories == {"Mol_Instructions": 0}  # an error of 10 thousandths has no points
    path = tmp_path / "Mol_Instructions/multi_choice_question/test/data.json"
    path.write_text(json.dumps([{"input": "i", "output": "B"}]))
    with pytest.raises(SuiteError) as unread:
        [*suite("SciReasoner").read(tmp_path)]
    assert unread.value.where == f"{path}:1:output"
    write_group(tmp_path / "Mol_Instructions")
    path = tmp_path / "GUE/tf-h-0/test/data.json"
    path.write_text(json.dumps([{"input": "i", "output": "o"}]))
    with pytest.raises(SuiteError) as fault:
        [*suite("SciReasoner").read(tmp_path)]
    assert (fault.value.where, fault.value.allowed) == (f"{path}:1:meta_data", "an object with names")
