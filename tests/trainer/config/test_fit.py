"""Layouts that do not fit are refused with the nearest ones that do."""

import time

import pytest

from parallel.errors import Fault
from trainer.config.checks.fit import too_large
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.memory import largest_memory, rank_memory

GPU_80_GB = 72 * 10**9  # and a tenth to spare


def faulty(cfg: Config, world: int, available: int) -> Fault:
    fault = too_large(cfg, world, available, "this GPU")
    assert fault is not None
    return fault


def test_experts_gathered_on_every_rank_do_not_fit_and_a_pipeline_does():
    cfg = compose(["recipe=cpt_6t", "parallel=ep_fsdp"], world_size=512)
    began = time.process_time()
    fault = faulty(cfg, 512, GPU_80_GB)
    assert time.process_time() - began < 1.0
    assert fault.where == "parallel"
    assert fault.value > 229e9  # the gathered experts alone
    for words in fault.allowed:
        other = compose(["recipe=cpt_6t", *words], world_size=512)
        assert other.parallel.pp > 1
        assert too_large(other, 512, GPU_80_GB, "this GPU") is None


@pytest.mark.parametrize(
    ("recipe", "world", "size"), [("cpt_6t", 512, 80), ("cpt_6t_256", 256, 141), ("cpt_117b_32gpu", 32, 80)]
)
def test_what_a_recipe_is_for_fits(recipe, world, size):
    cfg = compose([f"recipe={recipe}"], world_size=world)
    assert too_large(cfg, world, int(0.9e9 * size), "this GPU") is None


def test_nearest_means_few_changes():
    """Half the memory: first the layouts that keep most of what was asked for."""
    cfg = compose(["recipe=toy", "parallel=ep8", "train.micro_batch=1"], world_size=8)
    cfg.parallel.dp_replicate, cfg.parallel.dp_shard, cfg.parallel.ep = 8, 1, 1
    needed = largest_memory(cfg, 8)[1].total
    fault = faulty(cfg, 8, needed * 7 // 10)
    assert fault.allowed[0] == ("parallel.pp=1", "parallel.dp_replicate=4", "parallel.dp_shard=2", "parallel.ep=1")
    assert 1 < len(fault.allowed) <= 3


def test_where_no_layout_fits_the_most_layers_that_do_are_named():
    cfg = compose(["recipe=cpt_6t"], world_size=512)
    fault = faulty(cfg, 512, 30 * 10**9)
    assert fault.where == "model"
    cfg.model.num_layers = fault.allowed
    assert too_large(cfg, 512, 30 * 10**9, "this GPU") is None
    cfg.model.num_layers += 1
    assert faulty(cfg, 512, 30 * 10**9).value > 30e9


def test_the_rank_that_needs_the_most_is_the_most_of_all_stages():
    for words in ([], ["parallel.pp=16"], ["parallel.pp=94", "parallel.dp_shard=8"]):
        world = 94 * 8 if "parallel.pp=94" in words else 512
        batch = f"train.global_batch={94 * 16 * 8}" if world != 512 else "train.global_batch=24576"
        cfg = compose(["recipe=cpt_6t", *words, batch], world_size=world)
        ranks = range(0, world, world // cfg.parallel.pp)
        assert largest_memory(cfg, world)[1].total == max(rank_memory(cfg, world, rank).total for rank in ranks)
