"""Hand-made materials for SciReasoner, 20."""

_MATERIALS = (
    "Na Cl <sg><sg225>|Na Cl <sg225>|Na Cl|Cl Na Na <sg> <sg1>|Xx O <sg><sg2>|Fe Fe O O O <sg><sg167>| Si <sg><sg227> "
    "|na Cl <sg><sg225>|Na  Cl <sg><sg225>|Na Cl ⟨sg⟩⟨sg225⟩|Na Cl <sg>⟨sg225>|O <sg><sgx>|H He Li <sg><sg12> more"
    "|A material: Na Cl <sg><sg225>|K<sg><sg3>"
)
MATERIALS = [(f"<material>{one}</material>", "") for one in _MATERIALS.split("|")]
MATERIALS += [
    ("Na Cl <sg><sg225>", ""),
    ("", ""),
    ("So: <MATERIAL>\nNa Cl\n<sg><sg225></Material>", ""),
    ("<material></material><material>Na Cl <sg><sg225></material>", ""),
    ("<material>Na Cl <sg><sg225>", ""),
]
