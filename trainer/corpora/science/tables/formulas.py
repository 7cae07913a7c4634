"""Formulas of inorganic compounds in their usual order, from those in Hill order: `OZr` -> `ZrO`."""

import re

# From the most electropositive element to fluorine, as binary formulas are written (IUPAC Red Book 2005, table VI).
SEQUENCE = (
    "Li Na K Rb Cs Ba Sr Ca Mg Be La Ce Th U Hf Zr Ti Ta Nb V W Mo Cr Re Mn Fe Co Ni Pt Au Ag Cu Hg Cd Zn "
    "Pb Sn Tl In Ga Al B Si C Sb As P N H D T Te Se S I Br Cl O F Xe Kr Ar Ne He"
)
ORDER = {symbol: place for place, symbol in enumerate(SEQUENCE.split())}
NOBLE = {"He", "Ne", "Ar", "Kr", "Xe"}
HYDROGEN, HALOGENS = {"H", "D", "T"}, {"I", "Br", "Cl", "F"}
FORMULA = re.compile(r"((?:[A-Z][a-z]?\d*)+)([+-]*)")
KNOWN = {
    "HO": "OH", "HO+": "OH+", "HO-": "OH-", "DO": "OD", "HS": "SH", "DS": "SD", "CHN": "HCN", "CHNO": "HNCO",
    "CHP": "HCP",
}  # fmt: skip
OXO_ANION = re.compile(r"hypochlorite|chlorite|chlorate|bromate|iodate")  # here the halogen precedes the oxygen


def usual(formula: str, name: str) -> str:
    """The formula in its usual order; "" where that is not certain."""
    found = FORMULA.fullmatch(formula)
    if found is None or name.endswith(" radical") or ("nitrate" in name and "F" in formula):
        return ""
    if formula in KNOWN:
        return KNOWN[formula]
    parts, charge = re.findall(r"([A-Z][a-z]?)(\d*)", found[1]), found[2]
    counts = dict(parts)
    elements = set(counts)
    if len(elements) > 1 and (elements & NOBLE or not elements <= ORDER.keys()):
        return ""
    if len(elements) == 1 or elements <= {"C", *HALOGENS}:
        return formula
    hydrogen = elements & HYDROGEN
    if "C" in elements and (hydrogen or "carbonyl" in name):
        return formula if hydrogen and not any(ORDER[e] < ORDER["B"] for e in elements) else ""
    if "C" in elements and {"O", "S", "N"} & elements and not any(ORDER[e] < ORDER["B"] for e in elements):
        return formula if len(elements) == 2 else ""  # of COS, HNCO and ONC there are several ways to write
    if {"N", "H"} == elements and counts["N"] not in ("", "2"):
        return ""  # HN3 is an acid
    order = sorted(elements, key=ORDER.__getitem__)
    if len(elements) > 2 and "O" in elements:
        if hydrogen and "hydroxide" in name and len(elements) == 3:
            return _hydroxide(counts, order[0], min(hydrogen), charge)
        if hydrogen and "acid" in name:
            order.sort(key=lambda e: e not in hydrogen)
        elif hydrogen and not {"N", "H", "O"} < elements:
            return ""
        elif not OXO_ANION.search(name) and elements & HALOGENS and len(elements - HALOGENS) > 1:
            order = [e for e in order if e not in HALOGENS] + [e for e in order if e in HALOGENS]
    return "".join(e + counts[e] for e in order) + charge


def _hydroxide(counts: dict[str, str], metal: str, hydrogen: str, charge: str) -> str:
    if counts["O"] != counts[hydrogen]:
        return ""
    if counts[metal]:  # a dimer
        return f"({metal}O{hydrogen}){counts[metal]}{charge}" if counts[metal] == counts["O"] else ""
    group = f"O{hydrogen}" if not counts["O"] else f"(O{hydrogen}){counts['O']}"
    return metal + group + charge
