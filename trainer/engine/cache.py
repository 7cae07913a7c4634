"""Keys, values and routes of all requests in pages, and attention over them.

The arithmetic is that of `trainer.model.exact.attention`. In fp32 on a CPU it is compiled, and reads pages where they
are. Elsewhere a page is a block of keys: requests that add one token are attended together, each of their pages as one
product; a longer piece of a prompt is attended by itself. Before each step the pages of the first kind move to the
front of the cache, where one view has them all: they are multiplied in place. Only pages that several of these requests
share are gathered.

Legend: T tokens of a step · N requests with one token · P pages of theirs · n kv heads · r query heads of each ·
d head dimension · R rows of a block of queries · H hidden size · L layers · K experts of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config.model import ModelConfig
from trainer.model.exact import compiled
from trainer.model.exact.attention import attend, queries_of_block
from trainer.model.exact.blocks import KEYS
from trainer.model.exact.compiled import compiles
from trainer.model.exact.short import attend_short, short_documents
from trainer.model.numerics import wide


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one request in a step. start: position of the first. pages: of the request from position 0,
    at least as far as the last of these tokens. kept: number of first tokens for which the LM head's input is kept."""

    start: int
    tokens: int
    pages: Sequence[int]
    kept: int = 0


class Layout:
    """The places of the tokens of a step. spans: those of one token first, as `singles` counts them.

    page, place: [T], on the host. rows: [T, n], of their keys and values among a layer's [slots * n * KEYS].
    kept: spans with `kept` tokens, and the number of the first. pages, table, seen: as of `compiled.attend`, where the
    cache is read by that.
    """

    def __init__(self, spans: Sequence[Span], cache: Cache) -> None:
        self.singles = sum(span.tokens == 1 for span in spans)
        if any(span.tokens > 1 for span in spans[: self.singles]):
            raise ValueError("spans of one token come first")
        self.longer = spans[self.singles :]
        self.one = _Singles(spans[: self.singles], cache) if self.singles and not cache.compiled else None
        sizes, starts = np.array([span.tokens for span in spans]), np.array([span.start for span in spans])
        ends = sizes.cumsum()
        counts = (starts + sizes - 1) // KEYS + 1  # pages of each
        pages = np.array(
            [page for span, count in zip(spans, counts.tolist(), strict=True) for page in span.pages[:count]]
        )
        table = np.repeat(counts.cumsum() - counts, sizes)
        positions = np.arange(ends[-1]) + np.repeat(starts - ends + sizes, sizes)
        self.page = pages[table + positions // KEYS]
        self.place = positions % KEYS
        device, heads = cache.keys.device, np.arange(cache.keys.shape[2])
        self.positions = torch.from_numpy(positions).to(device)
        rows = (cache.slots[self.page, None] * len(heads) + heads) * KEYS + self.place[:, None]
        self.rows = torch.from_numpy(rows).to(device)
        self.kept = [(int(end) - span.tokens, span) for end, span in zip(ends, spans, strict=True) if span.kept]
        if cache.compiled:
            self.pages = torch.from_numpy(pages * cache.keys.stride(1))
            self.table = torch.from_numpy(table)
            self.seen = self.positions + 1
        self.slots = [[int(cache.slots[page]) for page in span.pages] for span in self.longer]


class _Singles:
    """The pages of requests with one token each.

    slots: the number of the first slots that are theirs, P; or the slots themselves [P]. owner: [P], the request of
    each. hidden: [P, 1, 1, KEYS], -inf behind a request's token, else 0. of_request: the number of each request's J-th
    page among the P, [J, N]; P itself where it has fewer. order, bounds: the same as one list [P], and where each
    request's part of it starts [N].
    """

    def __init__(self, spans: Sequence[Span], cache: Cache) -> None:
        counts = np.array([span.start // KEYS + 1 for span in spans])
        pages = np.concatenate([np.asarray(span.pages[:count]) for span, count in zip(spans, counts, strict=True)])
        total, device = len(pages), cache.keys.device
        starts = np.cumsum(counts) - counts
        owner = np.repeat(np.arange(len(spans)), counts)
        position = np.arange(total) - starts[owner]  # of each page in its request
        # the position of each page's first key, less than that of the request's token by at most `last`
        last = np.array([span.start for span in spans])[owner] - KEYS * position
        order = np.arange(total)
        self.apart = not cache.bring_together(pages.tolist())
        if self.apart:
            self.slots = torch.from_numpy(cache.slots[pages]).to(device)
        else:
            order = cache.slots[pages]
            by_slot = np.empty_like(order)
            by_slot[order] = np.arange(total)
            owner, last = owner[by_slot], last[by_slot]
        table = np.full((counts.max(), len(spans)), total)
        table[position, np.repeat(np.arange(len(spans)), counts)] = order
        self.total = total
        self.owner, self.order, self.bounds, self.of_request = (
            torch.from_numpy(numbers).to(device) for numbers in (owner, order, starts, table)
        )
        unseen = torch.from_numpy(np.arange(KEYS) > last[:, None]).to(device)
        dtype = wide(cache.keys.dtype)
        self.bias = torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, -torch.inf)
        self.bias = self.bias.view(-1, 1, 1, KEYS)
        heads, width = cache.keys.shape[2], cache.keys.shape[4]
        rows = queries_of_block(cache.shared) * cache.shared
        # Rows of zeros fill up blocks of queries and of weights; the others are written anew in each layer.
        self.queries = torch.zeros(total, heads, rows, width, dtype=dtype, device=device)
        self.weights = torch.zeros(total, heads, rows, KEYS, dtype=dtype, device=device)
        # Behind the last page is one that no query sees, for requests with fewer pages than others.
        self.tops = torch.full((total + 1, heads, cache.shared), -torch.inf, dtype=dtype, device=device)


class Cache:
    """Pages of KEYS tokens: keys and values [L, slots, n, KEYS, d], where `slots` says which page is at which, and on
    the host routes [pages, KEYS, L, K]. L: layers of this rank. Of prompts that are scored also what the LM head takes,
    so that one whose start is found again can be scored."""

    def __init__(self, cfg: ModelConfig, layers: int, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (layers, pages, cfg.num_kv_heads, KEYS, cfg.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.shared = cfg.num_heads // cfg.num_kv_heads
        self.slots, self._page = np.arange(pages), np.arange(pages)  # of each page, and the page of each slot
        self.compiled = compiles(self.keys)  # pages are read in place, wherever they are
        self.hidden: dict[int, Tensor] = {}  # of each page that has it, [KEYS, H]
        self.routes: npt.NDArray[np.uint16] = np.zeros((pages, KEYS, layers, cfg.experts_per_token), dtype=np.uint16)

    def clear(self, pages: Sequence[int]) -> None:
        """Before a request's first use of pages: what another left there need not be finite, and zero times it is not
        zero."""
        if pages and not self.compiled:
            slots = torch.from_numpy(self.slots[pages]).to(self.keys.device)
            for stored in (self.keys, self.values):
                stored.index_fill_(1, slots, 0)
        for page in pages:
            self.hidden.pop(page, None)

    def copy(self, pages: Sequence[tuple[int, int, int]]) -> None:
        """Copy keys, values and routes. pages: from which, to which, and how many first tokens of each."""
        if not pages:
            return
        from_, to, tokens = (np.array(column) for column in zip(*pages, strict=True))
        for here, most in ((tokens == KEYS, KEYS), (tokens < KEYS, int(tokens[tokens < KEYS].max(initial=0)))):
            if here.any():
                self.routes[to[here], :most] = self.routes[from_[here], :most]
                a, b = (torch.from_numpy(self.slots[part[here]]).to(self.keys.device) for part in (from_, to))
                for stored in (self.keys, self.values):
                    stored[:, b, :, :most] = stored[:, a, :, :most]

    def bring_together(self, pages: Sequence[int]) -> bool:
        """Move pages to the first slots, in any order. Nothing happens, and False is returned, where one is listed
        twice."""
        wanted = set(pages)
        if len(wanted) < len(pages):
            return False
        total = len(pages)
        holes = [slot for slot, page in enumerate(self._page[:total].tolist()) if page not in wanted]
        if holes:
            slots = self.slots[pages]
            from_ = slots[slots >= total]
            to, a, b = np.array(holes), self._page[holes], self._page[from_]
            self._page[to], self._page[from_] = b, a
            self.slots[b], self.slots[a] = to, from_
            there, here = (torch.from_numpy(np.concatenate(both)) for both in ((to, from_), (from_, to)))
            there, here = there.to(self.keys.device), here.to(self.keys.device)
            for stored in (*self.keys, *self.values):
                stored.index_copy_(0, there, stored.index_select(0, here))
        return True

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Store the tokens' keys and values, then attend. q: [T, h, d]; k, v: [T, n, d] -> [T, h, d]."""
        keys, values = self.keys[layer], self.values[layer]
        if self.compiled:
            compiled.store(k, v, layout.rows, keys, values)
            sizes = KEYS, (keys.stride(1), keys.stride(2))
            return compiled.attend(q, keys, values, layout.pages, layout.table, layout.seen, *sizes)
        rows = layout.rows.flatten()
        keys.view(-1, k.shape[2]).index_copy_(0, rows, k.reshape(-1, k.shape[2]))
        values.view(-1, k.shape[2]).index_copy_(0, rows, v.reshape(-1, k.shape[2]))
        q_Tnrd, parts = q.unflatten(1, (k.shape[1], -1)), []
        if layout.one is not None:
            parts.append(_attend_singles(q_Tnrd[: layout.singles], keys, values, layout.one))
        first, longer = layout.singles, [*zip(layout.longer, layout.slots, strict=True)]
        if longer and all(span.start == 0 and span.tokens <= KEYS for span in layout.longer):
            lengths = [span.tokens for span in layout.longer]
            parts.append(_attend_starts(q_Tnrd[first:], k[first:], v[first:], lengths))
            longer = []
        for span, slots in longer:
            seen = slots[: (span.start + span.tokens - 1) // KEYS + 1]
            of_span = q_Tnrd[first : first + span.tokens]
            parts.append(attend(of_span, [keys[slot] for slot in seen], [values[slot] for slot in seen], span.start))
            first += span.tokens
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).flatten(1, 2)

    def keep_hidden(self, hidden: Tensor, layout: Layout) -> None:
        """hidden: [T, H], of the step's tokens, normed."""
        for at, span in layout.kept:
            start, end = span.start, span.start + span.kept
            for number in range(start // KEYS, -(-end // KEYS)):
                first, last = max(start, number * KEYS), min(end, (number + 1) * KEYS)
                page = self.hidden.setdefault(span.pages[number], hidden.new_zeros(KEYS, hidden.shape[1]))
                page[first % KEYS : first % KEYS + last - first] = hidden[at + first - start : at + last - start]

    def hidden_of(self, pages: Sequence[int], start: int, end: int) -> Tensor:
        """[end - start, H] of a request's tokens. pages: of the request from position 0."""
        first, last = start // KEYS, -(-end // KEYS)
        found = torch.cat([self.hidden[page] for page in pages[first:last]])
        return found[start - first * KEYS : end - first * KEYS]

    def keep_routes(self, routes: Tensor, layout: Layout) -> None:
        """routes: [L, T, K] int64, of the step's tokens."""
        self.routes[layout.page, layout.place] = routes.transpose(0, 1).cpu().numpy()

    def routes_of(self, pages: Sequence[int], tokens: int) -> npt.NDArray[np.uint16]:
        """[tokens, L, K] of a request's first tokens."""
        if tokens <= KEYS:
            return self.routes[pages[0], :tokens].copy()
        needed = list(pages[: -(-tokens // KEYS)])
        found: npt.NDArray[np.uint16] = self.routes[needed].reshape(-1, *self.routes.shape[2:])[:tokens]
        return found


def _attend_starts(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """The first tokens of requests, at most KEYS of each. q: [T, n, r, d]; k, v: [T, n, d] -> [T, n, r, d]."""
    y = torch.empty_like(q)
    for some in short_documents(lengths, q.shape[1] * q.shape[2], q.device):
        found = attend_short(some.fill(q), some.fill(k), some.fill(v))
        y.index_copy_(0, some.tokens, some.take(found))
    return y


def _attend_singles(q: Tensor, keys: Tensor, values: Tensor, one: _Singles) -> Tensor:
    """q: [N, n, r, d]; keys, values: of a layer [slots, n, KEYS, d] -> [N, n, r, d]."""
    requests, heads, shared, width = q.shape
    dtype, pages = one.bias.dtype, one.total
    if one.apart:
        k, v = (x.index_select(0, one.slots).to(dtype).flatten(0, 1) for x in (keys, values))
    else:
        k, v = (x[:pages].to(dtype).flatten(0, 1) for x in (keys, values))
    torch.mul(q.to(dtype).index_select(0, one.owner), width**-0.5, out=one.queries[:, :, :shared])
    scores = torch.bmm(one.queries.flatten(0, 1), k.mT).view(pages, heads, -1, KEYS)[:, :, :shared] + one.bias
    torch.amax(scores, -1, out=one.tops[:pages])
    top = one.tops.index_select(0, one.of_request.flatten()).view(-1, requests, heads * shared).amax(0)
    weights = scores.sub_(top.index_select(0, one.owner).view(pages, heads, shared, 1)).exp_()
    one.weights[:, :, :shared] = weights
    parts = torch.bmm(one.weights.flatten(0, 1), v).view(pages, -1)
    total, y = (  # each request's pages in the order of their positions
        F.embedding_bag(one.order, x, one.bounds, mode="sum").view(requests, heads, -1, x.shape[1] // heads // rows)
        for x, rows in ((weights.sum(-1).view(pages, -1), shared), (parts, one.weights.shape[2]))
    )
    return (y[:, :, :shared] / total).to(keys.dtype)
