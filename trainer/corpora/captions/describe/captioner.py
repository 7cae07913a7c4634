"""The client of a vision model on an OpenAI-compatible server."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from typing import Any

from trainer.chat.server import Server, ServerError
from trainer.data.errors import DataError

MODELS = {"science": "InternVL3.5-241B", "general": "CapRL-32B"}  # by route
ENDS = ("stop", "length", "content_filter", "eos_token", "stop_sequence")


@dataclass(frozen=True)
class Endpoint:
    """The captioner of a route, and how it is asked.

    url: the API, such as http://host:8000/v1. max_tokens: of an answer; one that needs more is cut, and dropped.
    concurrency: requests side by side. timeout: seconds of one try as a whole; a try that may succeed later is
    repeated `retries` times, after `backoff` seconds, doubled each time, or when the server says. price_in, price_out:
    of a million tokens. api_key_env: the environment variable with the key; "": none. seed: of the sampling, with the
    crop's id; not sent where temperature is 0.
    """

    url: str
    model: str
    max_tokens: int = 2048
    temperature: float = 0.0
    concurrency: int = 16
    timeout: float = 600.0
    retries: int = 5
    backoff: float = 1.0
    price_in: float = 0.0
    price_out: float = 0.0
    api_key_env: str = ""


@dataclass(frozen=True)
class Reply:
    """text: "" where there is none. finish: why the answer ended, one of `ENDS`: "length" for one that was cut.
    refusal: the server's own mark of a refusal. tokens_in, tokens_out: None where they are not counted."""

    text: str
    finish: str
    refusal: bool
    tokens_in: int | None
    tokens_out: int | None


class Captioner(Server):
    """A `Server` that describes images. Raises DataError for an address or a key that cannot be used."""

    error = DataError

    def __init__(self, endpoint: Endpoint, option: str) -> None:
        """option: names the endpoint in errors, such as "--science"."""
        self.option = option  # names the address in errors
        super().__init__(
            endpoint.url,
            api_key=_key(endpoint.api_key_env, option),
            timeout=endpoint.timeout,
            retries=endpoint.retries,
            backoff=endpoint.backoff,
        )
        self.endpoint = endpoint

    def describe(self, prompt: str, image: bytes, image_format: str, seed: int) -> Reply:
        """Raises ServerError after the last try, Stopped, and DataError if the server refuses all requests."""
        data = f"data:image/{image_format};base64,{base64.b64encode(image).decode()}"
        content = [{"type": "image_url", "image_url": {"url": data}}, {"type": "text", "text": prompt}]
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.endpoint.max_tokens,
            "temperature": self.endpoint.temperature,
        }
        if self.endpoint.temperature:
            body["seed"] = seed
        return self.post("chat/completions", body, _reply)


def _key(variable: str, option: str) -> str:
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        allowed = "an environment variable with the key"
        text = f"{option}.api_key_env: {variable} is not set or empty; give {allowed}"
        raise DataError(text, where=f"{option}.api_key_env", value=variable, allowed=allowed)
    return key


def _reply(reply: Any) -> Reply:
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    message = choice["message"]
    content, refusal = message.get("content") or "", message.get("refusal")
    if not isinstance(content, str):
        raise ServerError(f"a reply without text: {str(choice)[:100]}", again=True)
    finish = str(choice.get("finish_reason"))
    if finish not in ENDS:  # an answer may be cut without a word
        raise ServerError(f"an answer that ended with finish_reason {finish!r}", again=True)
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    tokens_in, tokens_out = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    return Reply(content, finish, bool(refusal) or finish == "content_filter", tokens_in, tokens_out)
