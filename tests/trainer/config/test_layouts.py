"""Layouts of ranks that do not fit the model, and the options that change nothing in one."""

import re

import pytest

from tests.trainer.config.small_config import assert_one_fault, config, with_key
from trainer.config.checks.unused import without_effect
from trainer.config.checks.validate import validate
from trainer.config.compose import compose, list_groups
from trainer.config.errors import ConfigError
from trainer.config.keys import TrainConfig
from trainer.config.ranks import map_ranks

# ranks, changed keys, the key of the fault, what it offers
WRONG_ON_RANKS = [
    (1, {"parallel.ep": 2}, "parallel.ep", (1,)),
    (8, {"parallel.ep": 3}, "parallel.ep", (1, 2, 4, 8)),
    (8, {"parallel.dp_replicate": 3}, "parallel.dp_replicate", (1, 2, 4, 8)),
    (8, {"parallel.dp_replicate": 2, "parallel.dp_shard": 2}, "parallel.dp_shard", (0,)),
    (6, {"parallel.ep": 6}, "parallel.ep", (1, 2)),
    (
        8,
        {"parallel.ep": 2, "parallel.dp_shard": 8, "model.expert_width": 6},
        "model.expert_width",
        "parallel.dp_replicate=2 or 4 with parallel.dp_shard=0",
    ),
    (16, {"parallel.ep": 16, "model.expert_width": 7}, "parallel.ep", (8,)),
    (
        8,
        {"parallel.ep": 8, "parallel.dispatch": "all_to_all", "parallel.regather": True},
        "parallel.regather",
        (False,),
    ),
    (8, {"parallel.ep": 8, "parallel.dispatch": "all_to_all", "parallel.overlap": 2}, "parallel.overlap", (1,)),
    (
        8,
        {"parallel.ep": 8, "parallel.dispatch": "all_to_all", "precision.payload": "fp8"},
        "precision.payload",
        ("fp32",),
    ),
    (
        16,
        {"parallel.ep": 16, "precision.experts": "fp8_block", "model.expert_width": 48, "model.hidden_size": 32},
        "model.expert_width",
        (32, 64),
    ),
    (8, {"parallel.ep": 8, "parallel.regather": True, "train.recompute": "full"}, "parallel.regather", (False,)),
    (8, {"parallel.ep": 8, "parallel.regather": True, "train.recompute": "experts"}, "parallel.regather", (False,)),
    (
        8,
        {"parallel.ep": 8, "parallel.regather": True, "train.offload_activations": True},
        "parallel.regather",
        (False,),
    ),
    (8, {"parallel.ep": 8, "precision.payload": "bf16", "model.hidden_size": 33}, "model.hidden_size", (34,)),
    (5, {"parallel.ep": 5, "parallel.dispatch": "all_to_all", "train.global_batch": 5}, "parallel.ep", (1,)),
    (6, {"parallel.cp": 3, "parallel.cp_kind": "ring", "model.expert_width": 48}, "parallel.cp", (1, 2)),
    (6, {"parallel.cp": 3, "data.seq_len": 48, "model.expert_width": 48}, "parallel.cp", (1, 2)),
    (3, {"parallel.cp": 3, "parallel.cp_kind": "ring", "data.seq_len": 18}, "model.expert_width", "parallel.cp=1"),
    (16, {"parallel.cp": 8, "parallel.ep": 16}, "parallel.cp", (1, 2, 4)),
    (8, {"parallel.cp": 2, "train.objective": "contrastive"}, "parallel.cp", (1,)),
    (8, {"parallel.cp": 2, "parallel.ep": 8, "parallel.overlap": 16}, "parallel.overlap", (1, 2, 4, 8)),
]


def grouped(changes):
    cfg = config(train=TrainConfig(global_batch=48, micro_batch=1))
    sizes = {"num_experts": 16, "experts_per_token": 8, "router_groups": 8, "expert_width": 32}
    for key, value in ({f"model.{name}": size for name, size in sizes.items()} | changes).items():
        cfg = with_key(cfg, key, value)
    return cfg


@pytest.mark.parametrize(("ranks", "changes", "where", "allowed"), WRONG_ON_RANKS, ids=lambda value: str(value)[:40])
def test_a_layout_that_does_not_fit_names_the_sizes_that_do(ranks, changes, where, allowed):
    assert_one_fault(validate(grouped(changes), ranks), changes, where, allowed)


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (8, {"parallel.ep": 8}),
        (8, {"parallel.ep": 0}),
        (8, {"parallel.ep": 0, "parallel.dp_shard": 4}),
        (16, {"parallel.ep": 8}),
        (16, {"parallel.ep": 16}),  # two ranks a group
        (6, {"parallel.ep": 2}),
        (8, {"parallel.dp_shard": 8, "parallel.ep": 2}),
        (8, {"parallel.ep": 8, "parallel.dispatch": "all_to_all"}),
        (8, {"parallel.cp": 4, "parallel.ep": 8}),  # 2 kv heads on 4 ranks
        (8, {"parallel.cp": 8, "parallel.cp_kind": "ring", "parallel.ep": 0}),
        (6, {"parallel.cp": 3, "parallel.cp_kind": "ring", "data.seq_len": 21, "model.expert_width": 48}),
    ],
)
def test_layouts_that_fit(ranks, changes):
    assert validate(grouped(changes), ranks) == []


@pytest.mark.parametrize(
    ("ranks", "changes"),
    [
        (500, {"parallel.pp": 32, "parallel.ep": 8, "model.num_layers": 94}),  # neither a pp nor 32 ranks would do
        (264, {"parallel.pp": 32, "parallel.ep": 8, "model.num_layers": 94, "train.global_batch": 3840 * 11}),
        (24, {"parallel.pp": 4, "parallel.ep": 8, "model.num_layers": 8, "train.global_batch": 4096 * 3}),
        (3, {"parallel.cp": 2, "model.expert_width": 48}),  # nor cp=3, which does not divide seq_len
        (5, {"parallel.pp": 5, "model.num_layers": 4}),
        (12, {"parallel.ep": 12}),
        (4, {"parallel.dp_shard": 3}),
        (2, {"parallel.pp": 2, "parallel.stages_per_rank": 3, "model.num_layers": 4}),
        (2, {"parallel.pp": 2, "model.num_layers": 4, "train.micro_batch": 240, "train.global_batch": 240}),
    ],
)
def test_every_value_that_a_remedy_for_a_layout_names_works(ranks, changes):
    base = {"train.global_batch": 3840} | changes
    (fault,) = validate(grouped(base), ranks)
    for key, values in re.findall(r"([a-z_]+\.\w+)=([\w, ]+?)(?=, or |$)", fault.text.partition("; use ")[2]):
        for value in re.split(", | or ", values):
            typed = int(value) if value.isdecimal() else value
            others = {"parallel.stages_per_rank": 0} if key == "parallel.schedule" and typed == "1f1b" else {}
            assert validate(grouped(base | {key: typed} | others), ranks) == [], (key, value)
    for world in re.findall(r"equal to (\d+)(?: or (\d+))?", fault.text):
        for number in filter(None, world):
            assert validate(grouped(base), int(number)) == []


def test_a_remedy_for_cp_names_the_other_way_too():
    width = {"parallel.cp": 3, "model.expert_width": 48}
    (fault,) = validate(grouped(width | {"parallel.cp_kind": "ring"}), 6)
    assert "data.seq_len=15 or 18" in fault.text
    (fault,) = validate(grouped(width | {"data.seq_len": 48}), 6)
    assert "parallel.cp_kind=ring" in fault.text


def test_options_that_do_nothing_in_a_layout_are_reported():
    changes = {"parallel.overlap": 2, "parallel.regather": True, "precision.reductions": "bf16"}
    cfg = grouped(changes | {"precision.payload": "fp8"})
    alone = without_effect(cfg, map_ranks(cfg.parallel, cfg.model, 1))
    keys = ["parallel.overlap", "parallel.regather", "precision.payload", "precision.reductions"]
    assert [line.split("=")[0] for line in alone] == keys
    ours = grouped({"parallel.schedule": "zbv", "parallel.stages_per_rank": 2})
    lines = without_effect(ours, map_ranks(ours.parallel, ours.model, 1))
    assert [line.split("=")[0] for line in lines] == ["parallel.schedule", "parallel.stages_per_rank"]
    ours = grouped({"optim.momentum": 0.5, "optim.ns_steps": 3, "optim.zero_stage": 3, "optim.eps": 1e-7})
    lines = without_effect(ours, map_ranks(ours.parallel, ours.model, 1))
    assert [line.split("=")[0] for line in lines] == ["optim.momentum", "optim.ns_steps", "optim.zero_stage"]
    pairs = {"data.min_pixels": 1024, "data.max_pixels": 4096, "train.pair_loss": "sigmoid"}
    ours = grouped(pairs)
    lines = without_effect(ours, map_ranks(ours.parallel, ours.model, 1))
    assert [line.split("=")[0] for line in lines] == [*pairs]
    ours = grouped(pairs | {"data.name": "pairs", "train.objective": "image_text"})
    assert not without_effect(ours, map_ranks(ours.parallel, ours.model, 1))
    ours = grouped({"precision.experts": "fp8_reference", "model.expert_backend": "loop"})
    (line,) = without_effect(ours, map_ranks(ours.parallel, ours.model, 1))
    assert line.startswith("model.expert_backend=loop")
    assert "precision.experts=fp8_reference" in line
    theirs = grouped({"precision.experts": "fp8_block", "parallel.regather": True, "parallel.ep": 8})
    (line,) = without_effect(theirs, map_ranks(theirs.parallel, theirs.model, 8))
    assert line.startswith("parallel.regather=true")
    assert "Transformer Engine" in line
    ring = grouped({"parallel.cp_kind": "ring"})
    (line,) = without_effect(ring, map_ranks(ring.parallel, ring.model, 1))
    assert line.startswith("parallel.cp_kind=ring")
    spread = grouped({"parallel.balance_towers": True})
    (line,) = without_effect(spread, map_ranks(spread.parallel, spread.model, 2))
    assert line.startswith("parallel.balance_towers=true")
    shared = with_key(ring, "parallel.cp", 2)
    assert without_effect(shared, map_ranks(shared.parallel, shared.model, 2)) == []
    eight = grouped(changes | {"parallel.ep": 8})
    assert without_effect(eight, map_ranks(eight.parallel, eight.model, 8)) == []


@pytest.mark.parametrize("ranks", [8, 16])
def test_every_parallel_recipe_fits_the_ranks_that_it_is_for(ranks):
    """Those for a pipeline whose every stage takes eight ranks are for as many times more."""
    words = ["recipe=toy", "model.num_layers=32", "train.micro_batch=1", "train.global_batch=512"]
    for name in list_groups()["parallel"]:
        own = [*words, f"parallel={name}"]
        if name in ("ep8", "cp8_ep8") and ranks != 8:
            with pytest.raises(ConfigError) as refused:
                compose(own, world_size=ranks)
            assert (refused.value.where, refused.value.value) == ("parallel.dp_shard", 1 if name == "cp8_ep8" else 8)
        else:
            compose(own, world_size=ranks * {"pp32_ep8": 32, "pp4_ep8": 4}.get(name, 1))
