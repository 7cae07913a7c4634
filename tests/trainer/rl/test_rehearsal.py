"""recipe=rl_intern_s1_pro: its layout, its memory and its values; and its rehearsal on eight processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.rl.servers.group_server import GroupServer
from tests.trainer.rl.servers.http_server import serving
from tests.trainer.rl.servers.stand_in import write_model
from tests.trainer.tiny_run import records
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.config.memory import rank_memory
from trainer.config.ranks import map_ranks
from trainer.run.process import train
from trainer.run.simulate import simulate_rank

RECIPE, RANKS = "recipe=rl_intern_s1_pro", 512


def rehearsal(directory: Path, *words: str) -> Config:
    given = ["train.device=cpu", "train.steps=3", "logging.console=off", f"data.cache_dir={directory.parent / 'cache'}"]
    return compose([f"{RECIPE}_rehearsal", *given, f"run.dir={directory}", *words], world_size=8)


def test_the_layout_maps_router_groups_to_the_ranks_that_share_a_rollout() -> None:
    cfg = compose([RECIPE], world_size=RANKS)
    ranks = map_ranks(cfg.parallel, cfg.model, RANKS)
    assert (ranks.layout.cp, ranks.layout.ep, ranks.layout.pp) == (8, cfg.model.router_groups, 1)
    assert ranks.dispatch == "all_gather"  # each rank has one group, so rows do not depend on the router
    assert cfg.train.global_batch % ranks.layout.readers == 0
    assert cfg.rl.max_tokens + 4096 == cfg.data.seq_len <= cfg.model.max_position  # prompts of 4,096 tokens
    q = cfg.precision
    assert (q.experts, q.linears, q.lm_head, q.router) == ("fp8_block", "bf16", "fp32", "fp32")
    assert (cfg.rl.engine, cfg.rl.replay, cfg.rl.freeze_router) == ("lmdeploy", "replay", True)
    assert cfg.rl.sync == "distributed"  # servers are on machines of their own


def test_the_rehearsal_has_the_axes_and_the_options_of_the_recipe() -> None:
    whole, cfg = compose([RECIPE], world_size=RANKS), compose([f"{RECIPE}_rehearsal"], world_size=8)
    for axis in ("cp", "ep", "pp"):
        assert getattr(whole.parallel, axis) == getattr(cfg.parallel, axis)
    for key in ("replay", "freeze_router", "fp8_weights", "mode", "level", "denominator", "updates"):
        assert getattr(whole.rl, key) == getattr(cfg.rl, key)
    assert cfg.precision.experts == "fp8_reference"
    assert cfg.train.recompute == whole.train.recompute
    assert cfg.checkpoint.init_from is None


def test_a_reference_takes_as_much_as_the_weights() -> None:
    plain, beside = (
        rank_memory(compose([RECIPE, *words], world_size=RANKS), RANKS) for words in ([], ["rl.kl_coef=0.01"])
    )
    assert beside.device - plain.device == plain.weights


def test_routes_wait_on_the_host() -> None:
    counted = rank_memory(compose([RECIPE], world_size=RANKS), RANKS)
    windows = 64 * 16 * 8 // RANKS  # of a rank; eight share each
    assert counted.rollouts == windows * 69_632 * (2 * 94 * 8 + 13)
    assert counted.host >= counted.rollouts
    assert counted.device == counted.total - counted.rollouts


@pytest.mark.parametrize("layers", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_simulated_rank_holds_what_is_counted_and_no_fp8_copies_beyond_a_layer(layers: int) -> None:
    cfg = compose([RECIPE, f"model.num_layers={layers}"], world_size=RANKS)
    counted, found = rank_memory(cfg, RANKS), simulate_rank(cfg, RANKS, 0)
    held = found.memory
    assert (counted.weights, counted.gradients, counted.optimizer) == (held.weights, held.gradients, held.optimizer)
    assert found.micro_batches == cfg.train.global_batch * cfg.rl.group_size // found.layout.readers
    of_a_layer = 64 * 3 * 1536 * 4096 * 2  # a group's experts, two layouts of one byte
    assert found.peak.activations < 10e9 + layers * 0.1 * of_a_layer


@pytest.mark.slow
def test_the_rehearsal_replays_routes_on_eight_ranks(tmp_path: Path) -> None:
    """Plain arithmetic in FP8: rollouts and training differ by what a tile boundary rounds, and select alike."""
    cfg = rehearsal(tmp_path / "run")
    assert on_ranks(8, train, cfg, timeout_s=300) == [0] * 8
    steps = [record for record in records(tmp_path / "run") if "event" not in record]
    assert [step["step"] for step in steps] == [1, 2, 3]
    for step in steps:
        assert step["tokens"] > 0
        assert step["mismatch/max"] < 0.05
        assert step["mismatch/k3"] < 1e-4
        assert step["replay/flip_rate"] < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("sync", ["buckets", "distributed"])
def test_the_rehearsal_takes_rollouts_from_a_server_that_gets_its_weights(tmp_path: Path, sync: str) -> None:
    words = ["rl.engine=lmdeploy", "rl.url=http://127.0.0.1:1", f"rl.sync={sync}", "train.global_batch=2"]
    cfg = rehearsal(tmp_path / "run", *words)
    server = GroupServer(write_model(tmp_path / "server", cfg.model, seed=99))
    with serving(server) as url:
        cfg.rl.url = url
        assert on_ranks(8, train, cfg, timeout_s=300) == [0] * 8
    steps = [record for record in records(tmp_path / "run") if "event" not in record]
    assert sum(step["tokens"] for step in steps) > 0
    assert len(set(server.nbytes)) == 1
    assert bool(server.workers.buckets[0]) == (sync == "distributed")
    for step in steps:
        assert step["sync/bytes"] == server.nbytes[0] > 0
        if step["tokens"]:
            assert 0 < step["mismatch/max"] < 0.2
