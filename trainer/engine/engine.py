"""Continuous batching: requests join and leave at every step.

A step runs one token of every request that is generating, and pieces of the prompts of others. A request is admitted
in the order of submission, once the cache has room for its prompt and its longest answer; until then it waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

import torch

from parallel.errors import UserError
from trainer.engine.cache import Cache, Layout, Span
from trainer.engine.media import Placed, key_of, positions_of
from trainer.engine.pages import Pages, next_key, root_key
from trainer.engine.ranks import ALONE, Ranks
from trainer.engine.request import Completion, Finish, Request, Scores, Token, check
from trainer.engine.run import Direct, Run, embed
from trainer.engine.sampling import bend, draw, scores_of
from trainer.engine.text import Decode, TextStream
from trainer.model.decoder import Decoder
from trainer.model.exact.blocks import KEYS
from trainer.model.multimodal import Multimodal

SCORED = 256  # places of a prompt whose logits are in memory at one time


@dataclass(eq=False)
class _Active:
    """A request with its pages. ids: prompt and answer. cached: its first tokens, whose keys are in the cache. keys: of
    its full pages, as far as they are known. same: another with this prompt, which the model is seeing now; this one
    copies what comes of it. log_probs, alternatives: of the answer's tokens; alternatives where there are any."""

    number: int
    request: Request
    ids: list[int]
    pages: list[int]
    keys: list[bytes]
    cached: int
    stream: TextStream | None
    reused: int
    media: list[Placed]
    same: _Active | None = None
    log_probs: list[float] = field(default_factory=list)
    alternatives: list[Scores] = field(default_factory=list)

    @property
    def missing(self) -> int:
        """Tokens that the model has to see before the next one can be drawn, or the prompt scored where none is."""
        return len(self.ids) - self.cached - (self.request.max_tokens == 0)

    def scored(self, tokens: int) -> int:
        """The number of the next tokens that belong to a prompt to be scored."""
        return max(0, min(tokens, len(self.request.prompt) - self.cached)) if self.request.score_prompt else 0


class Engine:
    """Generates with `model`, whose weights must not change while requests are in the engine.

    Args:
        model: a whole decoder on one device; in exact arithmetic (`make_exact`) for results that do not depend on the
            batch. Images and signals need its towers (`Multimodal`).
        decode: token ids -> text; without it answers have no text and cannot stop at texts.
        cache_tokens: room of the cache, rounded up to whole pages of KEYS tokens.
        batch: the most requests of a step. chunk: the most tokens of a step, `batch` or more.
        context: the most tokens of prompt and answer; None: the model's longest document.
        version: of the weights. Prefixes are found again only under the version under which they were computed.
        run: runs the model; None for one whose weights, but for experts, are whole on this rank.
        ranks: that run it together; every call of `step` and `generate` is collective over them.
    """

    def __init__(
        self,
        model: Decoder,
        *,
        decode: Decode | None = None,
        cache_tokens: int = 32_768,
        batch: int = 64,
        chunk: int = 512,
        context: int | None = None,
        version: object = 0,
        run: Run | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        for name, value, least in (("cache_tokens", cache_tokens, 1), ("batch", batch, 1), ("chunk", chunk, batch)):
            if value < least:
                allowed = f"{least} or more"
                raise UserError(f"{name}={value}: use {allowed}", where=name, value=value, allowed=allowed)
        weight = next(model.parameters())
        self.model, self.decode, self.device = model, decode, weight.device
        self.batch, self.chunk, self.context = batch, chunk, context or model.cfg.max_position
        self.pages = Pages(-(-cache_tokens // KEYS))
        self.run, self.ranks = run or Direct(model), ranks
        layers, self._spare = len(self.run.blocks), self.pages.count  # a page for fillers, which no request has
        self.cache = Cache(model.cfg, layers, self.pages.count + 1, model.activations, self.device)
        cfg, towers = model.cfg, isinstance(model, Multimodal)
        tokens = {"image": cfg.image_token if cfg.vision else None, "signal": cfg.signal_token if cfg.signals else None}
        self._placeholders = {kind: token for kind, token in tokens.items() if towers and token is not None}
        self._root = root_key(version)
        self._waiting: deque[tuple[int, Request]] = deque()
        self._active: list[_Active] = []
        self._scored: set[int] = set()  # pages from which a prompt can be scored
        self._done: dict[int, Completion] = {}
        self._submitted = 0

    @property
    def unfinished(self) -> int:
        """Requests that wait or generate."""
        return len(self._waiting) + len(self._active)

    @property
    def done(self) -> Collection[int]:
        """Numbers of the requests whose answers can be taken."""
        return self._done.keys()

    def submit(self, request: Request) -> int:
        """Queue a request. Returns its number, which its tokens bear. Raises RequestError for one that can never be
        served."""
        check(
            request,
            vocab_size=self.model.cfg.vocab_size,
            context=self.context,
            cache_tokens=self.pages.count * KEYS,
            has_text=self.decode is not None,
            placeholders=self._placeholders,
        )
        number, self._submitted = self._submitted, self._submitted + 1
        self._waiting.append((number, request))
        return number

    def cancel(self, number: int) -> None:
        """Forget a request, wherever it is; its pages are free for others. Nothing happens for one that is done."""
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] != number)
        for active in [active for active in self._active if active.number == number]:
            self._active.remove(active)
            self.pages.release(active.pages)
            for other in self._active:
                if other.same is active:
                    other.same = None

    def interrupt(self) -> dict[int, Completion]:
        """Forget all requests that are not done. Returns, by number, what there is of those that have tokens."""
        self._waiting.clear()
        for active in [*self._active]:
            if active.log_probs:
                self._finish(active, "abort")
            else:
                self.cancel(active.number)
        return {number: self.result(number) for number, one in [*self._done.items()] if one.finish == "abort"}

    def use_version(self, version: object) -> None:
        """The weights have changed: from now on they are `version`, whose prefixes are its own.

        Raises RuntimeError while requests are in the engine."""
        if self.unfinished:
            raise RuntimeError(f"the weights changed while {self.unfinished} requests were in the engine")
        self._root = root_key(version)

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Serve requests to their ends; their answers in the same order."""
        numbers = [self.submit(request) for request in requests]
        while self.advance():
            pass
        return [self.result(number) for number in numbers]

    def advance(self) -> bool:
        """Take a step, as `step`. False where no rank of the engine had anything to run."""
        return self._step() is not None

    def result(self, number: int) -> Completion:
        """The answer of a request that is done, once. Raises KeyError for any other."""
        return self._done.pop(number)

    def step(self) -> list[Token]:
        """Admit requests, run the model once, and return the tokens drawn, at most one for each request; none for those
        that only score their prompts."""
        return self._step() or []

    def _step(self) -> list[Token] | None:
        """As `step`; None where no rank has anything to run."""
        self._admit()
        while done := [active for active in self._active if not active.missing]:
            for active in done:  # prompts that are scored from the cache alone
                self._finish(active, "length")
            self._admit()
        run = self._choose()
        own = sum(tokens for _, tokens in run)
        total = self.ranks.tokens(own)
        if not total:
            return None
        spans = [Span(active.cached, tokens, active.pages, active.scored(tokens)) for active, tokens in run]
        before, behind = self._fillers(total - own)
        layout = Layout([*before, *spans, *behind], self.cache)
        ids = [token for active, tokens in run for token in active.ids[active.cached : active.cached + tokens]]
        ids = [*[0] * len(before), *ids, *[0] * (total - own - len(before))]
        drawing, wanted, end = list[_Active](), list[int](), len(before)
        for active, tokens in run:
            end += tokens
            if tokens == active.missing and active.request.max_tokens:
                drawing.append(active)
                wanted.append(end - 1)
        at = torch.tensor(wanted, dtype=torch.int64, device=self.device)
        media = self._media(run, len(before))
        logits = self.run(torch.tensor(ids, device=self.device), layout, self.cache, at, media)
        for active, tokens in run:
            active.cached += tokens
            self._publish(active)
            if not active.missing and not active.request.max_tokens:
                self._finish(active, "length")
        if not drawing:
            return []
        if followers := self._follow(drawing):
            rows = torch.tensor([*range(len(drawing)), *followers.values()], device=self.device)
            drawing += followers
            logits = None if logits is None else logits.index_select(0, rows)
        found, scores = self.ranks.drawn(None if logits is None else _draw(logits, drawing))
        log_probs = scores.log_probs.tolist()
        for place, active in enumerate(drawing):
            if active.request.alternatives:
                active.alternatives.append(scores.of(place, active.request.alternatives))
        return [self._append(*drawn) for drawn in zip(drawing, found, log_probs, strict=True)]

    def _follow(self, drawing: Sequence[_Active]) -> dict[_Active, int]:
        """Requests that waited for the prompts of these: they have these prompts now. With each the number among
        `drawing` of the one that it copied."""
        number = {active: place for place, active in enumerate(drawing)}
        found: dict[_Active, int] = {}
        pages = list[tuple[int, int, int]]()
        for active in self._active:
            if active.same is None or active.same not in number:
                continue
            end = len(active.ids)
            for page in range(active.cached // KEYS, -(-end // KEYS)):
                pages.append((active.same.pages[page], active.pages[page], min(KEYS, end - page * KEYS)))
            found[active] = number[active.same]
            active.cached, active.same = end, None
        self.cache.copy(pages)
        for active in found:
            self._publish(active)
        return found

    def _fillers(self, tokens: int) -> tuple[list[Span], list[Span]]:
        """Spans of tokens that are thrown away, before those of the requests and behind them."""
        if tokens == 1:  # spans of one token come first
            return [Span(0, 1, [self._spare])], []
        return [], [Span(0, tokens, [self._spare] * -(-tokens // KEYS))] if tokens else []

    def _admit(self) -> None:
        starting: dict[tuple[int, ...], _Active] = {}  # what the model has yet to see, by prompts
        if self._waiting:
            starting = {tuple(one.ids): one for one in self._active if one.same is None and _alone(one.request)}
        while self._waiting and len(self._active) < self.batch:
            number, request = self._waiting[0]
            ids = list(request.prompt)
            media = positions_of(ids, request.media, self._placeholders)
            keys, before = [], self._root
            for end in range(KEYS, len(ids), KEYS):  # the last token is computed, for what follows it
                before = next_key(before, ids[end - KEYS : end], key_of(media, end - KEYS, end))
                keys.append(before)
            shared = self.pages.find(keys)
            if request.score_prompt:
                shared = [*takewhile(self._scored.__contains__, shared)]
            total = -(-(len(ids) + request.max_tokens) // KEYS)
            new = self.pages.acquire(shared, total - len(shared))
            if new is None:
                return  # later requests wait too, so that a long one is not overtaken forever
            self._waiting.popleft()
            self.cache.clear(new)
            self._scored.difference_update(new)
            cached = len(shared) * KEYS
            stream = TextStream(self.decode, request.stop) if self.decode is not None else None
            active = _Active(
                number, request, ids, [*shared, *new], keys[: len(shared)], cached, stream, cached, media
            )  # fmt: skip
            if _alone(request):
                first = starting.setdefault(tuple(ids), active)
                active.same = None if first is active else first
            self._active.append(active)

    def _choose(self) -> list[tuple[_Active, int]]:
        """Requests of this step with the number of their tokens: those of one token first."""
        missing = [(active, active.missing) for active in self._active if active.same is None]
        ready = [(active, 1) for active, tokens in missing if tokens == 1]
        longer: list[tuple[_Active, int]] = []
        room = self.chunk - len(ready)
        for active, tokens in missing:
            if tokens > 1 and room > 0:
                tokens = min(tokens, room)
                (longer if tokens > 1 else ready).append((active, tokens))
                room -= tokens
        return [*ready, *longer]

    def _media(self, run: list[tuple[_Active, int]], start: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Numbers of the step's tokens that are placeholders, and their embeddings; None without any. A tower runs when
        the first of a medium's tokens does: not at all for those of a prefix that is found again. start: the number of
        the first request's first token."""
        at: list[int] = []
        rows: list[torch.Tensor] = []
        for active, tokens in run:
            for placed in active.media:
                first, last = placed.between(active.cached, active.cached + tokens)
                if last == first:
                    continue
                if placed.rows is None:
                    placed.rows = embed(self.model, placed.medium)
                at += [start + position - active.cached for position in placed.positions[first:last]]
                rows.append(placed.rows[first:last])
                if last == placed.medium.tokens:
                    placed.rows = None
            start += tokens
        return (torch.tensor(at, device=self.device), torch.cat(rows)) if at else None

    def _publish(self, active: _Active) -> None:
        """Publish the pages that have become full."""
        for number in range(len(active.keys), active.cached // KEYS):
            before = active.keys[-1] if active.keys else self._root
            start, end = number * KEYS, (number + 1) * KEYS
            active.keys.append(next_key(before, active.ids[start:end], key_of(active.media, start, end)))
            page = active.pages[number]
            if active.request.score_prompt and end <= len(active.request.prompt):
                self._scored.add(page)
                if not self._scored.issuperset(self.pages.find(active.keys[-1:])):
                    self.pages.withdraw(active.keys[-1])  # in favour of this one, from which prompts can be scored
            self.pages.publish(page, active.keys[-1])

    def _append(self, active: _Active, token: int, log_prob: float) -> Token:
        active.ids.append(token)
        active.log_probs.append(log_prob)
        finish: Finish | None = None
        text = active.stream.push(token) if active.stream is not None else None
        if token in active.request.stop_ids or (active.stream is not None and active.stream.stopped):
            finish = "stop"
        elif len(active.log_probs) == active.request.max_tokens:
            finish = "length"
        if finish is not None:
            if active.stream is not None:
                text = (text or "") + active.stream.finish()
            self._finish(active, finish)
        alternatives: tuple[tuple[int, float], ...] = ()
        if active.request.alternatives:
            last = active.alternatives[-1]
            alternatives = tuple(zip(last.ids[0].tolist(), last.of_ids[0].tolist(), strict=True))
        return Token(active.number, token, log_prob, text, finish, alternatives)

    def _finish(self, active: _Active, finish: Finish) -> None:
        prompt = len(active.request.prompt)
        scores = Scores.alone(active.log_probs)
        if active.request.alternatives:
            scores = Scores.join(active.alternatives, active.request.alternatives)
        self._active.remove(active)
        self._done[active.number] = Completion(
            tuple(active.ids[:prompt]),
            tuple(active.ids[prompt:]),
            scores,
            self._score_prompt(active) if active.request.score_prompt else None,
            self.cache.routes_of(active.pages, len(active.ids) - 1),
            active.stream.text if active.stream is not None else None,
            finish,
            active.reused,
        )
        self.pages.release(active.pages)

    @torch.inference_mode()
    def _score_prompt(self, active: _Active) -> Scores:
        """The scores of the prompt's tokens behind the first, from what the cache has of those before them."""
        prompt, alternatives, parts = active.request.prompt, active.request.alternatives, []
        for start in range(0, len(prompt) - 1, SCORED):
            end = min(start + SCORED, len(prompt) - 1)
            logits = self.model.logits(self.cache.hidden_of(active.pages, start, end))
            ids = torch.tensor([*prompt[start + 1 : end + 1]], device=self.device)
            parts.append(scores_of(logits, ids, alternatives))
        return Scores.join(parts, alternatives)


def _alone(request: Request) -> bool:
    """Return True if a prompt is described by its tokens alone, so that another with the same tokens may share it."""
    return not request.media and not request.score_prompt


def _draw(logits: torch.Tensor, drawing: Sequence[_Active]) -> tuple[list[int], Scores]:
    """The next token of each request, and its scores. logits: [N, V]."""
    how = [active.request.sampling for active in drawing]
    bent = bend(logits, how, [(active.ids, len(active.request.prompt)) for active in drawing])
    found = draw(bent, how, [len(active.ids) for active in drawing])
    return found.tolist(), scores_of(logits, found, max(active.request.alternatives for active in drawing))
