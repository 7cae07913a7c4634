#!/usr/bin/env bash
# rdkit 2026.9.1 (InChI 1.07.3): the InChI of any molecule with a dative bond is the empty string, without an error.
#
# MolToInchi returns "" for cisplatin and for a zinc ammine written with N->metal bonds, so records keyed by InChI merge
# all such complexes into one. A covalent spelling, [NH3][Pt], is turned into a dative bond at parsing and is affected
# too. The only sign is a line in RDKit's own log.
#
# Output seen:
#   {'cisplatin': '', 'zinc': '', 'covalent spelling': '', 'benzene': 'InChI=1S/C6H6/c1-2-4-6-5-3-1/h1-6H'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check rdkit==2026.9.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
from rdkit import Chem

smiles = {"cisplatin": "[NH3]->[Pt](<-[NH3])(Cl)Cl", "zinc": "[NH3]->[Zn](Cl)Cl",
          "covalent spelling": "[NH3][Pt](Cl)(Cl)Cl", "benzene": "c1ccccc1"}
found = {}
for name, text in smiles.items():
    molecule = Chem.MolFromSmiles(text)
    found[name] = Chem.MolToInchi(molecule) if molecule is not None else None
print(found)
sys.exit(not (found["cisplatin"] == found["zinc"] == found["covalent spelling"] == "" and found["benzene"].startswith("InChI=1S/C6H6")))
PY
