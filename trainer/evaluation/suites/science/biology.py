"""Biology-Instructions: 21 tasks and their mean, as OpenCompass 0.5.4 asks and scores them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.evaluation.files import Row, find_file, read_rows
from trainer.evaluation.scorers.biology import enzymes, tasks
from trainer.evaluation.scorers.metric import Metric
from trainer.evaluation.suite import Item, Suite
from trainer.evaluation.suites.tasks import mean_of_tasks, score_by_task, user

METRICS: dict[str, Metric] = {
    "DNA-cpd": tasks.matthews,
    "DNA-emp": tasks.matthews,
    "DNA-pd": tasks.matthews,
    "DNA-tf-h": tasks.matthews,
    "DNA-tf-m": tasks.matthews,
    "Multi_sequence-antibody_antigen": tasks.matthews,
    "Multi_sequence-promoter_enhancer_interaction": tasks.matthews,
    "Multi_sequence-rna_protein_interaction": tasks.matthews,
    "DNA-enhancer_activity": tasks.pearson,
    "RNA-CRISPROnTarget": tasks.spearman,
    "Protein-Fluorescence": tasks.spearman,
    "Protein-Stability": tasks.spearman,
    "Protein-Thermostability": tasks.spearman,
    "RNA-Isoform": tasks.squared_pearson,
    "RNA-MeanRibosomeLoading": tasks.squared_pearson,
    "RNA-ProgrammableRNASwitches": tasks.squared_pearson,
    "RNA-Modification": tasks.modification_auc,
    "Protein-Solubility": tasks.same_word,
    "RNA-NoncodingRNAFamily": tasks.same_word,
    "Protein-FunctionEC": enzymes.function_ec,
    "Multi_sequence-sirnaEfficiency": tasks.mixed_efficiency,
}
_FAMILIES = "leader, tRNA, 5_8S_rRNA, ribozyme, CD-box, Intron_gpII, IRES, 5S_rRNA, scaRNA, miRNA, riboswitch, "
_FAMILIES += "Intron_gpI, HACA-box"
_MODIFICATIONS = "AtoI, m6A, none, m1A, m5C, m5U, m6Am, m7G, Cm, Am, Gm, Um, Psi"
_FORMS = {
    "cls": r"Answer yes or no, in \boxed{}.",
    "number": r"Put the number in \boxed{}.",
    "Function EC": r'Put the EC numbers in \boxed{}, written as "ECx.x.x.x", with commas between several.',
    "Non-coding RNA Function Classification": rf"Choose one of [{_FAMILIES}] and put it in \boxed{{}}.",
    "Modification Prediction": rf"Choose from [{_MODIFICATIONS}]. Put the choice in \boxed{{}}, several with commas.",
}
_SYSTEM = (
    "You are an expert in biology who joins theory, data and computation. Be accurate and quantitative, and keep "
    "facts, assumptions and uncertainties apart."
)


def read(directory: Path) -> Iterator[Item]:
    """Rows of `TASK.jsonl`, one file a task: prompt, ground_truth, and meta_data with ans_type and task."""
    for task, metric in METRICS.items():
        path = find_file(directory, f"{task}.jsonl")
        for row in read_rows(path, "prompt", "ground_truth", "meta_data"):
            truth = row.value("ground_truth")
            text = row.text("prompt") + "\n" + _form(row, truth)
            try:
                metric.one("", truth)
            except (ValueError, TypeError, AttributeError, KeyError):
                raise row.wrong("ground_truth", f"a reference of the task {task}") from None
            yield Item(f"{task}/{row.number}", user(text, system=_SYSTEM), truth, {"task": task, "category": task})


def _form(row: Row, truth: Any) -> str:
    """The sentence that says in which form the answer has to be."""
    about = row.mapping("meta_data")
    kind = about.get("ans_type")
    if kind == "dict" and isinstance(truth, dict):
        keys = ", ".join(f'"{key}": xx' for key in truth)
        return f"Put the answer in \\boxed{{}} as JSON, such as {{{keys}}}"
    form = _FORMS.get(kind if kind in ("cls", "number") else about.get("task", ""))
    if form is None:
        what = f"meta_data has ans_type={kind} and task={about.get('task')}, for which no form of answer is known"
        raise row.fault(what, value=kind, allowed=("cls", "number", "dict", *list(_FORMS)[2:]))
    return form


SUITES = (
    Suite(
        name="Biology-Instructions",
        domain="biology",
        metric="mean of 21 tasks in per cent: Matthews, Pearson, its square, Spearman, AUC, accuracy, Fmax, mixed",
        metric_source="opencompass 0.5.4: datasets/biodata.py, configs/datasets/biodata/biodata_task_gen.py",
        where_data="TASK.jsonl of 21 tasks (opencompass/biology-instruction): " + ", ".join(METRICS),
        reported=52.5,
        read=read,
        score=score_by_task(METRICS),
        summarise=mean_of_tasks(METRICS),
        packages=("scikit-learn", "scipy"),
    ),
)
