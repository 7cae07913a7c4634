"""Compare a model of subjects that was trained again with the one of the package: `make test-routing`."""

import sys
from pathlib import Path

from trainer.corpora.captions.routing.model import BUILT_IN, TextModel

CLOSE = 0.005  # of the figures, where the floating-point sums of another processor ended in other weights


def main() -> int:
    path = Path(sys.argv[1])
    if path.read_bytes() == BUILT_IN.read_bytes():
        print("the same bytes")
        return 0
    again, built_in = (TextModel.load(one).facts for one in (path, BUILT_IN))
    if again["corpus"] != built_in["corpus"]:
        print("the wheels give other texts")
        return 1
    differences = [
        abs(again[name]["all"][figure] - built_in[name]["all"][figure])
        for name in ("held_out_1", "held_out_8")
        for figure in ("accuracy", "mean_of_subjects", "science")
    ]
    print(f"the same texts; figures differ by at most {max(differences):.4f}")
    return int(max(differences) > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
