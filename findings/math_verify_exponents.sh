#!/usr/bin/env bash
# math-verify 0.9.0 (latex2sympy2_extended 1.11.0, sympy 1.14.0): exponents and units of plain numbers are dropped.
#
# parse("1e-9") gives 1, so an answer of 1e-9 verifies against a gold answer of 1; "3 x 10^8" gives 10^8. Comparison
# rounds to 6 decimals, absolutely, so two LaTeX numbers of 1e-23 and 1e-31 verify as equal. Units are dropped: 5 cm
# verifies against 5 m. As a reward for science answers it pays for wrong magnitudes.
#
# Output seen: all four pairs of the script verify
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check \
    math-verify==0.9.0 latex2sympy2_extended==1.11.0 sympy==1.14.0
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
from math_verify import parse, verify

pairs = [("1", "1e-9"), ("$10^8$", "3 x 10^8"), (r"$1.38\times10^{-23}$", r"$9.1\times10^{-31}$"), ("5 m", "5 cm")]
agree = [verify(parse(gold), parse(answer)) for gold, answer in pairs]
for (gold, answer), same in zip(pairs, agree):
    print(f"gold {gold}, answer {answer}: {'verifies' if same else 'differs'}")
sys.exit(not all(agree))
PY
