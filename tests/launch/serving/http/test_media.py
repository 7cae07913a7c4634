"""Images and signals in messages: what reaches the engine, and what is refused."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from launch.serving.conversation import Conversation
from launch.serving.http.media import Sources
from launch.serving.http.model import Served
from tests.launch.serving import tiny_server
from tests.launch.serving.tiny_vision import vision_served
from tests.servers import Handler, QuietServer, serving
from tests.trainer.chat.templates import FAMILIES
from tests.trainer.data.media import illustrated
from trainer.chat.template import DEFAULT, ChatTemplate
from trainer.data.media.readers.read import read_recording
from trainer.engine.request import Request

URL = "/v1/chat/completions"
TEXTS = FAMILIES["chatml"].text


def data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


WAVE = npy(illustrated.wave(3))


def image(number: int = 0, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data("image/png", illustrated.image(number, 1, 2)), **more}}


def signal(rate: float | None = 25, **more: Any) -> dict[str, Any]:
    fields = {"url": data("time_series/npy", WAVE), "sampling_rate": rate, **more}
    fields = {name: one for name, one in fields.items() if one is not None}
    return {"type": "time_series_url", "time_series_url": fields}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Served:
    return vision_served(tmp_path_factory.mktemp("media"))


@pytest.fixture(scope="module")
def client(served) -> Iterator[TestClient]:
    with tiny_server.client(served) as made:
        yield made


@pytest.fixture
def asked(served, monkeypatch) -> list[Request]:
    return tiny_server.watched(served, monkeypatch)


def post(client: TestClient, *content: Any, status: int = 200) -> dict[str, Any]:
    answer = client.post(URL, json={"messages": [{"role": "user", "content": [*content]}], "max_tokens": 2, "seed": 1})
    assert answer.status_code == status, answer.text
    return answer.json()


def spelled(served: Served, request: Request) -> str:
    """The prompt with one placeholder for each run of them."""
    ids, kinds = [*request.prompt], {kind.token for kind in served.source.rules.kinds.values()}
    once = [token for place, token in enumerate(ids) if token not in kinds or ids[place - 1] != token]
    return served.tokenizer._bpe.decode(once, skip_special_tokens=False)


def test_an_image_and_a_signal_reach_the_engine(client, served, asked):
    assert post(client, text("see "), image(), text(" and "), signal(), text("."))["choices"]
    (request,) = asked
    assert spelled(served, request) == (
        "<user>see Picture: <img><IMG_CONTEXT></img> and <ts><TS_CONTEXT></ts>.<assistant>"
    )
    rules = served.source.rules
    expected = [
        served.source.medium("image", illustrated.image(0, 1, 2)),
        served.source.medium("signal", read_recording(WAVE, where="x", rate=25.0)),
    ]
    assert [*request.media] == expected
    assert [request.prompt.count(rules.kinds[one.kind].token) for one in expected] == [one.tokens for one in expected]


def test_the_answer_depends_on_the_media(client, served):
    asked = {"max_tokens": 1, "logprobs": True, "top_logprobs": 20}
    found = []
    for content in ([image(0)], [image(1)], [image(0)], [signal(25)], [signal(75)]):
        body = {"messages": [{"role": "user", "content": [*content, text("?")]}], "temperature": 0, **asked}
        found.append(client.post(URL, json=body).json()["choices"][0]["logprobs"])
    assert found[0] == found[2]
    assert len({str(one) for one in found}) == 4


def test_a_template_of_texts_gets_placeholders(client, served, asked, monkeypatch):
    monkeypatch.setitem(served.__dict__, "conversation", Conversation(ChatTemplate({DEFAULT: TEXTS}), served.tokenizer))
    post(client, image(), text(" see "), signal())
    assert "<img><IMG_CONTEXT></img> see <ts><TS_CONTEXT></ts>" in spelled(served, asked[0])


def test_placeholders_in_the_text_are_the_places(client, served, asked):
    post(client, signal(), text("Look at <TS_CONTEXT> and "), text("<IMG_CONTEXT>."), image())
    assert "<user>Look at <ts><TS_CONTEXT></ts> and <img><IMG_CONTEXT></img>.<" in spelled(served, asked[0])
    post(client, signal(), text("<TS_CONTEXT><TS_CONTEXT>"), status=400)


def test_files_and_other_servers_where_allowed(client, served, tmp_path, asked):
    inside = served.media.files / "a wave.npy"
    inside.write_bytes(WAVE)
    post(client, {"type": "time_series_url", "time_series_url": {"url": f"file://{inside}".replace(" ", "%20")}})
    (tmp_path / "outside.npy").write_bytes(WAVE)
    (served.media.files / "link.npy").symlink_to(tmp_path / "outside.npy")
    for path in (tmp_path / "outside.npy", served.media.files / "link.npy", served.media.files / "none.npy"):
        part = {"type": "time_series_url", "time_series_url": {"url": f"file://{path}"}}
        assert "--media-dir" in post(client, part, status=400)["error"]["message"]

    class Pictures(Handler):
        def do_GET(self) -> None:
            self.send(illustrated.image(0, 1, 2), 200 if "good" in self.path else 302, Location="/good.png")

    with serving(QuietServer(Pictures)) as server:
        post(client, {"type": "image_url", "image_url": {"url": f"{server.root}/good.png"}})
        post(client, {"type": "image_url", "image_url": {"url": f"{server.root}/moved.png"}}, status=400)
    assert [request.media[0].kind for request in asked] == ["signal", "image"]


@pytest.mark.parametrize(
    "part",
    [
        image(detail="low", other=1), image(url=1), image(url=""), image(url="data:image/png,abc"),
        image(url="ftp://a/b"), {"type": "image_url"}, {"type": "image_url", "image_url": []},
        image(url="data:image/png;base64,!!!!"), image(url=data("image/png", b"no image")),
        image(url=data("image/png", illustrated.image(0)[:90])), signal(url=data("time_series/npy", b"x")),
        signal(rate=0), signal(rate=-1), signal(rate=True), signal(rate="25"), image(url="http://["),
        signal(url=data("time_series/npy", npy(np.zeros((0, 2))))), signal(url=data("x/npy", npy(np.array([{}])))),
        {"type": "video_url", "video_url": {"url": "data:"}}, image(url="http://127.0.0.1:1/a.png"),
    ],
)  # fmt: skip
def test_malformed_media_are_refused(client, served, part):
    submitted = served.worker.engine._submitted
    found = post(client, text("see"), part, status=400)["error"]
    assert found["param"].startswith("messages[0].content[1]")
    assert served.worker.engine._submitted == submitted


def test_without_towers_or_permission_media_are_refused(client, served, monkeypatch):
    answer = post(client, *[image()] * 65, status=400)["error"]
    assert "64" in answer["message"]
    monkeypatch.setitem(served.__dict__, "media", Sources())
    for url, option in (("file:///etc/passwd", "--media-dir"), ("https://a.example/b.png", "--media-http")):
        assert option in post(client, image(url=url), status=400)["error"]["message"]
    with tiny_server.client(tiny_server.served(template=TEXTS)) as bare:
        found = post(bare, image(), status=400)["error"]
    assert found["param"] == "messages[0].content[0].image_url"
