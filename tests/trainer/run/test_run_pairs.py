"""Whole runs on image-text pairs: the toy learns to retrieve, on one rank and on two, and resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.pool import on_ranks
from tests.trainer.tiny_run import events, steps
from trainer.config.compose import compose
from trainer.config.errors import ConfigError
from trainer.config.keys import Config
from trainer.data.media.images import PatchRule
from trainer.run.process import train
from trainer.weights.beside.media import kept_media

pytest.importorskip("PIL", reason="needs Pillow: pip install -e '.[media]'")

NAMES = {"loss", "accuracy", "similarity", "scale", "grad_norm"}
RECALLS = {"image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "text_to_image_r5"}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(cache: Path, directory: Path, *words: str, world_size: int = 1) -> Config:
    fixed = ["recipe=vision_contrastive_toy", f"data.cache_dir={cache}", f"run.dir={directory}", "train.device=cpu"]
    return compose([*fixed, "logging.console=off", *words], world_size=world_size)


def test_the_toy_learns_to_retrieve_and_resumes(cache, tmp_path):
    """Held-out captions and images find each other far more often than by chance, which is 1 in over 60."""
    assert train(config(cache, tmp_path, "train.steps=10", "optim.schedule=constant")) == 0
    assert train(config(cache, tmp_path, "train.steps=40", "optim.schedule=constant")) == 0
    record = steps(tmp_path)
    assert [step["step"] for step in record] == list(range(1, 41))
    assert all(math.isfinite(step[name]) for step in record for name in NAMES)
    assert record[0]["scale"] == pytest.approx(10.0)
    assert record[0]["loss"] == pytest.approx(math.log(64), abs=1.0)
    first, last = events(tmp_path, "evaluation")
    for source in ("drawings", "drawings_zh"):
        assert last["heldout"][source] < first["heldout"][source] - 0.5
        assert all(last[name][source] > first[name][source] for name in RECALLS)
        assert all(last[name][source] > 0.06 for name in RECALLS)
        assert all(last[name][source] > 0.25 for name in RECALLS if name.endswith("r5"))
    assert 0.1 < last["zero_shot"]["shapes"] < 0.9  # one in six by chance, and learned later


def rank_trains(cfg: Config) -> int:
    return train(cfg)


def few(micro_batch: int, steps: int = 3) -> list[str]:
    return [f"train.steps={steps}", "train.global_batch=16", f"train.micro_batch={micro_batch}", "train.log_every=1",
            "train.eval_batches=2", "train.pair_loss=sigmoid"]  # fmt: skip


def test_two_ranks_log_what_one_does(cache, tmp_path):
    """The pairs of both ranks are each other's negatives, in shards of weights too."""
    assert train(config(cache, tmp_path / "one", *few(16))) == 0
    words = [*few(8), "parallel=fsdp"]
    assert on_ranks(2, rank_trains, config(cache, tmp_path / "two", *words, world_size=2), timeout_s=120.0) == [0, 0]
    one, two = steps(tmp_path / "one"), steps(tmp_path / "two")
    cfg = config(cache, tmp_path / "one")
    vision = cfg.model.vision
    assert vision is not None
    sizes = [area // (vision.patch_size * vision.merge) ** 2 for area in (cfg.data.min_pixels, cfg.data.max_pixels)]
    least, most = (16 * size * vision.flops_per_token(size * vision.merge**2) for size in sizes)  # of 16 images
    assert len(one) == len(two) == 3
    for mine, theirs in zip(one, two, strict=True):
        for name in NAMES | {"bias"}:
            assert theirs[name] == pytest.approx(mine[name], rel=1e-3), name
        assert theirs["tower_flops"] == pytest.approx(mine["tower_flops"], rel=1e-4)
        assert least <= mine["tower_flops"] <= most
    (mine,), (theirs,) = events(tmp_path / "one", "evaluation"), events(tmp_path / "two", "evaluation")
    for name in RECALLS | {"zero_shot"}:
        assert theirs[name] == pytest.approx(mine[name], abs=0.04), name  # one of 32 pairs, where two are as near
    (kept,) = kept_media(tmp_path / "two")  # an export states it
    assert isinstance(kept.rule, PatchRule)
    assert (kept.rule.min_pixels, kept.rule.max_pixels) == (cfg.data.min_pixels, cfg.data.max_pixels)
    assert {*kept.sources} == {*cfg.data.pairs}


def test_a_resumed_run_is_bitwise_an_uninterrupted_one(cache, tmp_path):
    assert train(config(cache, tmp_path / "whole", *few(16, 4), "optim.schedule=constant")) == 0
    for steps_of_start in (2, 4):
        assert train(config(cache, tmp_path / "parts", *few(16, steps_of_start), "optim.schedule=constant")) == 0
    whole, parts = steps(tmp_path / "whole"), steps(tmp_path / "parts")
    assert [step["loss"] for step in parts] == [step["loss"] for step in whole]
    assert [step["scale"] for step in parts] == [step["scale"] for step in whole]


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["train.objective=next_token"], "train.objective"),
        (["data=synthetic"], "data.name"),
        (["model.embedding=null"], "model.embedding"),
        (["model.vision=null"], "model.vision"),
        (["data.tokenizer=tokenizer.json"], "data.tokenizer"),
        (["data.build=none"], "data.tokenizer"),
        (["data.max_pixels=1000"], "data.max_pixels"),
        (["data.seq_len=1"], "data.seq_len"),
        (["data.pairs.drawings.pairs=0"], "data.pairs.drawings.pairs"),
        (["data.pairs.drawings.max_epochs=0"], "data.pairs.drawings.max_epochs"),
        (["data.zero_shot.shapes=' '"], "data.zero_shot.shapes"),
    ],
)
def test_what_does_not_fit_is_refused(words, where):
    with pytest.raises(ConfigError) as error:
        compose(["recipe=vision_contrastive_toy", *words])
    assert where in [fault.where for fault in error.value.faults]


def test_pairs_and_pipelines_or_shared_sequences_are_refused():
    for key in ("parallel.pp", "parallel.cp"):
        with pytest.raises(ConfigError) as error:
            compose(["recipe=vision_contrastive_toy", f"{key}=2"], world_size=2)
        assert key in [fault.where for fault in error.value.faults]


def test_other_recipes_have_no_pairs():
    found: Any = compose(["recipe=toy"])
    assert not found.data.pairs
    with pytest.raises(ConfigError) as error:
        compose(["recipe=toy", "data=vision_pairs_toy"])
    assert "train.objective" in [fault.where for fault in error.value.faults]
