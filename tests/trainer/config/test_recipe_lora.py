"""Adapters on one node: what a rank needs, against simulated ranks, and what is refused with what would fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bench.lora_memory import ADAPTERS, H200, MEMORY, RECIPE, SHARED, SPARE, TOKENS, predicted
from trainer.config.checks.fit import changed, smaller_runs, too_large
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.memory import checkpoint_bytes, largest_memory, rank_memory
from trainer.run.simulate import simulate_rank

GPU = "a GPU"
TINY = [
    "recipe=toy", "data=synthetic", "data.seq_len=16", "train.device=cpu", "checkpoint.init_from=X",
    "model.num_layers=2", "model.num_experts=16", "model.vocab_size=300", "train.micro_batch=1", "train.global_batch=8",
]  # fmt: skip


def wide(*words: str) -> Config:
    return compose([f"recipe={RECIPE}", *words], world_size=8)


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        pytest.param(1, ["lora=attention", "precision=bf16", "precision.moments=bf16"], marks=pytest.mark.slow),
        (4, ["lora=all", "lora.base=fp8", "parallel=ep", "precision=bf16"]),
        # 4 ranks divide neither the rank of the adapters nor the vocabulary's rows
        pytest.param(
            4,
            ["lora=experts", "lora.base=fp8", "parallel.dp_shard=4", "parallel.ep=2", "lora.rank=6"],
            marks=pytest.mark.slow,
        ),
        pytest.param(8, ["lora=all", "parallel.dp_replicate=2", "parallel.dp_shard=4"], marks=pytest.mark.slow),
    ],
)
def test_a_simulated_rank_holds_what_is_counted(ranks: int, words: list[str]) -> None:
    cfg = compose([*TINY, *words], world_size=ranks)
    for rank in {0, ranks - 1}:
        counted, held = rank_memory(cfg, ranks, rank), simulate_rank(cfg, ranks, rank).memory
        assert (counted.weights, counted.gradients, counted.optimizer) == (held.weights, held.gradients, held.optimizer)


def test_the_issues_figures() -> None:
    attention, experts = wide(), wide("lora=experts", "lora.rank=1")
    base = rank_memory(wide("lora.rank=1"), 8)
    assert base.weights == pytest.approx(114.7e9, rel=0.005)
    # 4 bytes each for a weight and its gradient, 8 for its moments; counted over all ranks for attention
    of_attention = sum(rank_memory(attention, 8, rank).gradients for rank in range(8)) // 4
    assert of_attention == pytest.approx(3.2e6 * 16, rel=0.02)
    of_experts = rank_memory(experts, 8)
    assert of_experts.gradients // 4 == pytest.approx(77e6, rel=0.01)
    for rank, gigabytes in ((4, 4.9), (16, 19.7)):
        held = rank_memory(wide("lora=experts", f"lora.rank={rank}"), 8)
        adapters = held.gradients + held.optimizer + held.weights - (of_experts.weights - of_experts.gradients)
        assert adapters == pytest.approx(gigabytes * 1e9, rel=0.01)
    moved = rank_memory(wide("train.offload_activations=true"), 8).moved
    assert moved == pytest.approx(6.3e9, rel=0.005)
    assert checkpoint_bytes(attention) == 12 * of_attention  # adapters and their moments alone


def test_the_codes_of_a_base_in_fp8_are_offered_and_of_no_other(tmp_path: Path) -> None:
    cfg = wide("lora.base=linears", f"checkpoint.init_from={tmp_path}")
    published = {"model_type": "interns1_pro", "quantization_config": {"quant_method": "fp8"}}
    (tmp_path / "config.json").write_text(json.dumps(published))
    fault = too_large(cfg, 8, int(H200 * (1 - SPARE)), GPU)
    assert fault is not None
    assert fault.where == "lora"
    assert fault.allowed == (("lora.base=fp8",),)
    del published["quantization_config"]
    (tmp_path / "config.json").write_text(json.dumps(published))
    for source in (str(tmp_path), str(tmp_path / "missing")):
        cfg.checkpoint.init_from = source
        assert smaller_runs(cfg, 8, int(H200 * (1 - SPARE)), gpu=True) == ()


def test_what_is_offered_fits_and_is_the_least() -> None:
    limit = int(H200 * (1 - SPARE))
    cfg = wide("lora=all", "lora.rank=4", "precision.moments=bf16")
    fault = too_large(cfg, 8, limit, GPU)
    assert fault is not None
    assert fault.value > limit
    assert ("train.offload_activations=true",) in fault.allowed
    for words in fault.allowed:
        assert largest_memory(changed(cfg, words), 8, gpu=True)[1].device <= limit
    # Where no single change is enough, several are.
    cfg = wide("lora=all", "lora.rank=64", "data.seq_len=32768")
    fault = too_large(cfg, 8, limit, GPU)
    assert fault is not None
    (words,) = fault.allowed
    assert len(words) > 1
    assert largest_memory(changed(cfg, words), 8, gpu=True)[1].device <= limit
    assert too_large(changed(cfg, words), 8, limit, GPU) is None


def simulated_rows() -> Iterator[tuple[Config, float, bool]]:
    """The runs of the table of docs/lora_memory.md, with the simulated peak in GB, and whether it fits."""
    for line in Path("docs/lora_memory.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if len(cells) == 6 and cells[0] in ADAPTERS and cells[1] in TOKENS:
            offload = f"train.offload_activations={'true' if cells[2] == 'host' else 'false'}"
            yield wide(*ADAPTERS[cells[0]], *TOKENS[cells[1]], offload), float(cells[3]), cells[5] == "fits"


def test_what_a_simulation_finds_too_large_is_refused_and_nothing_else() -> None:
    limit, found = int(H200 * (1 - SPARE)), list(simulated_rows())
    assert len(found) == 2 * len(ADAPTERS) * len(TOKENS)
    for cfg, peak, fits in found:
        assert largest_memory(cfg, 8, gpu=True)[1].device / 1e9 == pytest.approx(peak, abs=0.25)
        fault = too_large(cfg, 8, limit, GPU)
        assert (fault is None) == fits
        if fault is not None:
            assert fault.allowed
    fitting = {repr(cfg) for cfg, _, fits in found if fits}
    refused = {repr(cfg) for cfg, _, fits in found if not fits}
    offered = [repr(changed(cfg, words)) for cfg, _, fits in found if not fits for words in offers(cfg, limit)]
    assert fitting & {*offered}
    assert not refused & {*offered}


def offers(cfg: Config, limit: int) -> tuple[tuple[str, ...], ...]:
    return smaller_runs(cfg, 8, limit, gpu=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (RECIPE, []),
        (RECIPE, SHARED),
        (f"{RECIPE}_all", []),
        ("lora_intern_s1_8xh100", []),
        ("lora_30b_1gpu", []),
    ],
)
def test_the_recipes_fit_with_a_tenth_to_spare(recipe: str, words: list[str]) -> None:
    assert predicted(words, recipe).total <= MEMORY.get(recipe, H200) * (1 - SPARE)


@pytest.mark.slow
def test_more_than_the_recipes_does_not_fit() -> None:
    limit = H200 * (1 - SPARE)
    assert predicted(["lora=all", "lora.rank=16", "precision.moments=bf16"]).total > limit
    assert predicted(["data.seq_len=32768", "train.offload_activations=true"]).total > limit
