"""recipe=cpt_6t: its sums, the worlds it is for, one rank of 512 built, and its rehearsal at toy size."""

from __future__ import annotations

from fractions import Fraction

import pytest

from parallel.errors import Fault
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.memory import rank_memory
from trainer.config.ranks import cut_model, map_ranks
from trainer.run.simulate import simulate_rank

BILLION = 10**9


def faults(*words: str, world_size: int = 8) -> tuple[Fault, ...]:
    with pytest.raises(ConfigError) as error:
        compose(words, world_size=world_size)
    return error.value.faults


@pytest.mark.parametrize("world_size", [256, 512, 768, 1536, 4096])
def test_the_recipe_holds_at_any_number_of_ranks_that_its_batch_and_its_experts_divide_into(world_size: int) -> None:
    cfg = compose(["recipe=cpt_6t"], world_size=world_size)
    assert cfg.model.num_experts == 512
    assert cfg.precision.experts == "fp8_block"
    assert cfg.checkpoint.init_from
    seen = cfg.train.steps * cfg.train.global_batch * cfg.data.seq_len
    total = sum(phase.tokens for phase in cfg.data.phases.values())
    assert 0 <= total - seen < cfg.train.global_batch * cfg.data.seq_len
    assert cfg.optim.decay_fraction == pytest.approx(cfg.data.phases["anneal"].tokens / total, rel=1e-3)


def test_what_does_not_divide_is_refused_with_what_would() -> None:
    found = {fault.where: fault.allowed for fault in faults("recipe=cpt_6t", "parallel=ep_fsdp", world_size=40)}
    assert found["train.global_batch"] == (24560, 24640)
    assert "parallel.dp_replicate=5" in found["model.expert_width"]
    (fault,) = faults("recipe=cpt_6t", world_size=40)
    assert (fault.where, fault.allowed) == ("parallel.pp", (5,))  # stages of 8 ranks, as experts are on


def test_the_text_mixture_has_the_issues_billions_in_each_phase_and_in_all() -> None:
    data = compose(["recipe=cpt_6t"], world_size=None).data
    tokens = {name: source.tokens // BILLION for name, source in data.sources.items()}
    assert tokens == {
        "science_text": 2400, "structured_science": 300, "general_web": 1500, "code": 600, "mathematics": 420,
        "multilingual": 150,
    }  # fmt: skip
    for phase in data.phases:
        assert sum(source.phases[phase] for source in data.sources.values()) * BILLION == data.phases[phase].tokens
    for name, source in data.sources.items():
        assert sum(source.phases.values()) == tokens[name]


def test_the_whole_mixture_adds_up_and_is_refused_for_a_text_model_alone() -> None:
    keys = [f"data.sources.{name}.modality" for name in ("science_captions", "image_text", "time_series")]
    found = faults("recipe=cpt_6t", "data=cpt_6t", world_size=512)
    assert [(fault.where, fault.allowed) for fault in found] == [(key, ("text",)) for key in keys]
    data = compose(["recipe=toy", "model=intern_s1_pro", "data=cpt_6t", "data.seq_len=4096"], world_size=None).data
    assert sum(source.tokens for source in data.sources.values()) == 6000 * BILLION
    assert [phase.tokens // BILLION for phase in data.phases.values()] == [5400, 600]
    for phase in data.phases:
        assert sum(source.phases[phase] for source in data.sources.values()) * BILLION == data.phases[phase].tokens


def test_the_whole_mixture_composes_for_the_model_with_towers_on_512_ranks() -> None:
    """On the first stage are the towers, which its memory and its FLOPs count."""
    words = ["recipe=cpt_6t", "model=intern_s1_pro", "data=cpt_6t"]
    towers, text = compose(words, world_size=512), compose(["recipe=cpt_6t"], world_size=512)
    assert rank_memory(towers, 512).held > rank_memory(text, 512).held
    plan = map_ranks(towers.parallel, towers.model, 512).plan
    assert cut_model(towers, plan)[0].cost > cut_model(text, plan)[0].cost


@pytest.mark.parametrize("world_size", [256, 512, 4096])
def test_the_recipe_of_the_whole_mixture_covers_it(world_size: int) -> None:
    cfg = compose(["recipe=cpt_6t_media"], world_size=world_size)
    assert cfg.model.vision is not None
    assert cfg.model.signals is not None
    seen = cfg.train.steps * cfg.train.global_batch * cfg.data.seq_len
    total = sum(phase.tokens for phase in cfg.data.phases.values())
    assert total == 6000 * BILLION
    assert 0 <= total - seen < cfg.train.global_batch * cfg.data.seq_len
    assert cfg.optim.decay_fraction == pytest.approx(cfg.data.phases["anneal"].tokens / total)


def test_the_toy_of_the_whole_mixture_is_its_scale_model() -> None:
    """The same sources, kinds, ratios and prefixes; `octavo data check` has compared the rest with its corpora."""
    whole = compose(["recipe=cpt_6t_media"], world_size=None).data
    toy = compose(["recipe=cpt_6t_media_rehearsal"], world_size=None)
    data, scale = toy.data, Fraction(128, 10**10)
    assert [*data.sources] == [*whole.sources]
    for name, source in data.sources.items():
        real = whole.sources[name]
        for key in ("domain", "modality", "prefix", "phases", "max_epochs"):
            assert getattr(source, key) == getattr(real, key)
        assert source.tokens == real.tokens * scale
    assert {name: phase.tokens for name, phase in data.phases.items()} == {
        name: phase.tokens * scale for name, phase in whole.phases.items()
    }
    assert data.prefixes == whole.prefixes
    assert toy.train.steps * toy.train.global_batch * data.seq_len == sum(
        phase.tokens for phase in data.phases.values()
    )


def test_one_rank_of_512_is_built_without_the_corpora() -> None:
    words = ["recipe=cpt_6t", "parallel=ep_fsdp", "train.global_batch=1024", "model.num_layers=2"]
    report = simulate_rank(compose(words, world_size=512), 512, 511)
    assert (report.layout.ep, report.layout.dp_shard) == (8, 512)
    assert {"ep", "control"} <= {call.axis for call in report.collectives}


@pytest.mark.parametrize(
    ("recipe", "world_size"), [("cpt_6t", 512), ("cpt_6t_media", 512), ("cpt_6t_256", 256), ("cpt_117b_32gpu", 32)]
)
def test_a_rehearsal_has_every_axis_of_its_recipe_on_eight_ranks(recipe: str, world_size: int) -> None:
    whole = compose([f"recipe={recipe}"], world_size=world_size)
    cfg = compose([f"recipe={recipe}_rehearsal"], world_size=8)
    axes = [
        {axis for axis, _, _ in map_ranks(of.parallel, of.model, ranks).layout.rows()}
        for of, ranks in ((whole, world_size), (cfg, 8))
    ]
    assert axes[0] == axes[1]
    assert (cfg.checkpoint.init_from, cfg.data.build) == (None, "toy")
    assert cfg.train.recompute == whole.train.recompute
    assert (cfg.parallel.schedule, cfg.optim.decay_fraction) == (whole.parallel.schedule, whole.optim.decay_fraction)


def test_the_rehearsal_computes_in_fp8() -> None:
    assert compose(["recipe=cpt_6t_rehearsal"], world_size=8).precision.experts == "fp8_reference"
