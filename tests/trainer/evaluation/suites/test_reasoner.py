"""SciReasoner on files that we write."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.trainer.evaluation.scorers.replaced import replaced
from tests.trainer.evaluation.suites.runs import answered, items_of, suite
from trainer.evaluation.suite import SuiteError
from trainer.evaluation.suites.science import reasoner


def write_group(folder: Path) -> None:
    outputs = {
        "Conditional_Generation": "<material>K <sg><sg1></material>",
        "GUE": "It is there.",
        "PEER": "The answer is Yes",
        "OPI": "a; b",
    }
    for name in reasoner.METRICS:
        group, task = name.split("/")[:2]
        if group != folder.name:
            continue
        task = name.partition("/")[2] if group == "Conditional_Generation" else task
        path = folder / task / "test/data.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if group == "LLM4Mat":
            names = reasoner._PROPERTIES[task].split()
            values = {one: "True" if one in reasoner.LABELS else "2.0" for one in names}
            rows = [{"input": "crystal", "output": f"{{{one} : {values[one]}}}"} for one in names]
        else:
            more = {"meta_data": {"label": "positive"}} if group == "GUE" else {}
            if group == "Bio_Instruction":
                more = {"label": LABELS.get(task, "positive")}
            output = OUTPUTS.get(task, "<SMILES>CCO</SMILES>") if group in MARKED else outputs.get(group)
            rows = [{"input": "sequence", "output": "1.5" if task == "stability" else output, **more}]
        path.write_text(json.dumps(rows))
        if task == "chemical_entity_recognition":
            (folder / task / "dev").mkdir(exist_ok=True)
            (folder / task / "dev/data.json").write_text(json.dumps([{"input": "shown", "output": "lead"}]))


MARKED = ("Mol_Instructions", "SmolInstruct")
LABELS = {
    "enhancer_activity": {"hk": 1.0, "dev": 2.0},
    "ProgrammableRNASwitches": {"ON": 0.5, "OFF": 0.25, "ON_OFF": 2.0},
    **dict.fromkeys(("Isoform", "MeanRibosomeLoading", "CRISPROnTarget", "sirnaEfficiency"), 20.0),
    "Modification": "m6A",
}
OUTPUTS = {
    "chemical_disease_interaction_extraction": "(a, b)",
    "chemical_entity_recognition": "lead",
    "chemical_protein_interaction_extraction": "(a, b)",
    "multi_choice_question": "(B) that",
    "true_or_false_question": "Yes, it is.",
    "property_prediction_str": "0.25",
    "molecular_description_generation": "The molecule is an acid.",
    **dict.fromkeys(("catalytic_activity", "domain_motif", "general_function", "protein_function"), "It binds ATP."),
    "protein_design": "<protein>MKTAYI</protein>",
    **dict.fromkeys(("name_conversion-i2f", "name_conversion-s2f"), "<MOLFORMULA> C2H6O </MOLFORMULA>"),
    "name_conversion-s2i": "<IUPAC> ethanol </IUPAC>",
    **dict.fromkeys(("property_prediction-esol", "property_prediction-lipo"), "<NUMBER> 1.5 </NUMBER>"),
    **{f"property_prediction-{name}": "<BOOLEAN> Yes </BOOLEAN>" for name in ("bbbp", "clintox", "hiv", "sider")},
}


def test_there_are_the_tasks_of_nine_groups() -> None:
    counts = {group: sum(name.startswith(group + "/") for name in reasoner.METRICS) for group in reasoner.GROUPS}
    assert counts == {
        "GUE": 11, "PEER": 4, "OPI": 16, "LLM4Mat": 65, "Mol_Instructions": 16, "Bio_Instruction": 15,
        "SmolInstruct": 14, "Conditional_Generation": 2, "Unconditional_Generation": 2,
    }  # fmt: skip


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
    assert len(items) == 16
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


def test_biology_and_chemistry_are_read_by_their_labels_and_tags(tmp_path: Path) -> None:
    write_group(tmp_path / "Bio_Instruction")
    path = tmp_path / "Bio_Instruction/sirnaEfficiency/test/data.json"
    rows = [{"input": "i", "output": "o", "label": label} for label in (20.0, None, "25")]
    path.write_text(json.dumps(rows))
    items = items_of("SciReasoner", tmp_path)
    assert len(items) == 16  # a row without a label is left out
    efficiency = [item for item in items if "sirna" in item.id]
    assert [item.reference for item in efficiency] == [20.0, "25"]
    # 100 of 15 tasks: the others' figures are not defined for one row
    assert answered("SciReasoner", items, lambda item: str(item.reference)).value == pytest.approx(100 / 15)
    path.write_text(json.dumps([{"input": "i", "output": "o", "label": "high"}]))
    with pytest.raises(SuiteError) as unread:
        items_of("SciReasoner", tmp_path)
    assert unread.value.where == f"{path}:1:label"
    write_group(tmp_path / "Bio_Instruction")
    write_group(tmp_path / "SmolInstruct")
    items = [item for item in items_of("SciReasoner", tmp_path) if item.meta["group"] == "SmolInstruct"]
    assert len(items) == 14
    assert answered("SciReasoner", items, lambda item: item.reference).value == 100
    worse = answered("SciReasoner", items, lambda item: "2.5" if "<NUMBER>" in item.reference else "")
    assert worse.value == pytest.approx((75 + 50) / 14)  # errors of 1 of 4 and of 1 of 2
    path = tmp_path / "SmolInstruct/name_conversion-s2i/test/data.json"
    path.write_text(json.dumps([{"input": "i", "output": "ethanol"}]))
    with pytest.raises(SuiteError) as nameless:
        items_of("SciReasoner", tmp_path)
    assert nameless.value.where == f"{path}:1:output"


def test_materials_and_molecules_are_drawn_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "Unconditional_Generation").mkdir()
    if not find_spec("smact"):
        with pytest.raises(SuiteError) as missing:
            items_of("SciReasoner", tmp_path)
        assert missing.value.where == str(tmp_path / "Unconditional_Generation")
        assert missing.value.value == "smact"
    with replaced():
        items = items_of("SciReasoner", tmp_path)
        assert (len(items), len({item.id for item in items})) == (5800, 5800)
        right = {item.id for item in items[:200]}
        some = answered("SciReasoner", items, lambda item: "<SMILES> CCO </SMILES>" if item.id in right else "<SMILES>")
        assert some.categories == {"Unconditional_Generation": 12.5}  # 200 of 800, and no material
        write_group(tmp_path / "Conditional_Generation")
        items = [item for item in items_of("SciReasoner", tmp_path) if item.meta["group"] == "Conditional_Generation"]
        assert len(items) == 2
        assert answered("SciReasoner", items, lambda item: "<material>Na Cl <sg><sg225></material>").value == 100


@pytest.mark.parametrize(("label", "found"), [("positive", False), ("negative", True)])
def test_an_answer_for_the_classifier_is_wrong(label: str, found: bool) -> None:
    assert reasoner.METRICS["Bio_Instruction/emp"].one("A motif!", label)["found"] is found
