"""Suites of chemistry, materials and biology on files that we write."""

import json
import math
from pathlib import Path

import pytest

from tests.trainer.evaluation.suites.runs import answered, items_of, suite, text_of, write_lines
from trainer.evaluation.scorers.biology import tasks
from trainer.evaluation.scorers.chemistry import tagged_similarity, tanimoto
from trainer.evaluation.suite import Scored, SuiteError
from trainer.evaluation.suites import tasks as suites_tasks
from trainer.evaluation.suites.science import biology, chemistry, materials

SMOL = [
    ("name_conversion-i2f", "water", "<MOLFORMULA> H2O </MOLFORMULA>"),
    ("name_conversion-s2i", "CCO", "<IUPAC> ethanol </IUPAC>"),
    ("property_prediction-esol", "CCO", "<NUMBER> 1.0 </NUMBER>"),
    ("property_prediction-esol", "CCCO", "<NUMBER> 0.0 </NUMBER>"),
    ("property_prediction-lipo", "CCO", "<NUMBER> 2.4 </NUMBER>"),
    ("property_prediction-bbbp", "CCO", "<BOOLEAN> Yes </BOOLEAN>"),
    ("forward_synthesis", "CCO.CC(=O)O", "<SMILES> CCOC(C)=O </SMILES>"),
]


@pytest.fixture
def wordnet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chemistry, "need_nltk", lambda *names: None)


@pytest.mark.usefixtures("wordnet")
def test_smolinstruct_is_the_mean_of_the_tasks_points(tmp_path: Path) -> None:
    write_lines(tmp_path / "test.jsonl", [{"task": t, "input": i, "output": o} for t, i, o in SMOL])
    items = items_of("SmolInstruct", tmp_path)
    assert [item.meta["task"] for item in items] == [task for task, _, _ in SMOL]
    assert "CCO" in text_of(items[1])
    right = answered("SmolInstruct", items, lambda item: item.reference if "BOOLEAN" not in item.reference else "Yes")
    assert right.value == pytest.approx(100)
    # numbers are half wrong: errors 1 and 0 of at most 2, error 2.4 of at most 1.2
    zero = answered("SmolInstruct", items, lambda item: r"\boxed{0}" if "NUMBER" in item.reference else item.reference)
    assert zero.categories["property_prediction-esol"] == pytest.approx(0.5)
    assert zero.metrics["property_prediction-esol rmse"] == pytest.approx(math.sqrt(0.5))
    points = {"esol": 75, "lipo": 0, "bbbp": 100, "i2f": 100, "s2i": 100, "synthesis": 100}
    assert zero.value == pytest.approx(sum(points.values()) / 6)


@pytest.mark.usefixtures("wordnet")
def test_smolinstruct_is_read_from_its_archive(tmp_path: Path) -> None:
    """As the script of the data set makes its rows: a wording for each sample, tags, and one of several targets."""
    for task in chemistry.SMOL:
        several = task == "property_prediction-sider"
        pair = {
            "task": task,
            "split": "test",
            "input": "CCO",
            "output": {"eye": "Yes", "ear": "No"} if several else "1",
        }
        write_lines(tmp_path / f"raw/test/{task}.jsonl", [{**pair, "input": "C"}, pair])
        sample = {"idx": 1, "template_id": 1, **({"target": "ear"} if several else {})}
        files = {
            f"sample/instruction_tuning/test/{task}.json": {"template_name": "t", "samples": [sample, sample]},
            f"template/t/{task}.json": [{"input": "?", "output": "?"}, {"input": "Of <INPUT>?", "output": "<OUTPUT>"}],
            f"core_tag/{task}.json": {
                "input": ["<SMILES>", "</SMILES>"],
                "output": ["<B>", "</B>"] if several else [None, None],
            },
        }
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
    items = items_of("SmolInstruct", tmp_path)
    assert len(items) == 2 * len(chemistry.SMOL)
    assert "Question: Of <SMILES> CCO </SMILES>?\n" in text_of(items[0])
    found = {item.meta["task"]: item.reference for item in items}
    assert (found["property_prediction-esol"], found["property_prediction-sider"]) == ("1", "<B> No </B>")
    listed = tmp_path / "sample/instruction_tuning/test/retrosynthesis.json"
    listed.write_text(json.dumps({"template_name": "t", "samples": [{**sample, "idx": 2}]}))
    with pytest.raises(SuiteError) as beyond:
        [*suite("SmolInstruct").read(tmp_path)]
    assert beyond.value.where == f"{listed}:1"
    listed.write_text("[]")
    with pytest.raises(SuiteError) as form:
        [*suite("SmolInstruct").read(tmp_path)]
    assert form.value.where == str(listed)


@pytest.mark.usefixtures("wordnet")
def test_unknown_tasks_and_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as missing:
        [*suite("SmolInstruct").read(tmp_path)]
    assert missing.value.where == str(tmp_path)
    write_lines(tmp_path / "test.jsonl", [{"task": "brewing", "input": "a", "output": "b"}])
    with pytest.raises(SuiteError) as unknown:
        [*suite("SmolInstruct").read(tmp_path)]
    assert unknown.value.where == f"{tmp_path}/test.jsonl:1:task"
    assert unknown.value.value == "brewing"
    assert unknown.value.allowed == tuple(chemistry.SMOL)


def test_selfies_are_decoded_by_their_package() -> None:
    """The 20 rows of the published scorer have a stand-in in its place."""
    reference, other = "<SELFIES> [C][C][O] </SELFIES>", "<SELFIES> [C][C][C][O] </SELFIES>"
    found = tagged_similarity("SELFIES")(
        ["<SELFIES>[O][C][C]</SELFIES>", other, "<SELFIES>[X][C]</SELFIES>"], [reference] * 3
    )
    near = tanimoto("CCCO", "CCO")
    assert near is not None
    assert 0 < near < 1
    assert found.value == pytest.approx(100 * (1 + near) / 3)
    assert found.extra["valid"] == pytest.approx(200 / 3)


def test_missing_nltk_data_are_named() -> None:
    with pytest.raises(SuiteError) as missing:
        suites_tasks.need_nltk("X", "no_such_corpus")
    assert missing.value.where == "X"
    assert missing.value.value == ["no_such_corpus"]
    assert missing.value.allowed == "python -m nltk.downloader no_such_corpus"


@pytest.mark.usefixtures("wordnet")
def test_mol_instructions_reads_dialogs(tmp_path: Path) -> None:
    for task in chemistry.MOL:
        answer = "0.5" if task == "property_prediction" else f"an answer of {task}"
        dialogs = [{"content": f"question of {task}"}, {"content": answer}]
        write_lines(tmp_path / f"{task}.jsonl", [{"id_ddm": 7, "dialogs": dialogs}])
    items = items_of("Mol-Instructions", tmp_path)
    assert {item.meta["task"] for item in items} == set(chemistry.MOL)
    error = [item for item in items if item.meta["task"] == "property_prediction"]
    assert answered("Mol-Instructions", error, lambda item: r"\boxed{2}").value == pytest.approx(50)
    write_lines(tmp_path / "retrosynthesis.jsonl", [{"dialogs": [{"content": "alone"}]}])
    with pytest.raises(SuiteError) as broken:
        [*suite("Mol-Instructions").read(tmp_path)]
    assert broken.value.where == f"{tmp_path}/retrosynthesis.jsonl:1:dialogs"


def write_matbench(directory: Path) -> None:
    for task, metric in materials.METRICS.items():
        answers = [True, False] if metric is materials.materials.agreement else [1.0, 3.0]
        rows = [{"problem": f"{task} {place}", "answer": answer} for place, answer in enumerate(answers)]
        (directory / f"matbench_base_fold_0_{task}_test.json").write_text(json.dumps(rows))


def test_matbench_with_and_without_a_judge(tmp_path: Path) -> None:
    write_matbench(tmp_path)
    items = items_of("MatBench", tmp_path)
    plain = answered("MatBench", items, lambda item: "yes" if item.reference is True else "2")
    assert plain.categories == pytest.approx(
        {"matbench_expt_gap": 1, "matbench_steels": 1, "matbench_expt_is_metal": 0.5, "matbench_glass": 0.5}
    )
    assert plain.value == pytest.approx((50 + 1999 / 20 + 50 + 50) / 4)
    one = suite("MatBench")
    steel = next(item for item in items if item.meta["task"] == "matbench_steels")
    assert one.judge is not None
    assert "about 1500 MPa" in str(one.judge(steel, "about 1500 MPa"))
    assert one.score(steel, "about 1500 MPa", None)["score"] == 1  # the rules read 1500 as 0
    assert one.score(steel, "about 1500 MPa", "1500.5")["score"] == 1499.5
    metal = next(item for item in items if item.meta["task"] == "matbench_glass")
    assert [one.score(metal, "yes", verdict)["score"] for verdict in ("A", "B", "neither")] == [True, False, False]
    wrong = tmp_path / "matbench_base_fold_0_matbench_glass_test.json"
    wrong.write_text(json.dumps([{"problem": "p", "answer": "True"}]))
    with pytest.raises(SuiteError) as fault:
        [*one.read(tmp_path)]
    assert (fault.value.where, fault.value.value) == (f"{wrong}:1:answer", "True")


def biology_row(task: str) -> dict[str, object]:
    metric = biology.METRICS[task]
    truths = {
        tasks.matthews: ("cls", "positive"),
        tasks.pearson: ("dict", {"hk": 1.5, "dev": 2.5}),
        tasks.modification_auc: ("string", "m6A"),
        tasks.same_word: ("string", "tRNA"),
        biology.enzymes.function_ec: ("string", "EC1.1.1.1"),
    }
    kind, truth = truths.get(metric, ("number", 0.5))
    named = {
        tasks.modification_auc: "Modification Prediction",
        tasks.same_word: "Non-coding RNA Function Classification",
        biology.enzymes.function_ec: "Function EC",
    }
    return {
        "prompt": f"about {task}",
        "ground_truth": truth,
        "meta_data": {"ans_type": kind, "task": named.get(metric, task)},
    }


def test_biology_has_21_tasks_and_their_mean(tmp_path: Path) -> None:
    for task in biology.METRICS:
        write_lines(tmp_path / f"{task}.jsonl", [biology_row(task)])
    items = items_of("Biology-Instructions", tmp_path)
    assert len(items) == len({item.meta["task"] for item in items}) == 21
    assert all("boxed" in text_of(item) for item in items)
    shown = next(item for item in items if item.meta["task"] == "DNA-enhancer_activity")
    assert '{"hk": xx, "dev": xx}' in text_of(shown)
    parsed = [
        suite("Biology-Instructions").score(shown, text, None)["parsed"] for text in ("none", '{"hk": 1, "dev": 2}')
    ]
    assert parsed == [False, True]
    words = [item for item in items if item.meta["task"] in ("RNA-NoncodingRNAFamily", "Protein-FunctionEC")]
    result = answered("Biology-Instructions", words, lambda item: rf"\boxed{{{item.reference}}}")
    assert result.value == pytest.approx(100, abs=1e-3)
    again = [Scored(one, "", suite("Biology-Instructions").score(one, r"\boxed{yes}", None)) for one in items]
    assert math.isnan(suite("Biology-Instructions").summarise(again).value)  # a correlation of one row is not defined


def test_biology_names_a_row_that_does_not_fit(tmp_path: Path) -> None:
    for task in biology.METRICS:
        write_lines(tmp_path / f"{task}.jsonl", [biology_row(task)])
    path = tmp_path / "DNA-cpd.jsonl"
    write_lines(path, [{**biology_row("DNA-cpd"), "ground_truth": "perhaps"}])
    with pytest.raises(SuiteError) as fault:
        [*suite("Biology-Instructions").read(tmp_path)]
    assert (fault.value.where, fault.value.value) == (f"{path}:1:ground_truth", "perhaps")
    write_lines(path, [{**biology_row("DNA-cpd"), "meta_data": {"ans_type": "essay"}}])
    with pytest.raises(SuiteError) as form:
        [*suite("Biology-Instructions").read(tmp_path)]
    assert (form.value.where, form.value.value) == (f"{path}:1", "essay")
