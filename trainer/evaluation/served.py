"""Answers from a server with OpenAI's API, such as `octavo serve`, LMDeploy, vLLM or SGLang."""

from __future__ import annotations

import base64
import mimetypes
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from trainer.chat.server import Server, ServerError
from trainer.evaluation.asked import MEDIA, Answer, Failure, Question, media_of
from trainer.evaluation.contexts import exceeds_context
from trainer.evaluation.perplexity import Passage, PassageScore, is_log_prob, score_of
from trainer.evaluation.suite import Message, SuiteError

T = TypeVar("T")
R = TypeVar("R")

# Fields that OpenAI's own servers do not know; `--omit` leaves them out.
OPTIONAL = ("top_k", "seed", "chat_template_kwargs", "max_tokens", "temperature", "top_p")


class ServedModel(Server):
    """A model on a server.

    url: the API, such as http://host:8000/v1. model: its name there; None: the only one that the server lists.
    concurrency: requests side by side. omit: fields that are not sent. The rest as of `Server`.
    Raises SuiteError for an address or a name that cannot be used, ServerError where the server does not answer.
    """

    error = SuiteError

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        api_key: str = "",
        concurrency: int = 16,
        timeout: float = 3600,
        retries: int = 5,
        backoff: float = 1.0,
        omit: Iterable[str] = (),
        option: str = "URL",
    ) -> None:
        super().__init__(url, api_key=api_key, timeout=timeout, retries=retries, backoff=backoff)
        self.concurrency, self.omit, self.given = concurrency, frozenset(omit), option
        listed = self._listed(needed=model is None)
        if model is None and len(listed) != 1:
            text = f"{self.address} has the models {', '.join(listed) or '(none)'}; choose one with --model"
            raise SuiteError(text, where="--model", value=tuple(listed), allowed=tuple(listed))
        self.model = model or next(iter(listed))
        card = listed.get(self.model, {})
        self.context: int | None = card.get("max_model_len")
        self.name = f"{self.model} at {self.address}"
        self.identity: Mapping[str, Any] = {"url": self.address.rstrip("/"), "model": self.model}
        if self.omit:  # other fields are other answers
            self.identity = {**self.identity, "omit": sorted(self.omit)}
        if (version := card.get("version")) is not None:  # `octavo serve` has one, which changes with the weights
            self.identity = {**self.identity, "version": version}

    def _listed(self, *, needed: bool) -> dict[str, Mapping[str, Any]]:
        """The cards of the models by name; nothing where they are not `needed` and the server does not list them."""

        def read(reply: Any) -> dict[str, Mapping[str, Any]]:
            return {one["id"]: dict(one) for one in reply["data"]}

        try:
            return self.get("models", read)
        except SuiteError:
            if needed:
                raise
            return {}
        except ServerError as error:
            if not needed and error.status is not None:
                return {}
            remedy = "start the server, or check the address"
            text = f"{self.given} {self.address} does not list its models: {error}; {remedy}"
            raise SuiteError(text, where=self.given, value=self.address, allowed=remedy) from None

    def answer(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Tries are repeated as `Server` does; a question whose tries have all failed is a failure."""
        return self._side_by_side(questions, self._ask)

    def score(self, passages: Iterable[Passage]) -> Iterator[tuple[Passage, PassageScore | Failure]]:
        """Needs completions with `echo` and `logprobs` (`octavo serve` and vLLM have them). Texts alone; one beyond the
        context is a final failure."""
        return self._side_by_side(passages, self._score)

    def _side_by_side(self, things: Iterable[T], ask: Callable[[T], R]) -> Iterator[tuple[T, R]]:
        todo, more = iter(things), True
        asked: dict[Future[R], T] = {}
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="ask")
        try:
            while more or asked:
                while more and len(asked) < self.concurrency:
                    try:
                        thing = next(todo)
                    except StopIteration:
                        more = False
                    else:
                        asked[pool.submit(ask, thing)] = thing
                done, _ = wait(asked, return_when=FIRST_COMPLETED)
                for future in done:
                    yield asked.pop(future), future.result()
        finally:
            for future in asked:
                future.cancel()
            if asked:
                self.stop()  # an error or an interrupt: what is under way is given up
            pool.shutdown()

    def _score(self, passage: Passage) -> PassageScore | Failure:
        assert passage.text is not None
        size = len(passage.text.encode())

        body = {"model": self.model, "prompt": passage.text, "max_tokens": 0, "echo": True, "logprobs": 0}
        try:
            return self.post("completions", body, lambda reply: score_of(_log_probs(reply, passage), None, size))
        except ServerError as error:
            return Failure(str(error), final=exceeds_context(error))

    def _ask(self, question: Question) -> Answer | Failure:
        """The answer; where prompt and longest answer exceed the context, of a request without a limit, so that the
        answer ends with the context, as those of the embedded engine do."""
        try:
            body = self.body(question)
            try:
                return self.post("chat/completions", body, _answer)
            except ServerError as error:
                if not exceeds_context(error) or body.pop("max_tokens", None) is None:
                    raise
            return self.post("chat/completions", body, _answer)
        except ServerError as error:
            return Failure(str(error), final=exceeds_context(error))
        except OSError as error:
            return Failure(str(error))

    def body(self, question: Question) -> dict[str, Any]:
        """The request. Media are sent as data, so that the server needs no access to files."""
        s = question.settings
        body = {
            "model": self.model,
            "messages": [_sent(message) for message in question.messages],
            "max_tokens": s.max_tokens,
            "temperature": s.temperature,
            "top_p": s.top_p,
            "seed": s.seed,
            "chat_template_kwargs": {"enable_thinking": s.thinking},
        }
        if s.top_k:
            body["top_k"] = s.top_k
        if self.context is not None and s.max_tokens >= self.context:
            del body["max_tokens"]  # servers then answer as far as the context goes
        return {name: value for name, value in body.items() if name not in self.omit}


def _log_probs(reply: Any, passage: Passage) -> list[float]:
    """The log-probabilities of the tokens behind the first. Raises ServerError for a reply that has anything else, such
    as those of an answer."""
    choice = reply["choices"][0]
    found = choice["logprobs"]
    log_probs, tokens = found["token_logprobs"], found["tokens"]
    if choice["text"] != passage.text:
        # servers that do not know `echo`, or that generate a token all the same
        raise ServerError(f"the completion is not the text that was sent: {choice['text'][:60]!r}", again=False)
    if not log_probs or len(log_probs) != len(tokens):
        text = f"{len(log_probs)} log-probabilities for {len(tokens)} tokens"
        raise ServerError(text, again=False)
    if wrong := [value for value in log_probs[1:] if not is_log_prob(value)]:
        raise ServerError(f"{wrong[0]!r} is not a log-probability", again=False)
    return [float(value) for value in log_probs[1:]]


def _sent(message: Message) -> Message:
    if not media_of(message):
        return message
    parts = []
    for part in message["content"]:
        kind = part["type"]
        if kind in MEDIA:
            part = {**part, kind: {**part[kind], "url": data_url(Path(part[kind]["url"]))}}
        parts.append(part)
    return {**message, "content": parts}


def data_url(path: Path) -> str:
    """A file as a data: URL. Raises OSError."""
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _answer(reply: Any) -> Answer:
    choice, usage = reply["choices"][0], reply.get("usage") or {}
    message = choice["message"]
    text, thinking = message.get("content") or "", message.get("reasoning_content") or message.get("reasoning") or ""
    if not isinstance(text, str) or not isinstance(thinking, str):
        raise ServerError(f"a reply without text: {str(choice)[:100]}", again=True)
    cut = choice.get("finish_reason") == "length"
    return Answer(
        text, thinking, "length" if cut else "stop", usage.get("prompt_tokens"), usage.get("completion_tokens")
    )
