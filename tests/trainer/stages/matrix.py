"""The layouts, schedules and options whose steps must equal those of one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from parallel.pipeline.plan import RULES
from tests.distributed.pool import on_ranks
from tests.trainer.stages.covering import Choice, allowed_choices, cover, pairs_of
from tests.trainer.stages.layouts import GLOBAL_MICRO, SEQ_LEN, Case, Errors, Layout, errors, reference, run_steps

LAYOUTS = (
    Layout(pp=2, dp_shard=4, ep=4),
    Layout(pp=2, dp_shard=4, ep=4, groups=2),
    Layout(pp=4, dp_shard=2, ep=2),
    Layout(pp=3),
    Layout(pp=2, dp_shard=4, ep=2),
    Layout(pp=2, dp_replicate=2, dp_shard=2, ep=2),
    Layout(pp=2, dp_replicate=2, dp_shard=2),
    Layout(pp=3, dp_shard=2, ep=2),
    Layout(pp=3, dp_replicate=2),
    Layout(pp=4, dp_replicate=2),
    Layout(dp_shard=2, cp=2, ep=4),
    Layout(cp=4, cp_kind="ring", ep=2),
    Layout(dp_replicate=2, cp=4, ep=2),
    Layout(pp=2, cp=2, ep=2),
    Layout(pp=2, dp_replicate=2, cp=2, cp_kind="ring", ep=2),
)
# The same with the other kind of context parallelism, and replicas of more layouts, most on 12 or 16 ranks. The whole
# product has each pair of their options, and CI none.
OTHER_KIND = (
    Layout(dp_shard=2, cp=2, cp_kind="ring", ep=4),
    Layout(cp=4, ep=2),
    Layout(dp_replicate=2, cp=4, cp_kind="ring", ep=2),
    Layout(pp=2, cp=2, cp_kind="ring", ep=2),
    Layout(pp=2, dp_replicate=2, cp=2, ep=2),
    Layout(dp_replicate=2, dp_shard=2, cp=2, cp_kind="ring", ep=4),
    Layout(pp=2, dp_replicate=2, dp_shard=2, cp=2, cp_kind="ring", ep=4),
)
REPLICATED = (
    Layout(dp_replicate=2, dp_shard=2, cp=2, ep=4),
    Layout(pp=2, dp_replicate=2, dp_shard=4, ep=4),
    Layout(pp=3, dp_replicate=2, dp_shard=2, ep=2),
    Layout(pp=4, dp_replicate=2, dp_shard=2, ep=2),
    Layout(pp=2, dp_replicate=2, dp_shard=2, cp=2, ep=4),
)
SCHEDULES = (
    ("1f1b", 1),
    ("interleaved_1f1b", 2),
    ("interleaved_1f1b", 3),
    ("interleaved_zero_bubble", 1),
    ("interleaved_zero_bubble", 2),
    ("zbv", 2),
    ("dualpipev", 2),
)
OPTIONS = {
    "layout": LAYOUTS,
    "schedule": SCHEDULES,
    "gradient": ("ste", "conventional"),
    "dispatch": ("all_gather", "all_to_all"),
    "recompute": ("none", "selective", "full", "attention", "experts"),
    "kind": ("next_token", "contrastive", "fp8_reference"),
    "towers": ("none", "native", "tiles"),  # those of Intern-S1-Pro or of Intern-S1, with unequal images and signals
}

TOWERS = ("native", "tiles")
BLOCKS = ("none", "selective", "full")  # whole blocks: the whole product has every combination
HALVES = ("attention", "experts")  # it has each pair of these with another option

EXACT = 1e-10  # relative, of every number in fp64
# In fp8_reference sums are in fp32, which moves a few numbers to the next one of e4m3.
NEAR = 1e-3
CASES_A_CALL = 8  # of `on_ranks`: each has process groups of its own


def product_of_options(layouts: Sequence[Layout] = LAYOUTS, **values: Sequence[str]) -> list[Choice]:
    """values: those of some options; the others have all of theirs."""
    return allowed_choices(OPTIONS | {"layout": layouts} | values, runs)


def pairs_of_options() -> list[Choice]:
    """Few steps that have each pair of two options, which CI runs."""
    return cover(product_of_options(), pairs_of)


# The whole product, in parts.
SETS: dict[str, Callable[[], list[Choice]]] = {
    "blocks": lambda: product_of_options(recompute=BLOCKS, towers=("none",)),
    "halves": lambda: cover(product_of_options(recompute=HALVES), pairs_of),
    "kinds": lambda: cover(product_of_options(OTHER_KIND), pairs_of),
    "towers": lambda: cover(product_of_options(LAYOUTS + OTHER_KIND[:5], towers=TOWERS), pairs_of),
    "replicas": lambda: cover(product_of_options(REPLICATED), pairs_of),
}


def runs(choice: Choice) -> bool:
    """Return True for what can run and is not the same as another choice."""
    layout, (schedule, per_rank) = choice["layout"], choice["schedule"]
    if layout.pp == 1 and choice["schedule"] != SCHEDULES[0]:
        return False  # there is nothing to schedule
    if choice["towers"] != "none" and choice["kind"] == "contrastive":
        return False  # media would have one token in several documents, so that pairs may be equally near
    if layout.cp > 1 and choice["kind"] == "contrastive":
        return False  # refused
    if layout.readers > GLOBAL_MICRO and choice["kind"] == "contrastive":
        return False  # more sequences of one micro-batch than have tokens of their own
    if layout.pp * per_rank > 8:
        return False  # the tiny model has no layers for so many stages
    if layout.ep == 1 and choice["dispatch"] == "all_to_all":
        return False  # there is nothing to dispatch
    if RULES[schedule].splits_backward and choice["recompute"] not in ("none", "full"):
        return False  # refused
    # Ranks that share an expert's width quantise it in tiles of their own.
    return not (choice["kind"] == "fp8_reference" and layout.ep > layout.groups and choice["dispatch"] == "all_gather")


def case_of(choice: Choice) -> Case:
    kind, layout = choice["kind"], choice["layout"]
    stages = layout.pp * choice["schedule"][1]
    micro_batches = {1: 3, 2: 4, 3: 6, 4: 8}[layout.pp]
    return Case(
        layout,
        choice["schedule"],
        choice["gradient"],
        choice["dispatch"],
        choice["recompute"],
        objective="contrastive" if kind == "contrastive" else "next_token",
        experts="fp8_reference" if kind == "fp8_reference" else "fp32",
        towers=choice["towers"] != "none",
        tiles=choice["towers"] == "tiles",
        layers=stages + 1,  # uneven
        micro_batches=micro_batches,
        seq_len=SEQ_LEN if layout.cp == 1 else 12,
        sequences=max(GLOBAL_MICRO, layout.readers),
    )


def calls(cases: Sequence[Case]) -> list[tuple[Case, ...]]:
    """The cases in groups that one call of `run_cases` takes: of one number of ranks, and not too many."""
    found = []
    for ranks in sorted({case.layout.ranks for case in cases}):
        alike = [case for case in cases if case.layout.ranks == ranks]
        found += [tuple(alike[n : n + CASES_A_CALL]) for n in range(0, len(alike), CASES_A_CALL)]
    return found


def run_cases(cases: Sequence[Case], timeout_s: float = 150.0) -> list[tuple[Case, Errors]]:
    """Each case with its differences from one process."""
    (ranks,) = {case.layout.ranks for case in cases}
    found = on_ranks(ranks, run_steps, cases, init=True, timeout_s=timeout_s)[0]
    return [(case, errors(step, reference(case.alone()))) for case, step in zip(cases, found, strict=True)]


def faults(case: Case, found: Errors) -> list[str]:
    """The case, where it is farther from one process than it may be."""
    bound = NEAR if case.experts == "fp8_reference" else EXACT
    return [f"{case}: {found}"] if max(found[:4]) > bound else []
