"""SMolInstruct and Mol-Instructions, as OpenCompass 0.5.4 asks and scores them without examples in the prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from trainer.evaluation.files import Row, find_file, read_rows
from trainer.evaluation.scorers import chemistry
from trainer.evaluation.scorers.metric import Metric
from trainer.evaluation.suite import Item, Suite
from trainer.evaluation.suites.science.smol_archive import is_archive, read_archive
from trainer.evaluation.suites.tasks import below, mean_of_tasks, need_nltk, per_cent, score_by_task, user

_WRAPPED = "Give {what} between <{tag}> and </{tag}>, and nothing else."
_BOXED = r"Put the number in \boxed{}."
# the task's name in the data set, its metric, and what its answer has to look like
SMOL: dict[str, tuple[Metric, str]] = {
    "name_conversion-i2f": (chemistry.same_atoms, _WRAPPED.format(what="the molecular formula", tag="MOLFORMULA")),
    "name_conversion-i2s": (chemistry.same_text, _WRAPPED.format(what="the SMILES", tag="SMILES")),
    "name_conversion-s2f": (chemistry.same_atoms, _WRAPPED.format(what="the molecular formula", tag="MOLFORMULA")),
    "name_conversion-s2i": (chemistry.same_text, _WRAPPED.format(what="the IUPAC name", tag="IUPAC")),
    "property_prediction-esol": (chemistry.absolute_error, _BOXED),
    "property_prediction-lipo": (chemistry.absolute_error, _BOXED),
    "property_prediction-bbbp": (chemistry.yes_no, "Answer Yes or No only."),
    "property_prediction-clintox": (chemistry.yes_no, "Answer Yes or No only."),
    "property_prediction-hiv": (chemistry.yes_no, "Answer Yes or No only."),
    "property_prediction-sider": (chemistry.yes_no, "Answer Yes or No only."),
    "molecule_captioning": (chemistry.meteor(), "Describe the molecule in words."),
    "molecule_generation": (chemistry.similarity, _WRAPPED.format(what="the SMILES of the molecule", tag="SMILES")),
    "forward_synthesis": (chemistry.similarity, _WRAPPED.format(what="the SMILES of the product", tag="SMILES")),
    "retrosynthesis": (
        chemistry.similarity,
        "Give the SMILES of all reactants and reagents, with dots between them, in one pair of <SMILES> and </SMILES>.",
    ),
}
SMOL_METRICS = {task: metric for task, (metric, _) in SMOL.items()}
SMOL_POINTS = {
    "molecule_captioning": per_cent,
    "property_prediction-esol": below(2),
    "property_prediction-lipo": below(1.2),
}
_SELFIES = _WRAPPED.format(what="{what} in SELFIES", tag="SELFIES")
MOL: dict[str, tuple[Metric, str]] = {
    "forward_reaction_prediction": (chemistry.tagged_similarity("SELFIES"), _SELFIES.format(what="the product")),
    "molecular_description_generation": (chemistry.meteor(), "Describe the molecule in words."),
    "description_guided_molecule_design": (
        chemistry.tagged_similarity("SELFIES"),
        _SELFIES.format(what="the molecule"),
    ),
    "property_prediction": (chemistry.last_number_error, _BOXED),
    "reagent_prediction": (
        chemistry.tagged_similarity("SELFIES"),
        _SELFIES.format(what="the reagents, with dots between them,"),
    ),
    "retrosynthesis": (
        chemistry.tagged_similarity("SELFIES"),
        _SELFIES.format(what="all reactants and reagents, with dots between them,"),
    ),
}
MOL_METRICS = {task: metric for task, (metric, _) in MOL.items()}
# the published mean adds the METEOR of descriptions as it is, between 0 and 1
MOL_POINTS = {"property_prediction": below(3)}


def read_smol(directory: Path) -> Iterator[Item]:
    """data.zip, unpacked; or rows of `test.jsonl` or `test*.parquet` with the columns task, input and output."""
    need_nltk("SmolInstruct", "wordnet")
    archive = is_archive(directory)
    for task, row in read_archive(directory, list(SMOL)) if archive else _smol_rows(directory):
        text = f"{SMOL[task][1]}\nQuestion: {row.text('input')}\nAnswer: "
        name = f"{task}/{row.number}" if archive else str(row.number)
        messages = user(text, system="You are an expert chemist.")
        yield Item(name, messages, row.text("output"), {"task": task, "category": task})


def _smol_rows(directory: Path) -> Iterator[tuple[str, Row]]:
    path = find_file(directory, "test.jsonl", "test*.parquet", "test.json")
    for row in read_rows(path, "task", "input", "output"):
        yield row.choice("task", SMOL), row


def read_mol(directory: Path) -> Iterator[Item]:
    """Rows of `TASK.jsonl`, one file a task: `dialogs` with the question first and the answer second."""
    need_nltk("Mol-Instructions", "wordnet")
    for task, (_, hint) in MOL.items():
        path = find_file(directory, f"{task}.jsonl")
        for row in read_rows(path, "dialogs"):
            question, answer = row.said("dialogs", "content", 2)
            yield Item(
                f"{task}/{row.name('id_ddm') if 'id_ddm' in row.cells else row.number}",
                user(f"{hint}\nQuestion: {question}\nAnswer: ", system="You are an expert chemist."),
                answer,
                {"task": task, "category": task},
            )


SUITES = (
    Suite(
        name="SmolInstruct",
        domain="chemistry",
        metric="mean of 14 tasks' points: equal formulas, names and yes/no in per cent, METEOR x 100, fingerprint "
        "similarity, and errors as 100 (limit - error) / limit with limits 2 (ESOL) and 1.2 (Lipo)",
        metric_source="opencompass 0.5.4: datasets/smolinstruct.py, summarizers/groups/smolinstruct.py",
        where_data="data.zip of osunlp/SMolInstruct, unpacked; or test.jsonl (or test*.parquet): its test split with "
        "columns task, input, output",
        reported=74.8,
        read=read_smol,
        score=score_by_task(SMOL_METRICS),
        summarise=mean_of_tasks(SMOL_METRICS, SMOL_POINTS),
        packages=("rdkit", "nltk"),
    ),
    Suite(
        name="Mol-Instructions",
        domain="chemistry",
        metric="mean of 6 tasks' points: fingerprint similarity of SELFIES in per cent, 100 (3 - error) / 3, METEOR",
        metric_source="opencompass 0.5.4: datasets/mol_instructions_chem.py, summarizers/groups/mol_instruct.py",
        where_data="forward_reaction_prediction.jsonl and five more (opencompass/mol-instructions), named as the tasks",
        reported=48.8,
        read=read_mol,
        score=score_by_task(MOL_METRICS),
        summarise=mean_of_tasks(MOL_METRICS, MOL_POINTS),
        packages=("rdkit", "nltk", "selfies"),
    ),
)
