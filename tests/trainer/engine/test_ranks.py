"""The engine on ranks that share the experts: each with requests of its own, equal to training at equal EP."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from parallel.errors import UserError
from parallel.sharding.local import local_part, local_region
from tests.distributed.pool import on_ranks
from tests.trainer.engine.asked import Trained, requests
from tests.trainer.tiny_run import tiny_config
from trainer import api
from trainer.engine.engine import Engine
from trainer.engine.load import open_source
from trainer.engine.ranks import Apart
from trainer.engine.run import ThroughModules
from trainer.model.exact.switch import make_exact
from trainer.objectives.choose import build_objective
from trainer.parallelize import build_meshes
from trainer.run.build import build_model
from trainer.run.process import train
from trainer.stages.forward import Whole
from trainer.weights.opened import open_checkpoint

GROUPS = {"router_groups": 4, "max_position": 400, "init_std": 0.2}
ONE_GROUP = {"router_groups": 1, "max_position": 400, "init_std": 0.2}


def trained(directory: Path, model: dict[str, Any]) -> Path:
    assert train(tiny_config(directory, model=model, steps=1)) == 0
    return directory


def generate_and_train(run: Path, model: dict[str, Any]) -> int:
    """Answers by an engine with whole dense weights and by one in a sharded training model, against that model's packed
    forward pass: equal bits. Returns the number of cached tokens that were found again."""
    loaded = api.load(run, device="cpu")
    world, source = loaded.world, loaded.source
    rng = random.Random(world.rank)
    asked = requests(source.model, 2 + 3 * (world.rank % 2), rng, longest=12) if world.rank != 2 else []
    engine = Engine(loaded.engine.model, cache_tokens=900, batch=3, chunk=48, ranks=Apart(world))
    answers = engine.generate(asked)

    cfg = tiny_config(run, model=model)
    cfg.parallel.ep = cfg.parallel.dp_shard = world.size
    cfg.parallel.dispatch = "auto"
    meshes = build_meshes(cfg, "cpu")
    sharded = build_model(cfg, world, meshes, build_objective(cfg.train))
    state = open_checkpoint(run).state
    with torch.no_grad():
        for name, weight in [*sharded.named_parameters(), *sharded.named_buffers()]:
            local_part(weight).copy_(state.read(f"model.{name}", local_region(weight)))
    make_exact(sharded)
    through = Engine(
        sharded, cache_tokens=900, batch=2, chunk=30, ranks=Apart(world), run=ThroughModules(Whole(sharded), [sharded])
    ).generate(asked)

    sequences = [[*answer.prompt, *answer.ids] for answer in answers]
    tokens = sum(map(len, sequences))
    longest = max(world.gather_count(tokens))
    fillers = [[0] * min(100, longest + 1 - start) for start in range(tokens, longest + 1, 100)]
    forward = Trained(sharded, [*sequences, *fillers])  # equally many tokens on each rank
    for number, (answer, again) in enumerate(zip(answers, through, strict=True)):
        log_probs, routes = forward.of(number, len(answer.prompt))
        assert np.array_equal(answer.log_probs, log_probs)
        assert np.array_equal(answer.routes, routes)
        assert answer.ids == again.ids
        assert np.array_equal(again.log_probs, log_probs)
        assert np.array_equal(again.routes, routes)
        if asked[number].score_prompt:
            forward.check_scores(number, 1, answer.prompt_scores, asked[number].alternatives)
            forward.check_scores(number, 1, again.prompt_scores, asked[number].alternatives)
    return sum(answer.reused for answer in answers)


@pytest.mark.parametrize(
    ("ranks", "model"),
    [
        pytest.param(2, GROUPS, id="2"),
        pytest.param(4, GROUPS, id="4", marks=pytest.mark.slow),
        pytest.param(8, GROUPS, id="8 with half of an expert each", marks=pytest.mark.slow),
        pytest.param(2, ONE_GROUP, id="2 with counts", marks=pytest.mark.slow),
    ],
)
def test_ranks_with_requests_of_their_own_equal_training_at_equal_ep(tmp_path, ranks, model):
    run = trained(tmp_path / "run", model)
    found = on_ranks(ranks, generate_and_train, run, model, timeout_s=200.0)
    assert sum(found) > 0


def divided(run: Path) -> tuple[Any, ...]:
    try:
        api.load(run, device="cpu")
    except UserError as error:
        return error.where, error.value, error.allowed
    return ()


def test_a_number_of_ranks_that_does_not_divide_the_experts_is_refused(tmp_path):
    run = trained(tmp_path / "run", GROUPS)
    assert open_source(run).model.router_groups == 4
    for where, value, allowed in on_ranks(3, divided, run):
        assert (where, value) == ("parallel.ep", 3)
        assert allowed
