"""Values of the tables that cannot be right, or that the tables do not measure: left out, and counted by reason."""

from collections import Counter
from collections.abc import Mapping

# Label of a quantity: (lowest, highest, why a value outside is a mistake of the table).
BOUNDS = {
    "critical temperature": (5.0, 2000.0, "helium has the lowest critical temperature, 5.2 K"),
    "critical compressibility factor": (0.15, 0.35, "that of real fluids is between 0.15 and 0.35"),
    "melting point": (13.0, 4300.0, "no substance melts below 13 K or above 4300 K at normal pressure"),
    "normal boiling point": (4.2, 6300.0, "no substance boils below 4.2 K or above 6300 K at normal pressure"),
    "density": (300.0, 23000.0, "a lower one is that of a gas, a higher one exceeds that of osmium"),
    "refractive index": (1.251, 1.9, "that of liquids is between 1.25 and 1.9"),
    "enthalpy of fusion": (300.0, 300000.0, "a smaller one lost digits"),
    "enthalpy of vaporization": (50.0, 1000000.0, "a smaller one lost digits"),
    "standard molar entropy": (1.0, 5000.0, "it is positive"),
    "molar heat capacity at constant pressure": (1.0, 5000.0, "it is positive"),
    "uncertainty in the gas-phase enthalpy of formation": (1.0, 100000.0, "it was rounded to zero"),
}
SHIFTED = {"Hfl": 600000.0, "Gfl": 600000.0}  # J/mol; liquid TiCl4 lost its minus sign
BELOW_ROOM = 298.15  # K
UNSTABLE = {"43", "61", *map(str, range(83, 200))}  # atomic numbers of the elements without a stable isotope
# The others of this column are placeholders (1.7), are below the covalent radius or contradict Bondi, as
# bromine's 2.1 does.
BONDI = frozenset(
    (
        "H",
        "He",
        "Li",
        "Ne",
        "Na",
        "Mg",
        "Si",
        "Ar",
        "K",
        "Ni",
        "Ga",
        "As",
        "Se",
        "Kr",
        "Pd",
        "Ag",
        "In",
        "Sn",
        "Te",
        "Xe",
        "Pt",
        "Au",
        "Tl",
        "Pb",
        "U",
    )
)
# The covalent radii of these are ionic or van der Waals radii: lithium has 0.68 in place of 1.28.
NOT_COVALENT = frozenset(
    (
        "H",
        "Li",
        "Na",
        "K",
        "Rb",
        "Cs",
        "Fr",
        "Be",
        "Mg",
        "Ca",
        "Sr",
        "Ba",
        "Ra",
        "P",
        "He",
        "Ne",
        "Ar",
        "Kr",
        "Xe",
        "Rn",
    )
)


def outside(label: str, key: str, value: str) -> str:
    """Return the reason why a value of a quantity cannot be right; "" if it can."""
    least, most, reason = BOUNDS.get(label, (None, None, ""))
    if least is not None and most is not None and not least <= float(value) <= most:
        return f"{label} outside {least:g} to {most:g}: {reason}"
    if key in SHIFTED and float(value) > SHIFTED[key]:
        return "formation of a liquid above 600000 J/mol: a lost minus sign"
    return ""


def plausible(values: dict[str, str], labels: Mapping[str, str], left_out: Counter[str]) -> dict[str, str]:
    """The values of a row that can be right, each alone and together; the others are counted in `left_out`."""
    kept = {}
    for key, value in values.items():
        reason = outside(labels[key], key, value) if labels[key] in BOUNDS or key in SHIFTED else ""
        if reason:
            left_out[reason] += 1
        else:
            kept[key] = value
    if "Tm" in kept and "Tb" in kept and float(kept["Tm"]) >= float(kept["Tb"]):
        del kept["Tm"], kept["Tb"]
        left_out["melting point not below the boiling point: one of the two is wrong"] += 2
    if "rho" in kept and "Tb" in kept and float(kept["Tb"]) < BELOW_ROOM:
        del kept["rho"]
        left_out["density of a substance that is a gas at room temperature: the table gives no phase or pressure"] += 1
    return kept


def of_element(values: dict[str, str], left_out: Counter[str]) -> dict[str, str]:
    """The values of an element that are measured and of the quantity that the column names."""
    kept = dict(values)

    def drop(key: str, reason: str) -> None:
        if kept.pop(key, ""):
            left_out[reason] += 1

    symbol = kept.get("element symbol", "")
    if kept.get("atomic number") in UNSTABLE or symbol == "V":  # the table gives vanadium-50, of 0.25 %
        drop("most common isotopic mass", "most abundant isotope of an element without a stable one, or a rare isotope")
    if kept.get("atomic number") in UNSTABLE and "." not in kept.get("atomic mass", "."):
        drop("atomic mass", "atomic mass that is a mass number: the element has no stable isotope")
    if symbol not in BONDI:
        drop("Van derWaal radius", "van der Waals radius that is a placeholder or contradicts Bondi's")
    if 96 <= int(kept.get("atomic number", "0")) <= 103 or symbol in NOT_COVALENT:
        drop("covalent radius", "covalent radius that is a placeholder or a radius of another kind")
    return kept
