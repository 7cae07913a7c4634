import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from zlib import crc32

import pytest

from tests.printed import error_line
from tests.trainer.corpora.science.chat_server import chat_server
from trainer.corpora.science.records import Property, Record, Table
from trainer.corpora.science.rollouts.chat import ChatServer, ServerError
from trainer.corpora.science.rollouts.ledger import Ledger
from trainer.corpora.science.rollouts.rollouts import GIVE_UP, Rollouts, verified
from trainer.corpora.science.tasks import Task
from trainer.corpora.science.texts import Text, texts
from trainer.data.errors import DataError

MASS = {"mass": Property("mass", unit="kg")}
RECORDS = [Record(f"k{n}", f"thing {n}", {"mass": f"{n + 1}.50"}) for n in range(30)]
MADE = list(texts("made", [Table("made", "object", "objects", MASS, RECORDS)], seed=0, tasks_per_record=4))
ASKED = [text for text in MADE if text.form in ("qa", "choice", "ranking")]


def run(ledger: Path, url: str, **options: float) -> tuple[list[Text], Counter[str]]:
    server = ChatServer(url, "m", timeout=options.get("timeout", 20), retries=3, backoff=0.01)
    with Ledger(ledger) as entries:
        rollouts = Rollouts(server, entries, concurrency=4, max_tokens=int(options.get("max_tokens", 64)))
        return list(rollouts.expand(MADE)), rollouts.counts


def test_chains_come_before_the_record_s_own_answer_in_the_same_order(tmp_path: Path) -> None:
    with chat_server() as server:
        made, counts = run(tmp_path / "ledger", server.url)
        assert 1 < server.most <= 4
    assert counts == {"asked": len(ASKED), "expanded": len(ASKED)}
    assert sorted(server.asked) == sorted(text.task.prompt for text in ASKED if text.task)
    assert {(r["path"], r["model"], r["max_tokens"]) for r in server.requests} == {("/v1/chat/completions", "m", 64)}
    assert server.keys == {None}
    for before, after in zip(MADE, made, strict=True):
        assert (before.origin, before.key, before.form) == (after.origin, after.key, after.form)
        if before.task is None or before.form == "completion":
            assert after == before
        else:
            assert after.model == "m"
            assert after.text == before.task.prompt + before.task.frame.replace(
                "{answer}", "It is known.\n" + before.task.short
            )


def test_a_server_that_misbehaves_costs_short_answers_at_most(tmp_path: Path) -> None:
    ways = ("500", "garbage", "drop", "429", "short", "wrong", "cut", "silent", "400", "right")

    def behave(prompt: str, before: int) -> str:
        way = ways[crc32(prompt.encode()) % len(ways)]
        return "right" if before >= 2 and way in ("500", "garbage", "drop", "429", "short") else way

    of = Counter(behave(text.task.prompt, 0) for text in ASKED if text.task)
    assert len(of) == len(ways)
    with chat_server(behave) as server:
        made, counts = run(tmp_path / "ledger", server.url)
        tries = Counter(server.asked)
    assert counts["failed"] == of["400"]
    assert counts["disagreed"] == of["wrong"] + of["silent"]
    assert counts["cut off"] == of["cut"]
    assert counts["expanded"] == len(ASKED) - counts["failed"] - counts["disagreed"] - counts["cut off"]
    for before, after in zip(MADE, made, strict=True):
        if before.task is None or before.form == "completion":
            continue
        way = behave(before.task.prompt, 0)
        assert tries[before.task.prompt] == (3 if way in ("500", "garbage", "drop", "429", "short") else 1)
        if way in ("wrong", "cut", "silent", "400"):
            assert after == before
        else:
            assert after.text != before.text
    # Nothing that was answered is asked again; what failed is.
    with chat_server(behave) as server:
        again, counts = run(tmp_path / "ledger", server.url)
        assert set(server.asked) == {p for p in tries if behave(p, 0) == "400"}
    assert again == made
    assert counts["found"] == len(ASKED) - of["400"]
    with chat_server(lambda prompt, before: "right") as server:  # with more tokens, what they cut off is asked again
        _, counts = run(tmp_path / "ledger", server.url, max_tokens=65)
        assert set(server.asked) == {p for p in tries if behave(p, 0) in ("400", "cut")}
        assert run(tmp_path / "ledger", server.url, max_tokens=65)[1]["found"] == len(ASKED)


@pytest.mark.parametrize("way", ["hang", "dribble"])
def test_a_try_ends_with_its_time(way: str) -> None:
    with chat_server(lambda prompt, before: way) as server:
        client = ChatServer(server.url, "m", timeout=0.3, retries=1, backoff=0.01)
        began = time.monotonic()
        system = {"role": "system", "content": "on record is: 1\nState"}
        with pytest.raises(ServerError):
            client.complete([system, {"role": "user", "content": "?"}], 8)
        assert time.monotonic() - began < 3
        assert len(server.asked) == 2


def test_a_server_that_refuses_or_is_gone_ends_the_work(tmp_path: Path) -> None:
    with chat_server(lambda prompt, before: "401") as server:
        with pytest.raises(DataError) as caught:
            run(tmp_path / "ledger", server.url)
        assert server.url in caught.value.lines[0]
        assert caught.value.where == "--rollouts"
        assert caught.value.value.startswith("401")
        assert "--api-key-env" in caught.value.allowed
        gone = server.url
        assert len(server.asked) <= 20
    with pytest.raises(DataError) as caught:
        run(tmp_path / "ledger", gone)
    assert caught.value.where == "--rollouts"
    assert caught.value.value.startswith("ConnectError")
    assert f" {GIVE_UP} " in caught.value.lines[0]
    for url in ("localhost:8000", "ftp://x/v1", "http://", "http://x:y/v1"):
        with pytest.raises(DataError) as caught:
            ChatServer(url, "m")
        assert (caught.value.where, caught.value.value) == ("--rollouts", url)


def go(path: Path, url: str, out: Path) -> None:
    made, counts = run(path, url)
    out.write_text(json.dumps([[text.text for text in made], counts]))


def test_a_start_that_was_killed_resumes_and_asks_nothing_twice(tmp_path: Path) -> None:
    ledger, out = tmp_path / "ledger", tmp_path / "out"
    slow: Callable[[str, int], str] = lambda prompt, before: time.sleep(0.02) or "right"  # noqa: E731
    with chat_server(slow) as server:
        expected, _ = run(tmp_path / "whole", server.url)
        del server.asked[:]
        worker = multiprocessing.get_context("spawn").Process(target=go, args=(ledger, server.url, out))
        worker.start()
        while not ledger.exists() or ledger.read_bytes().count(b"\n") < 20:
            time.sleep(0.01)
        os.kill(worker.pid or 0, signal.SIGKILL)
        worker.join()
        time.sleep(0.1)  # requests under way
        written = ledger.read_bytes()
        known = {json.loads(line)["prompt"] for line in written.split(b"\n")[:-1] if line}
        assert 20 <= len(known) < len(ASKED)
        ledger.write_bytes(written + b'{"key": "half a li' + b"n" * 1_000_000)
        del server.asked[:]
        go(ledger, server.url, out)
        assert known.isdisjoint(server.asked)
        assert len(server.asked) == len(ASKED) - len(known)
    made, counts = json.loads(out.read_text())
    assert made == [text.text for text in expected]
    assert counts["found"] == len(known)
    assert ledger.read_bytes().endswith(b"\n")
    with Ledger(ledger) as entries:
        assert len(entries) == len(ASKED)


def test_a_ledger_has_one_writer_and_says_what_is_no_entry(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    with Ledger(path) as ledger:
        ledger.add("a", {"reply": "ü\n"})
        assert ledger.get("a") == {"key": "a", "reply": "ü\n"}
        assert ledger.get("b") is None
        with pytest.raises(DataError) as caught:
            Ledger(path)
        assert (caught.value.where, caught.value.allowed) == (str(path), "wait for it, or use another --ledger")
    path.write_bytes(path.read_bytes() + b"[]\n")
    with pytest.raises(DataError) as caught:
        Ledger(path)
    assert caught.value.where == f"{path}, line 2"
    assert caught.value.value == "[]\n"


@pytest.mark.parametrize(
    ("finals", "said", "right"),
    [
        (("-277600 J/mol",), "-277600 J/mol", True),
        (("-277600 J/mol",), "**\u2212277,600 J / mol.**", True),
        (("-277600 J/mol",), "-277.6 kJ/mol", False),
        (("-277600 J/mol",), "-277600", False),
        (("-277600 J/mol",), "277600 J/mol", False),
        (("25.30",), "25.3", True),
        (("B", "12 K", "B. 12 K"), "b", True),
        (("(B)", "12 K", "(B) 12 K"), "B", True),
        (("B", "12 K", "B. 12 K"), "12 K", True),
        (("B", "12 K", "B. 12 K"), "C", False),
        (("a < b", "a; b"), "a; b", True),
        (("a < b", "a; b"), "b; a", False),
        (("2-butanol",), '"2-Butanol"', True),
        (("2-butanol",), "2", False),
    ],
)
def test_an_answer_is_compared_by_what_it_means(finals: tuple[str, ...], said: str, right: bool) -> None:
    task = Task("qa", "mass", "", "?", "{answer}", "x", finals)
    reply = f"Final answer: none yet.\nBecause.\n**Final answer:** {said}\n"
    chain = verified(task, reply)
    assert chain == ("Final answer: none yet.\nBecause." if right else None)
    assert verified(task, "Because " + said) is None
    assert verified(task, f"Final answer: {said}") is None  # no chain


def test_the_command_takes_its_key_from_the_variable_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("name,mp\n" + "".join(f"alloy {n},{1000 + 37 * n}\n" for n in range(8)))
    (tmp_path / "c.yaml").write_text("name: name\nproperties: {mp: {label: melting point, unit: K}}\n")
    with chat_server() as server:
        words = ["science", "out.jsonl", "--records", "r.csv", "--columns", "c.yaml", "--rollouts", server.url]
        words += ["--model", "m", "--api-key-env", "MY_KEY", "--seed", "5"]
        command = [sys.executable, "-m", "launch.cli", *words]
        environ = {
            **os.environ,
            "PYTHONPATH": os.getcwd(),
            "OPENAI_API_KEY": "hidden",
            "http_proxy": "http://127.0.0.1:9",
        }
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 2
        error_line(done.stderr, "--api-key-env", "MY_KEY")
        assert not (tmp_path / "out.jsonl").exists()
        environ["MY_KEY"] = "secret"
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert server.keys == {"Bearer secret"}
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expanded = [line for line in lines if line.get("model") == "m"]
    assert f"rollouts: {len(expanded)} asked, {len(expanded)} expanded" in done.stdout
    assert len(expanded) > 4
    assert all("It is known." in line["text"] for line in expanded)
    assert b"secret" not in (tmp_path / "out.jsonl.rollouts").read_bytes()
