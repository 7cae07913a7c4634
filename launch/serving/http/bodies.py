"""Bodies of requests: read within their limits, and the fields that each kind has.

A field that is unknown is refused, and so is a value that would change the answer in a way that the server cannot
carry out. What clients send for other servers and changes nothing here is in `Ignored`.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from starlette.requests import Request as HttpRequest

from launch.serving.http.errors import ApiError
from trainer.engine.request import Sampling
from trainer.storage.json_text import read_json

MOST_ANSWERS, MOST_STOPS = 128, 16
READ_SECONDS = 60.0  # for a body to arrive
BITS = 64
Fields = TypeVar("Fields", bound=BaseModel)


def _stops(value: Any) -> Any:
    """Checked by hand, as a prompt is."""
    found = [value] if isinstance(value, str) else value
    if found is None or (isinstance(found, list) and len(found) <= MOST_STOPS and _are(found, str) and "" not in found):
        return found
    raise ValueError(f"give a text or a list of at most {MOST_STOPS} texts, none of them empty")


Stops = Annotated[list[str] | None, BeforeValidator(_stops)]


def _prompt(value: Any) -> Any:
    """Checked by hand: pydantic reports a fault for each member of a union."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        lists = all(isinstance(ids, list) and ids and _are(ids, int) for ids in value)
        if lists or _are(value, str) or _are(value, int):
            return value
    raise ValueError("give a text, a list of texts, a list of token ids, or a list of such lists, none of them empty")


def _are(values: Sequence[Any], kind: type) -> bool:
    return all(type(one) is kind for one in values)


Prompt = Annotated[Any, BeforeValidator(_prompt)]


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # of OpenAI's: filler against a reader of packet sizes; never added here


class Ignored(BaseModel):
    """Fields that clients send and that change nothing here."""

    model_config = ConfigDict(extra="forbid", strict=True)
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    parallel_tool_calls: Any = None  # where no tool can be called
    session_id: Any = None
    skip_special_tokens: Any = None  # tokens that end answers are never shown
    spaces_between_special_tokens: Any = None  # nor is anything put between tokens


class Sampled(Ignored):
    """The way answers are drawn; the names are OpenAI's, and those that LMDeploy, vLLM and SGLang added."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: Annotated[int, Field(ge=-(2 ** (BITS - 1)), lt=2 ** (BITS - 1))] | None = None
    stop: Stops = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    stream: bool | None = None
    repetition_penalty: float | None = None

    @property
    def _penalties(self) -> dict[str, Any]:
        """Fields of `Sampling` that change logits."""
        return {"repetition_penalty": 1.0 if self.repetition_penalty is None else self.repetition_penalty}

    def sampling(self, number: int) -> Sampling:
        """Settings of the answer `number`, whose seed is that many above the request's."""
        chosen = secrets.randbits(BITS - 1) if self.seed is None else self.seed
        half = 2 ** (BITS - 1)
        return Sampling(
            1.0 if self.temperature is None else self.temperature,
            self.top_k if self.top_k is not None and self.top_k >= 0 else 0,  # some clients send -1 for "from all"
            1.0 if self.top_p is None else self.top_p,
            self.min_p or 0.0,
            (chosen + number + half) % (2 * half) - half,
            **self._penalties,
        )


class OpenAi(Sampled):
    """The fields that /v1/completions and /v1/chat/completions share."""

    model: str | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ANSWERS)] | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @field_validator("logit_bias")
    @classmethod
    def _tokens(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and not all(name.isascii() and name.isdecimal() and len(name) < 10 for name in value):
            raise ValueError('its names are ids of tokens, such as "17"')
        return value

    @property
    def _penalties(self) -> dict[str, Any]:
        bias = tuple((int(name), value) for name, value in (self.logit_bias or {}).items())
        given = {"presence_penalty": self.presence_penalty or 0.0, "frequency_penalty": self.frequency_penalty or 0.0}
        return {**super()._penalties, **given, "logit_bias": bias}

    @property
    def answers(self) -> int:
        return self.n or 1

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class Completion(OpenAi):
    """/v1/completions"""

    prompt: Prompt
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: int | None = None
    suffix: str | None = None

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, value: str | None) -> str | None:
        return _unsupported("leave it out") if value else value

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each of them a text or token ids."""
        given: Any = self.prompt
        return [given] if isinstance(given, str) or isinstance(given[0], int) else given


class Chat(OpenAi):
    """/v1/chat/completions"""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None  # LMDeploy's; the same as in chat_template_kwargs
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None

    @field_validator("response_format")
    @classmethod
    def _text(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        return value if value in (None, {"type": "text"}) else _unsupported('leave it out, or use {"type": "text"}')


class Generate(Sampled):
    """LMDeploy's /generate"""

    prompt: str | None = None
    input_ids: list[int] | None = None
    session_id: Annotated[int, Field(ge=-1)] | None = None
    image_data: Any = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    return_logprob: bool | None = None
    top_logprobs_num: Annotated[int, Field(ge=0)] | None = None
    logprob_start_len: Annotated[int, Field(ge=-1)] | None = None
    return_routed_experts: bool | None = None
    include_stop_str_in_output: bool | None = None

    repetition_ngram_size: int | None = None
    repetition_ngram_threshold: int | None = None

    @field_validator("repetition_ngram_size", "repetition_ngram_threshold")
    @classmethod
    def _no_ngrams(cls, value: int | None) -> int | None:
        return _unsupported("leave it out, or use 0") if value else value

    @field_validator("image_data", "mm_processor_kwargs", "media_io_kwargs")
    @classmethod
    def _no_media(cls, value: Any) -> Any:
        return _unsupported("leave it out, and send images to /v1/chat/completions") if value else value


class Abort(BaseModel):
    """LMDeploy's /abort_request"""

    model_config = ConfigDict(extra="forbid", strict=True)
    abort_all: bool = False
    session_id: Annotated[int, Field(ge=-1)] | None = None
    abort_message: str | None = None
    finished_reason: dict[str, Any] | None = None


def _unsupported(remedy: str) -> NoReturn:
    raise ValueError(f"this server cannot do that; {remedy}")


async def read(request: HttpRequest, kind: type[Fields], *, most: int) -> Fields:
    """The fields of a request whose body has at most `most` bytes. Raises ApiError."""
    content = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content != "application/json":  # what a page in a browser cannot send to another host without asking
        text = f"the body is {content or 'of no type'}; send JSON, with the header Content-Type: application/json"
        raise ApiError(415, text)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise _too_large(most)
    body = bytearray()
    try:
        async with asyncio.timeout(READ_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise _too_large(most)
    except TimeoutError:
        text = f"the body did not arrive within {READ_SECONDS:g} s"
        raise ApiError(408, text, code="timeout", headers={"Connection": "close"}) from None
    return parse(bytes(body), kind)


def _too_large(most: int) -> ApiError:
    text = f"the body has more than {most:,} bytes; send less, or start with a larger --max-body"
    return ApiError(413, text, headers={"Connection": "close"})


def parse(body: bytes, kind: type[Fields]) -> Fields:
    """Raises ApiError that names the field."""
    try:
        found = read_json(body, unique=True)
    except ValueError as error:
        raise ApiError(400, f"the body is not JSON: {error}") from None
    try:
        return kind.model_validate(found)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> ApiError:
    """One that names the first faults; pydantic reports one for each member of a union."""
    found = {_path(one["loc"]): re.sub("^Value error, ", "", one["msg"]) for one in reversed(error.errors())}
    first = dict(reversed([*found.items()][-3:]))
    param = next(iter(first))
    text = "; ".join(f"{path or 'the body'}: {said}" for path, said in first.items())
    return ApiError(400, text, param=param or None)


def _path(where: Sequence[str | int]) -> str:
    """`messages[0].role` of ("messages", 0, "role"), without the members of unions that pydantic adds."""
    parts = [part for part in where if isinstance(part, int) or re.fullmatch(r"\w+", part)]
    if parts[1:] and parts[1] in ("str", "bool"):
        parts = parts[:1]
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
