"""Records that need words of their own or are left out: dates, plurals, formulas, locants, impossible values."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest

from trainer.corpora.science import narrate
from trainer.corpora.science.names import with_capitals
from trainer.corpora.science.records import Property, Record, Table
from trainer.corpora.science.tables import chemistry, constants, plausible, pubchem, sequences
from trainer.corpora.science.tables.formulas import usual
from trainer.corpora.science.tables.user_files import read_table
from trainer.corpora.science.texts import Text, texts

LETTERS = "abcdefghijkl"


def made(table: Table) -> list[Text]:
    return [text for seed in range(30) for text in texts("made", [table], seed=seed, tasks_per_record=4)]


def table_of(prop: Property, values: list[str]) -> Table:
    records = [Record(f"k{n}", f"thing {LETTERS[n]}", {"x": value}) for n, value in enumerate(values)]
    return Table("made", "object", "objects", {"x": prop}, records)


def test_a_year_is_when_something_happened(tmp_path: Path) -> None:
    rows = "\n".join(f"thing {letter},{1900 + 30 * place},steel" for place, letter in enumerate(LETTERS))
    (tmp_path / "a.csv").write_text(f"name,year,class\n{rows}\n")
    (tmp_path / "a.yaml").write_text(
        "name: name\nproperties: {year: {label: year of introduction}, class: {label: class, text: true}}\n"
    )
    found = "".join(text.text for text in made(read_table(tmp_path / "a.csv", tmp_path / "a.yaml")))
    for phrase in ("was introduced in 19", "introduced earliest", "introduced most recently", "earliest first"):
        assert phrase in found
    for phrase in ("has a year", "lowest", "highest", "the earliest year", "has the class", "reported"):
        assert phrase not in found
    for phrase in (" year of introduction of", "year of introduction is"):
        assert phrase not in found


def test_two_numbers_never_meet() -> None:
    prop = Property("enthalpy of formation", "in the gas phase at 0 K", "J/mol", identifies=True)
    values = [f"{234680 + 20000 * n}" for n in range(12)]
    for text in made(table_of(prop, values)):
        assert not any(f"K {value}" in text.text or f"has {value}" in text.text for value in values), text.text


def test_keywords_are_several_and_an_alternative_name_is_one_of_several() -> None:
    plural = "".join(t.text for t in made(table_of(sequences.PROTEIN["keywords"], ["Activator; Repeat"] * 9)))
    assert 'keywords are "' in plural
    assert "hat are the keywords" in plural
    assert "keywords is" not in plural
    assert "list of keywords" not in plural
    assert sequences._keywords("ENV") == {"keyword": "ENV"}
    kind = "".join(t.text for t in made(table_of(sequences.NUCLEOTIDE["molecule"], ["DNA", "mRNA"] * 5)))
    assert "ts molecule type is DNA" in kind
    assert "has the molecule type" not in kind
    other = "".join(t.text for t in made(table_of(pubchem.IDENTITY["other"], [f"name {n}" for n in LETTERS])))
    assert "An alternative name of thing a is name a" in other
    assert not {phrase for phrase in ("he alternative name", "ts alternative name") if phrase in other}


def test_a_possessive_goes_to_the_thing() -> None:
    uncertainty = chemistry.ACTIVE["uncertainty"]
    found = "".join(t.text for t in made(table_of(uncertainty, [str(100 + 20 * n) for n in range(12)])))
    assert "he uncertainty in its gas-phase enthalpy of formation is" in found
    assert "ts uncertainty" not in found
    assert "formation of 1" not in found


@pytest.mark.parametrize(
    ("lost", "written"),
    [
        ("n-difluoroboranyl-N-methyl-methanamine", "N-difluoroboranyl-N-methyl-methanamine"),
        ("n-butyl-n-ethylaniline", "N-butyl-N-ethylaniline"),
        ("n-hexylpentanamide", "N-hexylpentanamide"),
        *((name, name) for name in ("n-butylamine", "n-butyl pivalate", "isopropyl n-butyl disulphide", "d-carvone")),
        ("n-acetyl-l-glutamic acid", "N-acetyl-L-glutamic acid"),
        ("l-threitol", "L-threitol"),
        ("(2e,4z)-hexadiene", "(2E,4Z)-hexadiene"),
    ],
)
def test_locants_keep_their_capitals(lost: str, written: str) -> None:
    assert with_capitals(lost) == written


def test_an_alternative_name_differs_in_more_than_its_spelling() -> None:
    line = "1\t1-1-1\tC9H12O\t136\tCC\tI\tA-B\t2-methoxy-1,4-dimethyl-benzene\t2,5-dimethylanisole\t"
    assert "other" not in pubchem.parse_record(line + "2-methoxy-1,4-dimethylbenzene").values
    assert "other" not in pubchem.parse_record(line + "2,5-Dimethyl anisole").values
    assert pubchem.parse_record(line + "methyl xylyl ether").values["other"] == "methyl xylyl ether"


@pytest.mark.parametrize(
    ("hill", "name", "expected"),
    [
        *(("OZr", "zirconium oxide", "ZrO"), ("Br2Ti", "titanium bromide", "TiBr2"), ("H3N", "ammonia", "NH3")),
        *(("ClF5S", "sulfur chloride fluoride", "SClF5"), ("H2MgO2", "magnesium hydroxide", "Mg(OH)2")),
        *(("H2O4S", "sulfuric acid", "H2SO4"), ("Cl3OP", "phosphoryl chloride", "POCl3"), ("CF3I", "x", "CF3I")),
        *(("ClLiO4", "lithium perchlorate", "LiClO4"), ("Cs2H2O2", "cesium hydroxide", "(CsOH)2")),
        *(("C4NiO4", "nickel carbonyl", ""), ("B3H3O3", "boroxin", ""), ("COS", "carbon oxide sulfide", "")),
        *(("CN2", "NCN radical", ""), ("HN3", "hydrazoic acid", ""), ("BeH+", "beryllium hydride cation", "BeH+")),
    ],
)
def test_a_formula_is_in_its_usual_order_or_left_out(hill: str, name: str, expected: str) -> None:
    assert usual(hill, name) == expected


@pytest.mark.parametrize(
    ("chemical", "formula", "expected"),
    [
        *(("Zinc, Ion", "Zn-", "zinc anion (Zn-)"), ("Zinc, Ion", "Zn+", "zinc cation (Zn+)")),
        *(("Difluoroborane", "BF2", ""), ("Difluoroborane", "BF2H", "difluoroborane (BHF2)"), ("Borane", "BH", "")),
        *(("Barium Hydroxide", "BaH2O2", "barium hydroxide [Ba(OH)2]"), ("Boroxin", "B3H3O3", "boroxin")),
    ],
)
def test_a_name_of_janaf_agrees_with_its_formula(chemical: str, formula: str, expected: str) -> None:
    assert chemistry._janaf_name({"Chemical": chemical, "formula": formula}) == expected


def test_species_whose_name_contradicts_the_formula_are_left_out() -> None:
    assert chemistry._active_name({"Chemical": "Fulminic acid", "Formula": "HONC (g)"}) == ""
    assert chemistry._active_name({"Chemical": "Ozone", "Formula": "OOO (g)"}) == "ozone (OOO)"
    assert chemistry._active_name({"Chemical": "Acetone", "Formula": "CH3C(O)CH3 (g)"}) == "acetone"


@pytest.mark.parametrize(
    ("values", "kept"),
    [
        ({"Tc": "0.869", "Pc": "2"}, {"Pc": "2"}),
        ({"Hfl": "804165.0"}, {}),
        ({"Cpg": "0", "S0g": "20.8"}, {"S0g": "20.8"}),
        ({"uncertainty": "0"}, {}),
        ({"Tm": "300", "Tb": "250"}, {}),
        ({"rho": "1.145"}, {}),
        ({"Tb": "231", "rho": "493"}, {"Tb": "231"}),
    ],
)
def test_what_cannot_be_right_is_left_out_and_counted(values: dict[str, str], kept: dict[str, str]) -> None:
    properties = chemistry.THERMOCHEMISTRY | chemistry.ACTIVE | chemistry.PHYSICAL | chemistry.CRITICAL
    left_out = Counter[str]()
    labels = {key: prop.label for key, prop in properties.items()}
    assert plausible.plausible(values, labels, left_out) == kept
    assert left_out.total() == len(values) - len(kept)
    assert all(": " in reason for reason in left_out)


def test_an_element_has_what_was_measured(tables: list[Table]) -> None:
    elements = {record.name: record.values for record in tables[-1].records}
    assert "most common isotopic mass" not in elements["radon"]
    assert "most common isotopic mass" not in elements["vanadium"]
    assert elements["lithium"]["Van derWaal radius"] == "1.82"
    assert {n for n in ("bromine", "cesium", "zinc") if "Van derWaal radius" in elements[n]} == set()
    assert {n for n in ("lithium", "curium") if "covalent radius" in elements[n]} == set()
    assert "ununbium" not in elements
    assert sum(tables[-1].left_out.values()) > 100


def test_whole_numbers_have_no_spurious_digit(tables: list[Table]) -> None:
    for table in tables:
        if "JANAF" in table.name:
            assert not any(value.endswith(".0") for record in table.records for value in record.values.values())
            assert not any(".0 K" in prop.condition for prop in table.properties.values())


def test_a_density_has_its_conditions() -> None:
    assert chemistry.PHYSICAL["rho"].of_name("iron") == "density of iron"


def test_a_damaged_name_and_a_repeated_task_are_left_out() -> None:
    records = [Record(f"k{n}", "e-metal" if n == 0 else f"thing {LETTERS[n]}", {"x": f"{n + 1}.5"}) for n in range(12)]
    table = Table("made", "object", "objects", {"x": Property("mass", unit="kg")}, records)
    for seed in range(20):
        tasks = [(t.origin, t.text) for t in texts("made", [table], seed=seed, tasks_per_record=4) if t.task]
        assert len(tasks) == len(set(tasks))
        assert not any("e-metal" in text for _, text in tasks)


def test_a_list_of_ions_is_not_a_name() -> None:
    line = "1\t1-1-1\tC2H6O6\t126\tCC\tI\tA-B\tethanedioic acid;dihydrate\t"
    assert "systematic" not in pubchem.parse_record(line + "oxalic acid dihydrate").values
    assert pubchem.parse_record(line.rstrip("\t")).name == ""


def test_isotopes_are_ranked_without_a_second_superlative() -> None:
    isotope = chemistry.ELEMENT["most common isotopic mass"]
    found = "".join(text.text for text in made(table_of(isotope, [f"{n + 20}.5" for n in range(12)])))
    assert "by the mass of their most abundant isotope" in found
    assert "highest mass of" not in found
    assert "heaviest" not in found


def test_a_class_takes_an_article_by_its_number(tmp_path: Path) -> None:
    kinds = ("permanent magnet", "alloy", "stainless steels", "glass")
    rows = "\n".join(f"thing {letter},{kinds[place % 4]}" for place, letter in enumerate(LETTERS))
    (tmp_path / "a.csv").write_text(f"name,class\n{rows}\n")
    (tmp_path / "a.yaml").write_text("name: name\nproperties: {class: {label: class, text: true}}\n")
    found = "".join(text.text for text in made(read_table(tmp_path / "a.csv", tmp_path / "a.yaml")))
    for phrase in ("as a permanent magnet", "as an alloy", "among the stainless steels", "as a glass"):
        assert f"is classed {phrase}." in found
    assert "ts class is" not in found
    assert "as stainless steels" not in found
    assert not {f"is {kind}" for kind in kinds if f"is {kind}" in found} - {"is stainless steels"}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *(("0.000000042e-28", "4.2e-36"), ("0.0000000020e-3", "2.0e-12"), ("6.6446573450e-27", "6.6446573450e-27")),
        *(("-12.5e3", "-1.25e4"), ("0.0005e-3", "5e-7"), ("0.00000017", "1.7e-7"), ("(exact)", "(exact)")),
        *(
            ("8.0e1", "80"),
            ("5.1e2", "510"),
            ("1.10e-2", "0.0110"),
            ("-0.0013", "-0.0013"),
            ("206.7669881", "206.7669881"),
        ),
    ],
)
def test_an_exponent_follows_one_digit_before_the_point(written: str, expected: str) -> None:
    assert constants.normalised(written) == expected


def test_a_mass_is_that_of_the_isotope_alone() -> None:
    isotope, atomic = (chemistry.ELEMENT[key] for key in ("most common isotopic mass", "atomic number"))
    values = [{"x": f"{n + 20}.5", "y": str(n + 10)} for n in range(12)]
    records = [Record(f"k{n}", f"thing {LETTERS[n]}", values[n]) for n in range(12)]
    found = "".join(t.text for t in made(Table("made", "element", "elements", {"x": isotope, "y": atomic}, records)))
    assert "Thing a's most abundant isotope has a mass of 20.5 u." in found
    assert "Its most abundant isotope has a mass of 2" in found
    assert "For which of these elements does the most abundant isotope have a mass of 2" in found
    for phrase in ("has a most abundant", " u and an atomic number", "whose mass of", "and a mass of"):
        assert phrase not in found


@pytest.mark.parametrize(
    ("line", "unit"),
    [
        ("C2H6O\t46\tCCO\tC2H6O/c1-2-3/h3H,2H2,1H3", "molecule"),
        ("CH3NO2\t61\tC[N+](=O)[O-]\tCH3NO2/c1-2(3)4/h1H3", "molecule"),
        ("ClNa\t58\t[Na+].[Cl-]\tClH.Na/h1H;/q;+1/p-1", "formula unit"),
        ("C2H3O2\t59\tCC(=O)[O-]\tC2H4O2/c1-2(3)4/h1H3,(H,3,4)/p-1", "formula unit"),
        ("CSi\t40\t[C-]#[Si+]\tCSi/c1-2", "formula unit"),
        ("C4H10Zn\t123\tCC[Zn]CC\tC4H10Zn/c1-3-5-4-2/h3-4H2,1-2H3", "formula unit"),
    ],
)
def test_atoms_are_counted_in_a_molecule_or_a_formula_unit(line: str, unit: str) -> None:
    values = pubchem.parse_record(f"1\t1-1-1\t{line}\tA-B\tsome name\tsome name\t").values
    (key,) = {"atoms", "atoms of molecule"} & values.keys()
    assert f"atoms per {unit}" in pubchem.IDENTITY[key].predicate("2 carbon atoms")


def test_a_name_in_another_language_is_left_out() -> None:
    line = "1\t1-1-1\tC7H6O3\t138\tCC\tI\tA-B\t4-oxidanylbenzoic acid\t"
    assert pubchem.parse_record(line + "p-oxybenzoesaure [german]\tparaben acid").name == "paraben acid"
    found = pubchem.parse_record(line + "paraben acid\tacide hydroxybenzoique [inn-french]\tparaben base")
    assert found.values["other"] == "paraben base"


def test_a_condition_goes_with_the_label_of_a_reported_value() -> None:
    gibbs = chemistry.THERMOCHEMISTRY["Gfg"]
    found = "".join(t.text for t in made(table_of(gibbs, [f"{-1000 * (n + 1)}" for n in range(12)])))
    assert re.search(
        r"eported standard Gibbs energy of formation of thing . in the gas phase at 298.15 K is -\d+ J/mol\.", found
    )
    assert "has been reported" not in found


def test_a_year_precedes_the_noun_of_an_authority() -> None:
    assert chemistry.JANAF == "the 1998 JANAF Thermochemical Tables"


def test_a_label_before_a_prompt_suits_it() -> None:
    prop = Property("melting point", unit="K")
    for text in made(table_of(prop, [f"{300 + 20 * n}" for n in range(12)])):
        if text.task is None or text.form == "completion":
            continue
        prompt = text.task.prompt
        asked = re.match(r"(?:### Question|\*\*Question|\[Question|Question:|Q:)", prompt)
        assert not asked or "?" in prompt, prompt
        assert not re.match(r"(?:### )?(?:Instruction|Task)", prompt) or "?" not in prompt, prompt
        casual = re.search(r"\b(?:I need|I'm looking|Can you|Could you|Do you|Please)\b", prompt)
        assert not casual or re.match(r"(?:\*\*)?(?:User|Prompt)|I|Can|Could|Do |Please", prompt), prompt
        assert not re.search(r"\border\b[^:]*\border\b", prompt, re.I), prompt
        if "\n" in prompt.removeprefix("### Question\n").removeprefix("### Instruction\n").removeprefix("Problem:\n"):
            assert re.match(r"\n\n|\n\S+ ", text.task.frame), text.text


@pytest.mark.parametrize(
    ("values", "listed"),
    [
        ("2 at 1 K|3 at 2 K", "2 at 1 K and 3 at 2 K"),
        ("2 at 1 K|2 at 2 K", "2 at both 1 K and 2 K"),
        ("2 at 1 K|2 at 2 K|3 at 3 K", "2 at both 1 K and 2 K and 3 at 3 K"),
        ("2 at 1 K|2 at 2 K|2 at 3 K", "2 at 1 K, 2 K and 3 K"),
        ("2 at 1 K|2 at 2 K|2 at 3 K|3 at 4 K", "2 at 1 K, 2 K and 3 K, and 3 at 4 K"),
        ("1 at 1 K|2 at 2 K|2 at 3 K|3 at 4 K", "1 at 1 K; 2 at both 2 K and 3 K; and 3 at 4 K"),
    ],
)
def test_equal_values_in_a_row_are_written_once(values: str, listed: str) -> None:
    pairs = [(value.partition(" ")[0], value.partition(" ")[2]) for value in values.split("|")]
    assert narrate._listed(pairs) == listed


def test_a_list_with_values_has_one_form() -> None:
    records = [Record(f"k{n}", f"thing {LETTERS[n]}" + " (g)" * (n % 2), {"x": str(n + 10)}) for n in range(12)]
    table = Table("made", "object", "objects", {"x": Property("mass", unit="kg")}, records)
    mixed = [t for t in made(table) if t.task and re.search(r"\): \d+ kg", t.task.short) and "(1" in t.task.short]
    assert mixed == []


def test_a_value_precedes_its_uncertainty() -> None:
    (table,) = constants.constants()
    some = [record for record in table.records if len(record.values) > 1][::12]
    found = [t.text for t in made(dataclasses.replace(table, records=some)) if t.task is None]
    assert len(found) > 300
    for text in found:
        assert text.lower().index("codata 2022 value") < text.lower().index("standard uncertainty"), text
        assert "properties" not in text
    assert any(", with a standard uncertainty of " in text for text in found)


@pytest.mark.parametrize(
    ("listed", "written"),
    [
        *(("acid red 89", "Acid Red 89"), ("vitamin b12", "vitamin B12"), ("baccatin iii", "baccatin III")),
        *(("bisphenol a diallyl ether", "bisphenol A diallyl ether"), ("boc-glycine", "Boc-glycine")),
        *(("2,5-ditert-butylfuran", "2,5-di-tert-butylfuran"), ("medroxalol hcl", "medroxalol hydrochloride")),
        *((".alpha.-methylstyrene", "alpha-methylstyrene"), ("sodium acetate-13c2", "sodium acetate-13C2")),
    ],
)
def test_a_name_is_spelled_as_in_a_text(listed: str, written: str) -> None:
    assert pubchem._spelled(listed) == written


@pytest.mark.parametrize(
    ("listed", "written"),
    [
        ("tricyclo[2.2.1.0^{2,6}]heptane", "tricyclo[2.2.1.0^2,6]heptane"),
        ("methylidene-$l^{5}-phosphane", "methylidene-lambda5-phosphane"),
    ],
)
def test_a_superscript_of_a_systematic_name_needs_no_braces(listed: str, written: str) -> None:
    line = f"1\t1-1-1\tC7H10\t94\tCC\tI\tA-B\t{listed}\tsome name"
    assert pubchem.parse_record(line).values["systematic"] == written


@pytest.mark.parametrize("name", ["arsine,dimethyl(phenylmethyl)", "hexane 1,1-dichloro", "benzene, 1-hexynyl-"])
def test_an_index_entry_is_not_an_alternative_name(name: str) -> None:
    assert pubchem._indexed(name)
    assert not pubchem._indexed("1,1-dichlorohexane")


@pytest.mark.parametrize(
    "name", ["chebi:141059", "cbr2cl2", "moxestrol [inn:dcf]", "acid- amine(1:1)", "propyl radical"]
)
def test_a_code_is_not_a_name(name: str) -> None:
    assert pubchem._odd(name)
    assert not pubchem._odd("octyl phenylcarbamate")


def test_deuterated_species_are_named_by_their_atoms() -> None:
    for chemical, formula, expected in (
        ("Ammonia-D", "D3N", "ammonia-d3 (ND3)"),
        ("Hydrogen-D, Ion", "HD+", "hydrogen deuteride cation (HD+)"),
        ("Water-D", "D2O", "deuterium oxide (D2O)"),
    ):
        assert chemistry._janaf_name({"Chemical": chemical, "formula": formula}) == expected


def test_a_sheet_has_the_temperatures_in_order(tables: list[Table]) -> None:
    capacities = next(table for table in tables if table.name == "JANAF heat capacities")
    few = dataclasses.replace(capacities, records=capacities.records[:150])
    sheets = [t.text for t in texts("x", [few], seed=0, tasks_per_record=0) if t.template.startswith("card")]
    assert len(sheets) > 10
    for sheet in sheets:
        for phase in ("solid", "liquid", "gas"):
            found = [float(at) for at in re.findall(rf"in the {phase}\w* \w*(?:state|phase)? ?at ([\d.]+) K", sheet)]
            assert found == sorted(found), sheet


def test_a_requested_value_is_no_answer_to_a_question() -> None:
    prop = Property("melting point", unit="K")
    found = [t.text for t in made(table_of(prop, [f"{300 + 20 * n}" for n in range(12)])) if t.form == "qa"]
    answered = [text for text in found if "The answer is" in text]
    assert answered
    assert all("?" in text for text in answered)


def test_an_order_with_semicolons_follows_a_colon() -> None:
    prop = Property("melting point", unit="K")
    found = [t.text for t in made(table_of(prop, [f"{300 + 20 * n}" for n in range(12)])) if t.form == "ranking"]
    assert any("The order is thing" in text for text in found)
    assert any("In order: thing" in text for text in found)
    assert not any(";" in text.partition("The order is thing")[2] for text in found)


def test_a_constant_is_not_the_value_of_a_value() -> None:
    assert constants._in_full("conventional value of von Klitzing constant") == "conventional von Klitzing constant"
    assert not any("value" in record.name for table in constants.constants() for record in table.records)


def test_it_is_never_the_organism() -> None:
    organism = sequences.PROTEIN["organism"]
    found = "".join(t.text for t in made(table_of(organism, [f"Homo {letter}" for letter in LETTERS])))
    assert "comes from Homo" in found
    assert "source organism is" not in found


def test_a_protecting_group_has_its_capital() -> None:
    line = "1\t1-1-1\tC19H17NO4\t323\tCC\tI\tA-B\t\t"
    assert pubchem.parse_record(line + "(r)-n-fmoc-azetidine-2-carboxylic acid").name.startswith("(R)-N-Fmoc-azet")
