"""Runs that no memory could hold are refused by their size, in no time."""

import pytest

from parallel.zero import partitioned
from tests.trainer.tiny_run import tiny_config
from trainer.config import places
from trainer.config.checks.fit import too_large, too_large_beside, too_large_to_store
from trainer.config.compose import compose
from trainer.config.memory import gigabytes, host_memory, rank_memory

HUGE = 10**8
ON_NVME = ["optim.offload=nvme", "optim.nvme_dir=/nvme"]


def test_the_parts_of_a_model_on_one_rank():
    cfg = tiny_config("unused")
    found, count = rank_memory(cfg, 1), cfg.model.num_params()
    assert (found.weights, found.gradients) == (4 * count, 4 * count)
    assert 8 * count < found.optimizer < 8 * count + 200  # and a step count for each weight
    assert found.total > found.held


@pytest.mark.parametrize("shards", [1, 2])
def test_a_reference_policy_is_a_second_set_of_weights(shards):
    words = ["recipe=rl_toy", f"parallel.dp_shard={shards}"]
    without, found = (
        rank_memory(compose([*words, f"rl.kl_coef={coefficient}"], world_size=shards), shards)
        for coefficient in (0.0, 0.01)
    )
    assert found.reference == found.weights
    assert found.total - without.total == found.device - without.device == found.weights
    fault = too_large(compose([*words, "rl.kl_coef=0.01"], world_size=shards), shards, 1000, "this machine")
    assert "reference policy" in fault.text


def test_a_frozen_head_has_no_gradient():
    cfg = tiny_config("unused", objective="contrastive")
    found, head = rank_memory(cfg, 1), cfg.model.vocab_size * cfg.model.hidden_size
    assert found.weights - found.gradients == 4 * head


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"num_layers": HUGE}},
        {"model": {"vocab_size": 10**12}},
        {"model": {"num_experts": 8 * HUGE}},
        {"model": {"hidden_size": HUGE}},
        {"global_batch": 2 * 10**10},  # the tokens of a step are made before it
        {"global_batch": 2 * HUGE, "micro_batch": HUGE},  # activations
    ],
    ids=lambda change: "-".join(change.get("model", change)),
)
def test_sizes_beyond_memory(change):
    fault = too_large(tiny_config("unused", **change), 1, 16 * 10**9, "this machine")
    assert fault is not None
    assert fault.where == "model"
    assert fault.value > 16 * 10**9


def test_the_remedy_is_the_most_layers_that_fit():
    cfg, available = tiny_config("unused", model={"num_layers": HUGE}), 10**7
    layers = too_large(cfg, 1, available, "this machine").allowed
    assert 1 < layers < HUGE
    assert too_large(tiny_config("unused", model={"num_layers": layers}), 1, available, "this machine") is None
    assert too_large(tiny_config("unused", model={"num_layers": layers + 1}), 1, available, "this machine")


def test_ranks_that_share_the_weights_need_less():
    cfg = tiny_config("unused", model={"num_layers": 200}, global_batch=16)
    whole = rank_memory(cfg, 8).held
    cfg.parallel.dp_shard = 8
    assert rank_memory(cfg, 8).held < whole / 6


def test_ranks_that_share_sequences_keep_their_part_of_the_activations():
    cfg = tiny_config("unused", global_batch=16)
    whole = rank_memory(cfg, 8)
    cfg.parallel.cp = 4
    part = rank_memory(cfg, 8)
    assert 4 * part.activations == whole.activations
    assert part.batches == 4 * whole.batches  # the ranks of a sequence read all of it


def test_state_on_the_host_takes_no_memory_of_the_gpu():
    cfg = tiny_config("unused", engine="deepspeed", offload="cpu")
    needed = rank_memory(cfg, 1)
    assert not needed.exact
    assert too_large(cfg, 1, needed.device, "this GPU") is None
    assert too_large(cfg, 1, needed.device, "this machine") is not None


def test_inputs_of_layers_that_are_moved_take_memory_of_the_host():
    plain, moved = (
        rank_memory(tiny_config("unused", offload_activations=away, model={"num_layers": 4}), 1)
        for away in (False, True)
    )
    assert moved.host - plain.host == plain.activations == 2 * moved.activations
    assert plain.device - moved.device == moved.activations
    assert moved.total == plain.total + moved.activations


def test_the_host_is_refused_for_all_ranks_on_it():
    words = ["recipe=cpt_117b_32gpu", "train.offload_activations=true"]
    cfg = compose(words, world_size=32)
    of_8, of_16 = (host_memory(cfg, 32, ranks) for ranks in (8, 16))
    assert of_8 == 8 * rank_memory(cfg, 32).host
    assert of_8 < of_16 < 2 * of_8  # the second stage has fewer micro-batches under way
    fault = too_large_beside(cfg, 32, 8, of_8 - 1)
    assert fault is not None
    assert (fault.where, fault.value) == ("train.offload_activations", of_8)
    assert too_large_beside(cfg, 32, 8, of_8) is None


def test_moments_of_the_native_engine_are_on_the_host():
    here, away = (rank_memory(tiny_config("unused", offload=place), 1) for place in ("none", "cpu"))
    count = tiny_config("unused").model.num_params()
    assert (away.held, away.exact) == (here.held, True)
    assert away.host - here.host == 8 * count
    assert away.device == here.device - 8 * count + away.buffers


@pytest.mark.parametrize(
    ("words", "ranks", "device", "host"),
    [
        (["recipe=cpt_30b_8gpu"], 8, (61, 80), (0, 1)),
        (["recipe=cpt_30b_8gpu", "optim.offload=cpu"], 8, (30, 40), (30, 31)),
        (["recipe=cpt_30b_1gpu_offload"], 1, (3, 24), (488, 490)),
        (["recipe=cpt_30b_1gpu_offload", *ON_NVME], 1, (3, 24), (250, 252)),
    ],
    ids=["8 GPUs", "8 GPUs, moments on the host", "1 GPU", "1 GPU, state on NVMe"],
)
def test_the_30b_recipes_fit_where_they_say(words, ranks, device, host):
    needed = rank_memory(compose(words, world_size=ranks), ranks)
    assert device[0] <= needed.device / 1e9 < device[1]
    assert host[0] <= needed.host / 1e9 < host[1]


def test_what_does_not_fit_beside_the_gpus_is_refused_with_its_size():
    cfg = compose(["recipe=cpt_30b_1gpu_offload"], world_size=1)
    fault = too_large_beside(cfg, 1, 1, 256 * 10**9)
    assert fault is not None
    assert (fault.where, round(fault.value / 1e9)) == ("optim.offload", 489)
    assert too_large_beside(cfg, 1, 1, 512 * 10**9) is None
    assert too_large_beside(compose(["recipe=cpt_30b_8gpu"], world_size=8), 8, 8, 10**6) is None


def test_state_on_nvme_takes_no_memory_and_is_refused_where_the_disk_is_too_small():
    cfg = compose(["recipe=cpt_30b_1gpu_offload", *ON_NVME], world_size=1)
    needed, on_host = rank_memory(cfg, 1), rank_memory(compose(["recipe=cpt_30b_1gpu_offload"], world_size=1), 1)
    assert needed.stored == 12 * cfg.model.num_params()  # fp32 weights and two moments
    assert needed.device == on_host.device
    assert needed.host - needed.locked == on_host.host - 8 * cfg.model.num_params()  # of 16: weights, gradients
    assert needed.total == needed.device + needed.offloaded + needed.locked
    assert (places.SUB_GROUP, needed.locked) == (partitioned.SUB_GROUP, 16 * 402_653_184)
    fault = too_large_to_store(cfg, 1, 1, 256 * 10**9)
    assert fault is not None
    assert (fault.where, round(fault.value / 1e9)) == ("optim.nvme_dir", 366)
    assert too_large_to_store(cfg, 1, 1, 512 * 10**9) is None


def test_sizes_are_shown_in_a_fitting_unit():
    assert (gigabytes(62.14e6), gigabytes(1.1072e12)) == ("62.1 MB", "1,107.2 GB")
