"""`octavo upcycle --calibrate`: which experts of a model are used together, and what a cut by that keeps."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.weights.upcycle.coactivation import Counts

BETWEEN = 5.0  # seconds between two lines of progress


def run_calibrate(
    source: str, text: Sequence[str], counts: str, *, tokens: int, factor: int, groups: int, seed: int, device: str
) -> int:
    """Write the counts of `source` on the files `text` to `counts`, and print what cuts for an expansion by `factor`
    into `groups` keep. device: auto, cpu or cuda. Exit code 0, or 1 with one line on stderr.
    """
    import torch

    from trainer.weights.hf_files import HuggingFaceError, open_directory
    from trainer.weights.hf_survey import look_at
    from trainer.weights.upcycle.calibrate import count_experts, read_windows
    from trainer.weights.upcycle.errors import UpcycleError

    target = Path(counts)
    on = torch.device("cuda" if device == "auto" and torch.cuda.is_available() else device.replace("auto", "cpu"))
    try:
        if on.type == "cuda" and not torch.cuda.is_available():
            raise UpcycleError("--device cuda: this torch sees no CUDA device; use cpu or auto")
        if tokens < 1:
            raise UpcycleError(f"--tokens {tokens}: use 1 or more")
        opened = look_at(open_directory(Path(source)))
        opened.require(towers=False)
        experts = opened.model.num_experts
        if factor < 1 or groups < 1 or groups % factor or experts % (groups // factor):
            raise UpcycleError(
                f"--factor {factor} --groups {groups}: {experts} experts do not fall into groups/factor parts of one "
                "size; need a factor that divides the groups, and groups/factor that divides the experts"
            )
        if target.exists():
            raise UpcycleError(f"{target} exists; give a file that does not, or remove it")
        if not target.parent.is_dir():
            raise UpcycleError(f"--counts {target}: there is no directory {target.parent}")
        windows = read_windows([Path(file) for file in text], opened, tokens)
        gathered = count_experts(opened, windows, on, _Progress(opened.model.num_layers))
        gathered.save(target)
    except (HuggingFaceError, UpcycleError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(*_report(gathered, groups // factor, factor, seed), sep="\n")
    print(f"{target}: counts of {gathered.tokens:,} tokens; for --strategy coactivation --counts {target}")
    return 0


def _report(counts: Counts, parts: int, factor: int, seed: int) -> list[str]:
    """A line for each layer and one for all: tokens whose two best experts are in different parts of a found cut, and
    in one at least of `factor` found cuts that differ; each beside what random cuts keep in expectation."""
    from trainer.weights.upcycle.coactivation import best_cuts, expected_survival, survival

    experts = counts.pairs.shape[1]
    lines = [
        f"tokens whose two best experts stay apart when {experts} experts are cut into {parts} parts",
        f"{'':8}{'one cut':>9}{'random':>9}{f'{factor} cuts':>9}{'random':>9}",
    ]
    random = [expected_survival(experts, parts, cuts) for cuts in (1, factor)]
    kept = []
    for layer, pairs in enumerate(counts.pairs):
        try:
            cuts = best_cuts(pairs, parts, factor, seed)
        except ValueError:  # too few experts for that many different cuts
            cuts = best_cuts(pairs, parts, 1, seed)
        kept.append((survival(pairs, cuts[0]), survival(pairs, *cuts)))
        lines.append(_line(f"layer {layer}", *kept[-1], *random))
    one, several = (sum(column) / len(kept) for column in zip(*kept, strict=True))
    return [*lines, _line("all", one, several, *random)]


def _line(name: str, one: float, several: float, random_one: float, random_several: float) -> str:
    return f"{name:8}{one:9.1%}{random_one:9.1%}{several:9.1%}{random_several:9.1%}"


class _Progress:
    """A line a few seconds apart, for a person who waits."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.began = self.told = time.perf_counter()

    def __call__(self, layer: int) -> None:
        now, done = time.perf_counter(), layer + 1
        if now - self.told < BETWEEN or done == self.layers:
            return
        self.told = now
        left = (now - self.began) / done * (self.layers - done)
        print(f"layer {done} of {self.layers}, {left:,.0f} s left", file=sys.stderr)
