"""Molecules: what counts as equal is stated pair by pair, as a chemist would."""

import pytest

from trainer.rl.rewards.base import Question, RewardError, build_reward, close_reward

pytest.importorskip("rdkit", reason="pip install -e '.[rewards]'")

FORMS = {
    "smiles": {},
    "inchi": {"by": "inchi"},
    "tautomer": {"by": "tautomer"},
    "flat": {"stereo": False, "isotopes": False},
    "parent": {"salts": False},
}
# two molecules, and the forms in which they are equal
PAIRS = {
    "ethanol in two orders": ("CCO", "OCC", {"smiles", "inchi", "tautomer", "flat", "parent"}),
    "benzene by Kekule": ("c1ccccc1", "C1=CC=CC=C1", {"smiles", "inchi", "tautomer", "flat", "parent"}),
    "an InChI": ("CCO", "InChI=1S/C2H6O/c1-2-3/h3H,2H2,1H3", {"smiles", "inchi", "tautomer", "flat", "parent"}),
    "an isomer": ("CCO", "COC", set()),
    "atom maps": ("CCO", "[CH3:1][CH2:2][OH:3]", {"smiles", "inchi", "tautomer", "flat", "parent"}),
    "enantiomers": ("C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", {"flat"}),
    "no stereo given": ("C[C@H](N)C(=O)O", "CC(N)C(=O)O", {"flat"}),
    "cis and trans": ("C/C=C/C", r"C/C=C\C", {"flat"}),
    "deuterium": ("CCO", "CCO[2H]", {"flat"}),
    "carbon 13": ("CCO", "C[13CH2]O", {"flat"}),
    "tautomers of an amide": ("c1ccc(O)nc1", "O=c1cccc[nH]1", {"inchi", "tautomer"}),
    "keto and enol": ("CC(=O)CC(C)=O", "CC(=O)C=C(C)O", {"tautomer"}),
    "a salt and its acid": ("CC(=O)[O-].[Na+]", "CC(=O)O", {"parent"}),
    "the parts of a salt in two orders": (
        "CC(=O)[O-].[Na+]", "[Na+].[O-]C(C)=O", {"smiles", "inchi", "tautomer", "flat", "parent"},
    ),
    "a zwitterion": ("NCC(=O)O", "[NH3+]CC(=O)[O-]", {"inchi", "parent"}),
    "a complex and its ions": ("N[Pt](N)(Cl)Cl", "[NH2-].[NH2-].[Cl-].[Cl-].[Pt+4]", {"inchi", "parent"}),
    "an attachment point": ("*CCO", "OCC*", {"smiles", "inchi", "tautomer", "flat", "parent"}),
    "another attachment point": ("*CCO", "CC(*)O", set()),
}  # fmt: skip


@pytest.fixture(scope="module")
def rewards():
    made = {name: build_reward({"name": "molecule", **options}) for name, options in FORMS.items()}
    shared = made["smiles"]._workers  # one process for all: its questions say how
    for reward in made.values():
        object.__setattr__(reward, "_workers", shared)
    yield made
    close_reward(made["smiles"])


@pytest.mark.parametrize("name", PAIRS)
def test_what_counts_as_equal(rewards, name):
    one, other, equal = PAIRS[name]
    for asked, given in ((one, other), (other, one)):
        found = {form for form, reward in rewards.items() if reward(Question(0, "?", asked), given).value}
        assert found == equal


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("<SMILES> OCC </SMILES>", 1),
        ("<SMILES>C</SMILES> or rather <SMILES>OCC</SMILES>", 1),
        ("The answer is `OCC`.", 1),
        (r"\boxed{OCC}", 1),
        ("OCC is the answer", 0),  # RDKit alone takes what is behind a space for a name
        ("", 0),
        ("C(", 0),
        ("CN(C)(C)(C)C", 0),
        ("ethanol", 0),
        ("<think>OCC", 0),
        ("C" * 2_000, 0),
    ],
)
def test_where_a_molecule_is_found(rewards, answer, value):
    assert rewards["smiles"](Question(0, "?", "CCO"), answer).value == value


@pytest.mark.parametrize("reference", ["", "ethanol", "C("])
def test_a_reference_that_is_not_a_molecule_is_named(rewards, reference):
    with pytest.raises(RewardError) as caught:
        rewards["smiles"](Question(7, "?", reference), "CCO")
    assert caught.value.where == "question 7"


def test_an_unknown_form_is_refused():
    with pytest.raises(RewardError) as caught:
        build_reward({"name": "molecule", "by": "inchikey"})
    assert (caught.value.where, caught.value.allowed) == ("rl.reward.by", ("smiles", "inchi", "tautomer"))
