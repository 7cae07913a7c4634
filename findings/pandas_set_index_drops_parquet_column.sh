#!/usr/bin/env bash
# pandas 3.1.1, pyarrow 26.0.1 (Python 3.11): whether an index is a column of a Parquet file depends on its values.
#
# set_index (and read_csv with index_col) makes a RangeIndex of a column of integers at equal distances, and to_parquet
# writes a RangeIndex into pandas' own metadata alone, its name and step included. Times in milliseconds that were set as
# the index are therefore no column for DuckDB, Polars, Spark or pyarrow, but one as soon as a single step is irregular:
# shards of one data set have different schemas, and of a recording without gaps the times are lost. pandas itself reads
# both back. to_parquet(index=True) writes the column.
#
# Output seen:
#   [0, 4, 8, 12]: RangeIndex, columns ['ecg'], with index=True ['ecg', 't_ms'], pandas reads [0, 4, 8, 12]
#   [0, 4, 8, 13]: Index, columns ['ecg', 't_ms'], with index=True ['ecg', 't_ms'], pandas reads [0, 4, 8, 13]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
cd "$work"
"$work/venv/bin/python" - <<'PY'
import sys
import pandas
from pyarrow import parquet

found = []
for times in ([0, 4, 8, 12], [0, 4, 8, 13]):
    table = pandas.DataFrame({"t_ms": times, "ecg": [0.5, 1.5, 2.5, 3.5]}).set_index("t_ms")
    table.to_parquet("default.parquet")
    table.to_parquet("index.parquet", index=True)
    names = [parquet.read_schema(f"{name}.parquet").names for name in ("default", "index")]
    back = pandas.read_parquet("default.parquet").index.tolist()
    found.append((type(table.index).__name__, *names, back))
    print(f"{times}: {found[-1][0]}, columns {names[0]}, with index=True {names[1]}, pandas reads {back}")
expected = [
    ("RangeIndex", ["ecg"], ["ecg", "t_ms"], [0, 4, 8, 12]),
    ("Index", ["ecg", "t_ms"], ["ecg", "t_ms"], [0, 4, 8, 13]),
]
sys.exit(found != expected)
PY
