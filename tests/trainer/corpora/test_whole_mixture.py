"""The toy of data=cpt_6t: every kind of source, and its rehearsal on eight ranks, stopped and resumed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.pool import on_ranks
from tests.parallel.zero.fresh_groups import forget_groups
from tests.trainer.tiny_run import events, steps
from trainer.config.compose import compose
from trainer.config.keys import Config
from trainer.corpora.media.builtin import picture_files
from trainer.corpora.media.shapes import read_shapes, read_texts
from trainer.corpora.toy import open_toy_mixture
from trainer.data.errors import DataError
from trainer.data.media.images import decode
from trainer.run.loop import Trainer
from trainer.run.process import train
from trainer.storage.progress import ignore

RECIPE, RANKS, STOP = "cpt_6t_media_rehearsal", 8, 4


def rehearsal(*words: str) -> Config:
    return compose([f"recipe={RECIPE}", "logging.console=off", *words], world_size=RANKS)


def test_shapes_have_captions_and_the_texts_are_chinese() -> None:
    first = next(read_shapes())
    image, caption = first.parts
    assert decode(image["bytes"], where="shape", max_pixels=80**2).shape[2] == 3
    assert caption.startswith("a ")
    texts = [document.text for document in read_texts()]
    assert len({*texts}) == len(texts)
    assert all("\u4e00" <= letter <= "\u9fff" or letter in "。\n" for letter in "".join(texts[:20]))


def rehearse(cfg: Config, stop_at: int | None, log: str) -> int:
    """Train, write down the sources of the samples of each step, and end with a signal in step `stop_at`."""
    genuine = Trainer._train_step

    def train_step(self: Trainer, batches: Any, counts: dict[str, int]) -> None:
        reader = self.parts.data.text
        samples = [sample for batch in batches for sample in batch.samples]
        sources = [reader.names[source] for source in reader.index.lookup(samples)[0].tolist()]
        with open(f"{log}/{self.world.rank}.jsonl", "a") as file:
            file.write(json.dumps({"samples": samples, "sources": sources, "counts": self.parts.place.counts}) + "\n")
        if self.position.step + 1 == stop_at and self.world.rank == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        genuine(self, batches, counts)

    Trainer._train_step = train_step
    try:
        return train(cfg)
    finally:
        Trainer._train_step = genuine
        forget_groups()


@pytest.mark.timeout(600)
@pytest.mark.slow  # eight processes on two cores; quick: CI runs the command, and resuming at other layouts is tested
def test_the_whole_mixture_rehearses_on_eight_ranks_and_resumes_at_its_place(cache_dir: Path, tmp_path: Path) -> None:
    try:
        picture_files()
    except DataError as error:
        pytest.skip(str(error))
    run, log = tmp_path / "run", tmp_path / "log"
    log.mkdir()
    cfg = rehearsal(f"data.cache_dir={cache_dir}", f"run.dir={run}")
    open_toy_mixture(cfg.data, progress=ignore)  # before eight processes wait for it
    assert on_ranks(RANKS, rehearse, cfg, STOP, str(log), timeout_s=240) == [128 + signal.SIGTERM] * RANKS
    assert on_ranks(RANKS, rehearse, cfg, None, str(log), timeout_s=240) == [0] * RANKS

    seen: dict[int, str] = {}
    for path in log.iterdir():
        for line in map(json.loads, path.read_text().splitlines()):
            if line["counts"]:  # of the ranks that read the same samples, one
                new = dict(zip(line["samples"], line["sources"], strict=True))
                assert not new.keys() & seen.keys()
                seen |= new
    assert sorted(seen) == list(range(600))
    drawn = {name: [*seen.values()].count(name) for name in cfg.data.sources}
    wanted = {name: source.tokens / cfg.data.seq_len for name, source in cfg.data.sources.items()}
    assert drawn == pytest.approx(wanted, abs=6)  # the last phase is a part of a stretch of 256 samples
    assert min(drawn.values()) > 0
    logged = steps(run)
    assert [record["step"] for record in logged] == list(range(1, cfg.train.steps + 1))
    assert sum(record["images"] for record in logged) >= drawn["science_captions"] + drawn["image_text"]
    assert sum(record["signals"] for record in logged) >= drawn["time_series"]
    assert logged[-1]["loss"] < logged[0]["loss"]
    assert {*events(run, "evaluation")[-1]["heldout"]} == {*cfg.data.sources}
    assert (run / "checkpoints" / f"step-{cfg.train.steps}").is_dir()
