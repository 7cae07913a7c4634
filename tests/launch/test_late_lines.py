"""Generated mistakes that show only once work has started: exit code 1, clear lines, a remedy that works."""

import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from tests.launch.late_lines import Late, damage, late_cases
from tests.trainer.corpora.tokenize.tokenized import save_tokenizer, start_plain, texts, write_jsonl
from tests.trainer.data.small_mixture import make_mixture
from tests.trainer.tiny_run import tiny_config
from trainer.corpora.tokenize import jobs
from trainer.run.process import train

QUICK, ALL, SEED = 24, 60, 31
CASES = late_cases(ALL, SEED)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory with a mixture and its recipe, documents with their tokenizer, and a run of one step."""
    root = tmp_path_factory.mktemp("late")
    with pytest.MonkeyPatch.context() as patch:
        data = make_mixture(root, patch)
    recipe = "# @package _global_\ndefaults:\n  - override /model: toy\n  - override /data: small\ntrain: {steps: 45}\n"
    for path, content in (
        ("data/small.yaml", yaml.safe_dump(asdict(data), sort_keys=False)),
        ("recipe/small.yaml", recipe),
    ):
        (root / path).parent.mkdir()
        (root / path).write_text(content)
    write_jsonl(root / "notes.jsonl", texts())
    save_tokenizer(root)
    assert train(tiny_config(root / "run", steps=1, model={"router_groups": 1, "positions": "rope"})) == 0
    return root


@pytest.mark.parametrize(
    "case", [*CASES[:QUICK], *(pytest.param(case, marks=pytest.mark.slow) for case in CASES[QUICK:])], ids=str
)
def test_a_mistake_that_shows_late_ends_with_1_and_its_remedy_works(place, case: Late, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setattr(jobs, "start_jobs", start_plain)
    file = Path(case.file)
    whole = damage(file, case.how)
    try:
        code = main([*case.words])
        shown, said = capsys.readouterr()
    finally:
        file.write_bytes(whole)
    left = Path("out").exists()
    again = main([*case.words])  # the remedy: the file as it was
    shutil.rmtree("out", ignore_errors=True)
    # a checkpoint's list of files, and in an export what it opens, are read before work starts
    before = case.words[0] == "export" or (case.words[0] == "inspect" and case.file.endswith("manifest.json"))
    assert code in ((1, 2) if before else (1,)), said
    assert again == 0
    reports = [line for line in said.splitlines() if line.startswith("error: ")]
    if case.words[0] == "inspect" and not reports:  # its report is what was asked for
        reports = [line for line in shown.splitlines() if case.file.rpartition("/")[2] in line]
    assert len(reports) == 1, said
    assert case.file.rpartition("/")[2] in reports[0] or str(file.parent) in reports[0]
    assert not re.search("Traceback", said)
    assert not left, "an interrupted command leaves nothing"
