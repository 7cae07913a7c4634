#!/usr/bin/env bash
# torch 2.13.0 (Python 3.11): torchrun refuses options of the script that could abbreviate several of its own.
#
# Everything behind the script's name is the script's, and most options arrive there. But argparse looks at every word
# of the command line before it gives the script its rest, and an option that is the start of two of torchrun's own is an
# error: `torchrun train.py --n 2` stops with "ambiguous option: --n could match --nnodes, --nproc-per-node, ...". All of
# torchrun's options exist with dashes and with underscores, so that an abbreviation of a single one (--log, --node,
# --monitor) is ambiguous with itself. The same script works with `python`, and so does `torchrun train.py -- --n 2`: the
# "--" does not reach the script.
#
# Output seen:
#   --number 2: ['--number', '2']
#   --n 2: refused
#   --monitor 2: refused
#   -- --n 2: ['--n', '2']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6
cd "$work"
echo 'import sys; print(sys.argv[1:])' > train.py
found=()
for words in "--number 2" "--n 2" "--monitor 2" "-- --n 2"; do
    # shellcheck disable=SC2086 (words are several)
    said=$("$work/venv/bin/torchrun" --standalone --nproc-per-node 1 train.py $words 2> errors) ||
        { grep -q "ambiguous option" errors && said=refused; }
    echo "$words: $said"
    found+=("$said")
done
[ "${found[*]}" = "['--number', '2'] refused refused ['--n', '2']" ]
