"""Keys, values and routes of all requests in pages, and attention over them.

The arithmetic is that of `trainer.model.exact.attention`: a page is a block of keys. Requests that add one token are
attended together, each of their pages as one product; a longer piece of a prompt is attended by itself.

Legend: T tokens of a step · N requests with one token · P pages of theirs, each request's in order · n kv heads ·
r query heads of each · d head dimension · R rows of a block of queries · H hidden size · L layers · K experts of a
token.
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
from trainer.model.exact.attention import attend, queries_of_block
from trainer.model.exact.blocks import KEYS
from trainer.model.numerics import wide


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one request in a step. start: position of the first. pages: of the request from position 0,
    at least as far as the last of these tokens."""

    start: int
    tokens: int
    pages: Sequence[int]


class Layout:
    """The places of the tokens of a step. spans: those of one token first, as `singles` counts them."""

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        self.singles = sum(span.tokens == 1 for span in spans)
        if any(span.tokens > 1 for span in spans[: self.singles]):
            raise ValueError("spans of one token come first")
        self.longer = spans[self.singles :]
        positions = [span.start + more for span in spans for more in range(span.tokens)]
        page = [span.pages[(span.start + more) // KEYS] for span in spans for more in range(span.tokens)]
        self.positions = torch.tensor(positions, device=device)
        self.page = torch.tensor(page, device=device)
        self.place = self.positions % KEYS
        self.one = _Singles(spans[: self.singles], device) if self.singles else None


class _Singles:
    """The pages of requests with one token each, request by request.

    pages, owner: [P]. unseen: [P, 1, 1, KEYS], True behind a request's token. of_request: the number of each request's
    J-th page among the P, [J, N]; P itself where it has fewer.
    """

    def __init__(self, spans: Sequence[Span], device: torch.device) -> None:
        counts = [span.start // KEYS + 1 for span in spans]
        pages = [page for span, count in zip(spans, counts, strict=True) for page in span.pages[:count]]
        owner = [number for number, count in enumerate(counts) for _ in range(count)]
        # the position of each page's first key, less than that of the request's token by at most `last`
        last = [span.start - KEYS * j for span, count in zip(spans, counts, strict=True) for j in range(count)]
        table, at = np.full((max(counts), len(spans)), len(pages)), 0
        for number, count in enumerate(counts):
            table[:count, number] = np.arange(at, at + count)
            at += count
        self.pages, self.owner = torch.tensor(pages, device=device), torch.tensor(owner, device=device)
        key = torch.arange(KEYS, device=device)
        self.unseen = (key > torch.tensor(last, device=device).unsqueeze(-1)).view(-1, 1, 1, KEYS)
        self.of_request = torch.from_numpy(table).to(device)


class Cache:
    """Pages of KEYS tokens: keys and values [L, pages, n, KEYS, d], what the LM head takes [pages, KEYS, H], and on the
    host routes [pages, KEYS, L, K]. L: layers of this rank. With what the LM head takes, which is small beside keys and
    values, a prompt whose start is found again can be scored."""

    def __init__(self, cfg: ModelConfig, layers: int, pages: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (layers, pages, cfg.num_kv_heads, KEYS, cfg.head_dim)
        self.keys, self.values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        self.hidden = torch.zeros(pages, KEYS, cfg.hidden_size, dtype=dtype, device=device)
        self.routes: npt.NDArray[np.uint16] = np.zeros((pages, KEYS, layers, cfg.experts_per_token), dtype=np.uint16)

    def clear(self, pages: Sequence[int]) -> None:
        """Before a request's first use of pages: what another left there need not be finite, and zero times it is not
        zero."""
        if pages:
            self.values.index_fill_(1, torch.tensor(pages, device=self.values.device), 0)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
        """Store the tokens' keys and values, then attend. q: [T, h, d]; k, v: [T, n, d] -> [T, h, d]."""
        keys, values = self.keys[layer], self.values[layer]
        keys[layout.page, :, layout.place] = k
        values[layout.page, :, layout.place] = v
        q_Tnrd, parts = q.unflatten(1, (k.shape[1], -1)), []
        if layout.one is not None:
            parts.append(_attend_singles(q_Tnrd[: layout.singles], keys, values, layout.one))
        first = layout.singles
        for span in layout.longer:
            pages = span.pages[: (span.start + span.tokens - 1) // KEYS + 1]
            of_span = q_Tnrd[first : first + span.tokens]
            parts.append(attend(of_span, [keys[p] for p in pages], [values[p] for p in pages], span.start))
            first += span.tokens
        return torch.cat(parts).flatten(1, 2)

    def keep_hidden(self, hidden: Tensor, layout: Layout) -> None:
        """hidden: [T, H], of the step's tokens, normed."""
        self.hidden[layout.page, layout.place] = hidden

    def hidden_of(self, pages: Sequence[int], start: int, end: int) -> Tensor:
        """[end - start, H] of a request's tokens. pages: of the request from position 0."""
        position = torch.arange(start, end, device=self.hidden.device)
        page = torch.tensor(pages, device=self.hidden.device)[position // KEYS]
        return self.hidden[page, position % KEYS]

    def keep_routes(self, routes: Tensor, layout: Layout) -> None:
        """routes: [L, T, K] int64, of the step's tokens."""
        found = routes.transpose(0, 1).cpu().numpy().astype(np.uint16)
        self.routes[layout.page.cpu().numpy(), layout.place.cpu().numpy()] = found

    def routes_of(self, pages: Sequence[int], tokens: int) -> npt.NDArray[np.uint16]:
        """[tokens, L, K] of a request's first tokens."""
        needed = list(pages[: -(-tokens // KEYS)])
        found: npt.NDArray[np.uint16] = self.routes[needed].reshape(-1, *self.routes.shape[2:])[:tokens]
        return found


def _attend_singles(q: Tensor, keys: Tensor, values: Tensor, one: _Singles) -> Tensor:
    """q: [N, n, r, d]; keys, values: of all pages [., n, KEYS, d] -> [N, n, r, d]."""
    # Behind the last page is one without weight, for requests with fewer pages than others.
    _, heads, shared, width = q.shape
    rows, dtype, pages = queries_of_block(shared) * shared, wide(q.dtype), len(one.pages)
    padded = F.pad(q.to(dtype) * width**-0.5, (0, 0, 0, rows - shared))
    q_PnRd = padded.index_select(0, one.owner)
    k, v = (x.index_select(0, one.pages).to(dtype).flatten(0, 1) for x in (keys, values))
    scores = torch.bmm(q_PnRd.flatten(0, 1), k.mT).view(pages, heads, rows, KEYS)[:, :, :shared]
    scores = scores.masked_fill(one.unseen, -torch.inf)
    tops = scores.new_full((pages + 1, heads, shared), -torch.inf)
    torch.amax(scores, -1, out=tops[:pages])
    top = tops[one.of_request].amax(0)
    weights = scores.sub_(top.index_select(0, one.owner).unsqueeze(-1)).exp_()
    sums, parts = weights.new_zeros(pages + 1, heads, shared, 1), weights.new_zeros(pages + 1, heads, shared, width)
    torch.sum(weights, -1, keepdim=True, out=sums[:pages])
    found = torch.bmm(F.pad(weights, (0, 0, 0, rows - shared)).flatten(0, 1), v)
    parts[:pages] = found.view(pages, heads, rows, width)[:, :, :shared]
    total, y = sums.index_select(0, one.of_request[0]), parts.index_select(0, one.of_request[0])
    for next_pages in one.of_request[1:]:  # in the order of their positions
        total += sums.index_select(0, next_pages)
        y += parts.index_select(0, next_pages)
    return (y / total).to(keys.dtype)
