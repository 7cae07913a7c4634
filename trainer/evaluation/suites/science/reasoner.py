"""SciReasoner: 145 of its 149 tasks, as OpenCompass 0.5.4 scores them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.evaluation.files import find_file, read_rows
from trainer.evaluation.scorers.metric import Metric
from trainer.evaluation.scorers.reasoner import biology, chemistry, instructions, materials, proteins, sequences
from trainer.evaluation.scorers.reasoner.crystals import LABELS, property_of
from trainer.evaluation.suite import Item, Message, Scored, Suite, SuiteError, Summary, mean
from trainer.evaluation.suites.tasks import Points, below, per_cent, user

_GUE = "cpd-prom_core_all cpd-prom_core_notata cpd-prom_core_tata pd-prom_300_all pd-prom_300_notata pd-prom_300_tata "
_GUE += "tf-h-0 tf-h-1 tf-h-2 tf-h-3 tf-h-4"
GUE = {f"GUE/{task}": sequences.gue for task in _GUE.split()}
PEER = {f"PEER/{task}": sequences.peer for task in ("solubility", "human_ppi", "yeast_ppi")}
PEER["PEER/stability"] = sequences.stability
_OPI = {
    sequences.same: "EC_number_CLEAN_EC_number_new EC_number_CLEAN_EC_number_price Fold_type_fold_type "
    "Subcellular_localization_subcell_loc",
    sequences.rouge: "Function_CASPSimilarSeq_function Function_IDFilterSeq_function Function_UniProtSeq_function",
    sequences.listed: "gName2Cancer_gene_name_to_cancer GO_CASPSimilarSeq_go GO_IDFilterSeq_go GO_UniProtSeq_go "
    "gSymbol2Cancer_gene_symbol_to_cancer gSymbol2Tissue_gene_symbol_to_tissue Keywords_CASPSimilarSeq_keywords "
    "Keywords_IDFilterSeq_keywords Keywords_UniProtSeq_keywords",
}
OPI = {f"OPI/{task}": metric for metric, tasks in _OPI.items() for task in tasks.split()}
_PROPERTIES = {
    "mp": "formation_energy_per_atom band_gap GGA-PBE-based_energy_per_atom energy_above_hull efermi density "
    "density_atomic volume is_stable is_gap_direct",
    "jarvis_dft": "formation_energy_peratom optb88vdw_bandgap optb88vdw_total_energy ehull mbj_bandgap bulk_modulus_kv "
    "shear_modulus_gv slme spillage mepsx dfpt_piezo_max_dielectric dfpt_piezo_max_dij dfpt_piezo_max_eij max_efg "
    "exfoliation_energy avg_elec_mass n-Seebeck n-powerfact p-Seebeck p-powerfact",
    "snumat": "Band_gap_GGA Band_gap_HSE Band_gap_GGA_optical Band_gap_HSE_optical Direct_or_indirect "
    "Direct_or_indirect_HSE SOC",
    "gnome": "Formation_Energy_Per_Atom Decomposition_Energy_Per_Atom Bandgap Corrected_Energy Volume Density",
    "hmof": "max_co2_adsp min_co2_adsp lcd pld void_fraction surface_area_m2g surface_area_m2cm3",
    "cantor_hea": "Ef_per_atom e_per_atom e_above_hull volume_per_atom",
    "qmof": "energy_total bandgap lcd pld",
    "jarvis_qetb": "TB-based_energy_per_atom indir_gap f_enp final_energy",
    "oqmd": "bandgap e_form",
    "omdb": "bandgap",
}
LLM4MAT = {
    f"LLM4Mat/{source}/{name}": property_of(name) for source, names in _PROPERTIES.items() for name in names.split()
}
_MOL: dict[str, tuple[Metric, Points]] = {
    "chemical_disease_interaction_extraction": (instructions.pairs, per_cent),
    "chemical_entity_recognition": (instructions.names, per_cent),
    "chemical_protein_interaction_extraction": (instructions.pairs, per_cent),
    "multi_choice_question": (instructions.letter, float),
    "true_or_false_question": (instructions.truth, float),
    "property_prediction_str": (instructions.thousandth_error, below(10)),
    "description_guided_molecule_design": (instructions.same_molecule, per_cent),
    "forward_reaction_prediction": (instructions.same_molecule, per_cent),
    "retrosynthesis": (instructions.same_molecule, per_cent),
    "reagent_prediction": (instructions.same_molecule, per_cent),
    "molecular_description_generation": (instructions.described, per_cent),
    "catalytic_activity": (proteins.described, float),
    "domain_motif": (proteins.described, float),
    "general_function": (proteins.described, float),
    "protein_function": (proteins.described, float),
    "protein_design": (proteins.designed, float),
}
_NAMES = "chemical_entity_recognition"  # asked after an example
_ENDS = {"true_or_false_question": " Start the answer with Yes, Maybe or No."}
MOL = {f"Mol_Instructions/{task}": metric for task, (metric, _) in _MOL.items()}
_BIO = {
    biology.matthews: "antibody_antigen rna_protein_interaction emp tf_m promoter_enhancer_interaction cpd pd tf_h",
    biology.enhancers: "enhancer_activity",
    biology.isoform: "Isoform",
    biology.modifications: "Modification",
    biology.squared_pearson: "MeanRibosomeLoading",
    biology.switches: "ProgrammableRNASwitches",
    biology.spearman: "CRISPROnTarget",
    biology.mixed: "sirnaEfficiency",
}
BIO = {f"Bio_Instruction/{task}": metric for metric, tasks in _BIO.items() for task in tasks.split()}
_SMOL = {
    chemistry.same_molecule: "forward_synthesis retrosynthesis molecule_generation name_conversion-i2s",
    chemistry.same_atoms: "name_conversion-i2f name_conversion-s2f",
    chemistry.same_name: "name_conversion-s2i",
    chemistry.root_error: "property_prediction-esol property_prediction-lipo",
    chemistry.same_truth: "property_prediction-bbbp property_prediction-clintox property_prediction-hiv "
    "property_prediction-sider",
    chemistry.same_smiles: "retrosynthesis_uspto50k",
}
SMOL = {f"SmolInstruct/{task}": metric for metric, tasks in _SMOL.items() for task in tasks.split()}
_ASKED = {
    f"Conditional_Generation/{task}": materials.asked
    for task in ("conditional_generation/composition_material", "bulk_modulus_material")
}
_MOLECULE = "Unconditional_Generation/unconditional_molecule_generation"
_MATERIAL = "Unconditional_Generation/unconditional_material_generation"
_DRAWN: dict[str, Metric] = {_MOLECULE: chemistry.readable, _MATERIAL: materials.free}
_DRAWS = {
    _MOLECULE: (800, "Generate a molecule with <SMILES> "),
    _MATERIAL: (5000, "Produce a material that has any bulk modulus or composition"),
}
METRICS: dict[str, Metric] = {**GUE, **PEER, **OPI, **LLM4MAT, **MOL, **BIO, **SMOL, **_ASKED, **_DRAWN}
GROUPS = (
    "GUE", "PEER", "OPI", "LLM4Mat", "Mol_Instructions", "Bio_Instruction", "SmolInstruct", "Conditional_Generation",
    "Unconditional_Generation",
)  # fmt: skip
_OF_SMACT = GROUPS[-2:]
_SMACT = "pip install smact==3.0.2"
_POINTS: dict[str, Points] = {
    **dict.fromkeys(OPI, per_cent),
    **{f"Mol_Instructions/{task}": points for task, (_, points) in _MOL.items()},
    # OPI's figures and areas under curves are shares; LLM4Mat's ratios are added to these as they are
    **{name: per_cent for name in LLM4MAT if name.split("/")[-1] in LABELS},
    _MOLECULE: per_cent,
    "SmolInstruct/property_prediction-esol": below(4),
    "SmolInstruct/property_prediction-lipo": below(2),
}


def read(directory: Path) -> Iterator[Item]:
    """Rows of GROUP/TASK/test/data.json, of LLM4Mat of LLM4Mat/SOURCE/test/data.json: input and output.

    Groups without a folder are passed over; a folder has to have all tasks.
    """
    present = [group for group in GROUPS if (directory / group).is_dir()]
    if not present:
        text = f"{directory} has none of the folders {', '.join(GROUPS)}; put the published data sets there"
        raise SuiteError(text, where=str(directory), allowed=GROUPS)
    for group in present:
        if group in _OF_SMACT and not find_spec("smact"):
            text = (
                f"{directory / group} has materials, which are scored with smact, and that is not installed: {_SMACT}"
            )
            raise SuiteError(text, where=str(directory / group), value="smact", allowed=_SMACT)
        reader = {"LLM4Mat": _crystals, "Unconditional_Generation": _draws}.get(group, _group)
        yield from reader(directory / group)


def _draws(folder: Path) -> Iterator[Item]:
    """The published tasks ask the same question again and again; they have no files, and the folder may be empty."""
    for task, (count, question) in _DRAWS.items():
        for number in range(1, count + 1):
            yield Item(f"{task}/{number}", user(question), "", {"task": task, "group": folder.name})


def _group(folder: Path) -> Iterator[Item]:
    for task in (name.partition("/")[2] for name in METRICS if name.startswith(f"{folder.name}/")):
        path = find_file(folder, f"{task}/test/data.json")
        for row in read_rows(path, "input", "output"):
            reference: Any = row.text("output", missing="")  # published lists may be empty
            if folder.name == "GUE":
                reference = row.mapping("meta_data").get("label")
                if reference not in ("positive", "negative"):
                    what = "meta_data.label has to be positive or negative"
                    raise row.fault(what, value=reference, allowed=("positive", "negative"))
            column = "output"
            if folder.name == "Bio_Instruction":
                column, reference = "label", row.value("label")
                if reference is None:
                    continue  # the published scorer leaves rows without a label out
            text = row.text("input") + ("." if folder.name == "PEER" else _ENDS.get(task, ""))
            name = f"{folder.name}/{task}"
            if folder.name in ("Mol_Instructions", "Bio_Instruction", "SmolInstruct"):
                try:
                    METRICS[name].one("", reference)
                except (ValueError, LookupError):
                    raise row.wrong(column, f"a reference of the task {task}") from None
            messages = _after_example(folder, text) if task == _NAMES else user(text)
            yield Item(f"{name}/{row.number}", messages, reference, {"task": name, "group": folder.name})


def _after_example(folder: Path, text: str) -> list[Message]:
    """The question after the first of the examples in dev/data.json, as published."""
    example = next(read_rows(find_file(folder, f"{_NAMES}/dev/data.json"), "input", "output"))
    shown = user(f"Query: {example.text('input')}", system="Answer the question about chemistry without more.")
    return [*shown, {"role": "assistant", "content": example.text("output")}, *user(f"Query: {text}")]


def _crystals(folder: Path) -> Iterator[Item]:
    """A row belongs to each property that its output names as `{name : value}`."""
    for source, names in _PROPERTIES.items():
        path = find_file(folder, f"{source}/test/data.json")
        for row in read_rows(path, "input", "output"):
            question, reference = row.text("input"), row.text("output")
            for name in names.split():
                if f"{{{name} :" in reference:
                    task = f"LLM4Mat/{source}/{name}"
                    yield Item(f"{task}/{row.number}", user(question), reference, {"task": task, "group": "LLM4Mat"})


def score(item: Item, answer: str, verdict: str | None) -> dict[str, Any]:
    return METRICS[item.meta["task"]].one(answer, item.reference)


def summarise(scored: Sequence[Scored]) -> Summary:
    """The mean of the groups that are there; categories: the groups' figures as the published summary makes them, in
    which a figure that is not defined counts as 0; metrics: the tasks' in their own units."""
    rows: dict[str, list[Any]] = {}
    for one in scored:
        rows.setdefault(one.item.meta["task"], []).append(one.values)
    tasks = {task: METRICS[task].combine(rows[task]).value for task in METRICS if task in rows}
    groups: dict[str, list[float]] = {}
    for task, value in tasks.items():
        points = _POINTS.get(task, float)
        groups.setdefault(task.split("/")[0], []).append(points(value) if math.isfinite(value) else 0.0)
    figures = {group: mean(values) for group, values in groups.items()}
    return Summary(mean(list(figures.values())), tasks, figures)


SUITES = (
    Suite(
        name="SciReasoner",
        domain="several sciences",
        metric="mean of the groups in the files, in per cent, of GUE (Matthews), PEER (accuracy), OPI (accuracy, F1, "
        "ROUGE-L), LLM4Mat (AUC, MAD/MAE), Mol_Instructions (F1, accuracy, MAE, equal molecules, ROUGE-L, alignment), "
        "Bio_Instruction (Matthews, Pearson, its square, Spearman, AUC, mixed), SmolInstruct (equal molecules, "
        "formulas and names, accuracy, RMSE), Conditional_Generation and Unconditional_Generation (materials that "
        "smact calls possible, molecules that can be read): 145 of 149 tasks, so that it is NOT the report's figure; "
        "docs/evaluation.md names the others",
        metric_source="opencompass 0.5.4: datasets/SciReasoner/, summarizers/scireasoner.py; PEER without its judge, "
        "Bio_Instruction without its classifier",
        where_data="GUE/, PEER/, OPI/, LLM4Mat/, Mol_Instructions/, Bio_Instruction/, SmolInstruct/ and "
        "Conditional_Generation/ with TASK/test/data.json (SciReason on Hugging Face: GUE-test, PEER-test, OPI-test, "
        "LLM4Mat-test; opencompass/SciReasoner-Mol_Instructions, SciReasoner-bio_instruction, SciReasoner-smol and "
        "SciReasoner-Conditional_generation); an empty folder Unconditional_Generation/ for 800 molecules and 5,000 "
        f"materials. The last two groups need smact: {_SMACT}",
        reported=55.5,
        read=read,
        score=score,
        summarise=summarise,
        packages=("scikit-learn", "scipy", "rouge-score", "rdkit"),
    ),
)
