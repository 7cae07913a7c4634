"""The stage `captions` over parts of crops: all accounted for, resumed after kills with nothing asked twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.corpora.captions.describe.caption_server import caption_server
from tests.trainer.corpora.captions.made_crops import good_answer, made_crop
from trainer.corpora.captions.crops import Crop
from trainer.corpora.captions.describe.captioner import Endpoint
from trainer.corpora.captions.describe.rows import read_captions, read_rows
from trainer.corpora.captions.describe.stage import CaptionOptions, run_captions
from trainer.corpora.captions.reports import REPORT
from trainer.corpora.captions.tables import part_path, read_part, write_part
from trainer.data.errors import DataError

CONCURRENCY = 3


def write_crops(directory: Path, sizes: tuple[int, ...] = (7, 0, 8)) -> list[Crop]:
    """Parts of figures, with a caption alone and a crop without an image."""
    directory.mkdir()
    crops = [made_crop(number) for number in range(sum(sizes))]
    crops[2] = replace(made_crop(2, "caption"))
    crops[4] = replace(crops[4], image=b"")
    start = 0
    for part, size in enumerate(sizes):
        write_part(part_path(directory, part), crops[start : start + size])
        start += size
    return crops


def routes_of(part: Path) -> dict[str, str]:
    """Every fifth page is general, but for the tenth."""
    names = ("general", "other", "science")
    return {crop.id: names[2 if crop.page % 5 else crop.page == 10] for crop in read_part(part, images=False)}


def all_science(part: Path) -> dict[str, str]:
    return {crop.id: "science" for crop in read_part(part, images=False)}


def options_for(url: str, other: str | None = None, **more: Any) -> CaptionOptions:
    one = Endpoint(url, "vl", concurrency=CONCURRENCY, timeout=20, retries=1, backoff=0.01)
    return CaptionOptions({"science": one, "general": replace(one, url=other or url, model="cap")}, **more)


def files(directory: Path) -> dict[str, bytes]:
    """The files of a stage, but the ledgers, whose order is that of the answers."""
    return {path.name: path.read_bytes() for path in directory.iterdir() if "ledger" not in path.name}


def recorded(directory: Path) -> set[str]:
    """The ids of the crops whose answers are in the ledgers."""
    lines = [line for path in directory.glob("*ledger*") for line in path.read_bytes().splitlines(keepends=True)]
    return {json.loads(line)["crop"] for line in lines if line.endswith(b"\n")}


def test_every_crop_is_accounted_for_and_routes_have_their_own_captioner(tmp_path):
    crops = write_crops(tmp_path / "crops")
    ways = {0: "refuse", 6: "cut", 11: "empty"}
    with caption_server(lambda number, before: ways.get(number, "well")) as science, caption_server() as general:
        options = options_for(science.url, general.url)
        report = run_captions(tmp_path / "captions", tmp_path / "crops", routes_of, options)
        wanted = {"caption alone": 1, "no image": 1, "no captioner": 1, "refused": 1, "cut": 1, "empty": 1}
        count = report.counts["crops"]
        assert (count.came, count.kept, count.dropped) == (15, 9, wanted)
        assert report.counts["crops of general"].to_json() == {"in": 1, "out": 1, "dropped": {}}
        assert report.counts["crops of science"].came == 11
        assert report.facts["requests"] == 12 == science.asked.total() + general.asked.total()
        assert {body["model"] for body in science.bodies} == {"vl"}
        assert {body["model"] for body in general.bodies} == {"cap"}
        other = replace(options, words=50)
        with pytest.raises(DataError) as caught:
            run_captions(tmp_path / "captions", tmp_path / "crops", routes_of, other)
        assert caught.value.value == ("words",)
        again = run_captions(tmp_path / "captions", tmp_path / "crops", routes_of, options)
        assert (again, science.asked.total()) == (report, 11)
    rows = [row for part in (0, 1, 2) for row in read_rows(tmp_path / "captions" / f"part-0000{part}.jsonl")]
    assert [row.id for row in rows] == [crop.id for crop in crops]
    kept = list(read_captions(tmp_path / "crops", tmp_path / "captions"))
    assert [row.caption for row in kept] == [good_answer(n) for n in (1, 3, 5, 7, 8, 10, 12, 13, 14)]
    assert all(row.instruction and row.instruction in sent(science, general) for row in kept)


def sent(*servers: Any) -> str:
    return "".join(body["messages"][0]["content"][1]["text"] for server in servers for body in server.bodies)


def test_crops_without_an_answer_are_asked_again_or_dropped(tmp_path):
    write_crops(tmp_path / "crops")
    with caption_server(lambda number, before: "500" if number in (1, 12) and before < 2 else "well") as server:
        run = partial(run_captions, tmp_path / "captions", tmp_path / "crops", all_science)
        with pytest.raises(DataError) as caught:
            run(options_for(server.url))
        assert caught.value.value == 2
        assert not (tmp_path / "captions" / REPORT).exists()
        asked = server.asked.total()
        assert run(options_for(server.url)).counts["crops"].kept == 13
        assert server.asked.total() == asked + 2
        server.behaviour = lambda number, before: "500" if number == 1 else "well"
        report = run_captions(
            tmp_path / "dropped", tmp_path / "crops", all_science, options_for(server.url, drop_failed=True)
        )
    assert report.counts["crops"].dropped == {"caption alone": 1, "no image": 1, "failed": 1}


def test_a_budget_counts_what_earlier_starts_have_spent(tmp_path):
    write_crops(tmp_path / "crops")
    with caption_server() as server:
        run = partial(run_captions, tmp_path / "captions", tmp_path / "crops", all_science)
        for _ in range(2):
            with pytest.raises(DataError):
                run(options_for(server.url, requests=9))
            assert server.asked.total() == 9
        assert run(options_for(server.url)).facts["requests"] == 13 == server.asked.total()


def kill_and_resume(tmp_path: Path, kills: int) -> None:
    """Kill the stage at `kills` places while it asks, and compare with a stage that was left alone."""
    sizes = (5 * kills, 5 * kills)
    write_crops(tmp_path / "crops", sizes)
    fork = multiprocessing.get_context("fork")
    with caption_server(lambda number, before: "slow 0.05") as server:
        options = options_for(server.url)
        stage = partial(run_captions, tmp_path / "killed", tmp_path / "crops", all_science, options)
        there = {made_crop(number).id: number for number in range(sum(sizes))}
        done: Counter[int] = Counter()  # how often crops with an entry had been asked when the stage was killed
        for place in range(kills):
            process = fork.Process(target=stage)
            process.start()
            target = server.asked.total() + 5 + place % 4
            while server.asked.total() < target and process.is_alive():
                time.sleep(0.001)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            assert process.exitcode == -signal.SIGKILL
            for crop in recorded(tmp_path / "killed"):
                done.setdefault(there[crop], server.asked[there[crop]])
        report = stage()
        assert {number: server.asked[number] for number in done} == done  # never asked again
        again = server.asked.total() - report.facts["requests"]
        assert again <= kills * CONCURRENCY  # those that were under way
        assert run_captions(tmp_path / "whole", tmp_path / "crops", all_science, options) == report
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_killed_stage_resumes_with_nothing_asked_twice(tmp_path):
    kill_and_resume(tmp_path, 2)


@pytest.mark.slow
def test_a_stage_that_is_killed_at_ten_places(tmp_path):
    kill_and_resume(tmp_path, 10)
