"""Captions from `octavo serve`'s application over HTTP, by an untrained model that sees the crops."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import uvicorn

from launch.serving.http.app import build
from launch.serving.http.model import Served
from tests.launch.serving import tiny_server
from tests.launch.serving.tiny_vision import vision_served
from tests.trainer.corpora.captions.made_crops import made_crop
from tests.trainer.data.media import illustrated
from trainer.corpora.captions.describe.captioner import Endpoint
from trainer.corpora.captions.describe.rows import read_captions
from trainer.corpora.captions.describe.stage import CaptionOptions, run_captions
from trainer.corpora.captions.quality.stage import QualityOptions, run_quality
from trainer.corpora.captions.tables import part_path, read_part, write_part

CROPS, MAX_TOKENS = 16, 200


@contextmanager
def running(served: Served) -> Iterator[str]:
    """The address of the API."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(build(served), http="h11", ws="none", loop="asyncio", lifespan="on", log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.slow
def test_the_answers_of_an_untrained_model_fail_quality(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crops = [
        replace(made_crop(number), image=illustrated.image(number, 1 + number % 2, 2), caption="", context="")
        for number in range(CROPS)
    ]
    (tmp_path / "crops").mkdir()
    write_part(part_path(tmp_path / "crops", 0), crops)
    served = vision_served(tmp_path, cache_tokens=8192)
    requests = tiny_server.watched(served, monkeypatch)
    with running(served) as url:
        one = Endpoint(url, "tiny", max_tokens=MAX_TOKENS, temperature=1.0, concurrency=4, timeout=120)
        captions = run_captions(
            tmp_path / "captions",
            tmp_path / "crops",
            lambda part: {crop.id: "general" for crop in read_part(part, images=False)},
            CaptionOptions({"general": one}),
        )
    quality = run_quality(tmp_path / "quality", tmp_path / "crops", tmp_path / "captions", QualityOptions())

    # every crop reached the model as an image, and every answer is accounted for
    placeholder = served.source.rules.image.token
    sizes = sorted(request.prompt.count(placeholder) for request in requests)
    assert sizes == sorted(2 * (1 + number % 2) for number in range(CROPS))
    answered = captions.counts["crops"]
    assert (answered.came, answered.kept + answered.dropped.total()) == (CROPS, CROPS)
    assert set(answered.dropped) <= {"cut", "empty"}
    # those that came to an end are captions of this server, and not one passes
    assert answered.kept > 0
    assert quality.counts["captions"].came == answered.kept == quality.counts["captions"].dropped.total()
    assert list(read_captions(tmp_path / "crops", tmp_path / "quality")) == []
