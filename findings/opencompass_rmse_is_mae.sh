#!/usr/bin/env bash
# opencompass 0.5.4: the evaluator named RMSE of SMolInstruct returns the mean absolute error.
#
# `RMSEEvaluator` (datasets/smolinstruct.py) takes the root of the mean square of each row by itself, which is that row's
# absolute error, and averages the rows. Figures of ESOL and Lipo that were made with it are smaller than the RMSE of
# papers on the same predictions, and by how much depends on the spread of the errors: here 1.75 for 2.2913.
#
# Output seen:
#   evaluator: 1.75  MAE: 1.75  RMSE: 2.2913
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6
"$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" opencompass==0.5.4
cd "$work"
"$work/venv/bin/python" - <<'PY'
import glob, re, sys, types, zipfile
import numpy as np

(wheel,) = glob.glob("opencompass-0.5.4-*.whl")
source = zipfile.ZipFile(wheel).read("opencompass/datasets/smolinstruct.py").decode()
# the evaluator's class and its reader of numbers alone, without the package's fifty dependencies
start = source.index("def extract_number(")
end = source.index("@ICL_EVALUATORS.register_module()\nclass FTSEvaluator")
registry = types.SimpleNamespace(register_module=lambda: lambda cls: cls)
names = {"re": re, "np": np, "BaseEvaluator": object, "ICL_EVALUATORS": registry}
exec(source[start:end], names)

errors = [0.0, 1.0, 2.0, 4.0]
predictions = [f"\\boxed{{{error}}}" for error in errors]
references = ["<NUMBER> 0.0 </NUMBER>"] * len(errors)
found = float(names["RMSEEvaluator"]().score(predictions, references)["score"])
mae, rmse = float(np.mean(errors)), float(np.sqrt(np.mean(np.square(errors))))
print("evaluator:", found, " MAE:", mae, " RMSE:", round(rmse, 4))
sys.exit(not (found == mae != rmse))
PY
