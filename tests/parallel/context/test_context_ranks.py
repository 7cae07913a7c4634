"""Context parallelism over 2, 3 and 4 gloo processes against attention over the whole sequence in one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from parallel.blocks import checkpoint_activations
from parallel.context.base import AttentionCore, Documents
from parallel.context.slices import Kind, divides, slices
from tests.distributed.pool import on_ranks
from tests.parallel.context.whole import CPU, Case, OfRank, Result, core_of, joined, reference, run, run_rank
from tests.trainer.model.tiny import assert_close
from trainer.model.attention import document_attention

BOUND = {torch.float32: 1e-6, torch.float64: 1e-12}
CASES = {
    "one document": Case((48,)),
    "odd": Case((41,)),
    "packed": Case((5, 1, 17, 2, 22)),
    "documents that end with the chunks of some numbers of ranks": Case((12, 12, 6, 18)),
    "short documents": Case((3,) * 11),
    "fewer tokens than chunks": Case((2, 3)),
    "equal heads": Case((20, 21), kv_heads=12),
    "one kv head": Case((7, 30), kv_heads=1),
}

LONG = Case((50_000, 1, 15_535), heads=4, kv_heads=2, head_dim=16)  # 65,536 tokens


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_that_share_a_sequence_compute_what_one_does(kind: Kind, ranks: int):
    shared = {name: case for name, case in CASES.items() if kind == "ring" or divides(case.heads, case.kv_heads, ranks)}
    asked = [(case, dtype) for case in shared.values() for dtype in BOUND]
    by_rank = on_ranks(ranks, run_rank, kind, asked, init=True)
    for number, (case, dtype) in enumerate(asked):
        found = joined(kind, case, [results[number] for results in by_rank])
        assert {part.dtype for part in found} == {dtype}
        assert_close(found._asdict(), reference(case)._asdict(), BOUND[dtype])


@pytest.mark.slow  # the same code as above; a minute of each kind and of the reference
@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_four_ranks_share_65536_tokens(kind: Kind, whole_of_64k: Result):
    by_rank = on_ranks(4, run_rank, kind, [(LONG, torch.float32)], init=True, timeout_s=900.0)
    found = joined(kind, LONG, [results[0] for results in by_rank])
    assert_close(found._asdict(), whole_of_64k._asdict(), 2e-6)


@pytest.fixture(scope="module")
def whole_of_64k() -> Result:
    return run(document_attention, LONG, LONG.inputs(torch.float32))


def sent(found: OfRank, where: str) -> int:
    return sum(call.sent for call in found.calls if call.where == where)


@pytest.mark.parametrize(("ranks", "kv_heads"), [(4, 12), (4, 4), (4, 2), (3, 1)])
def test_bytes_of_ulysses(ranks: int, kv_heads: int):
    case = Case((13, 35), kv_heads=kv_heads)
    q, k, v, o = (x.nbytes for x in case.inputs(torch.float32))
    bound = (ranks - 1) / ranks**2 * (q + o + (k + v) * max(1, ranks // kv_heads))
    for (found,) in on_ranks(ranks, run_rank, "ulysses", [(case, torch.float32)], init=True):
        assert [call.op for call in found.calls] == ["all_to_all"] * 4
        assert sent(found, "forward") == sent(found, "backward") == bound


def test_bytes_of_a_ring():
    """One document: keys go to all ranks and their gradients return, those of late pieces to lower ranks only."""
    ranks, case = 4, Case((48,))
    by_rank = [found for (found,) in on_ranks(ranks, run_rank, "ring", [(case, torch.bfloat16)], init=True)]
    pair = 2 * case.kv_heads * case.head_dim * 48 // ranks * torch.bfloat16.itemsize  # k and v of one rank
    for found in by_rank:
        assert sent(found, "forward") <= (ranks - 1) * pair
        assert sent(found, "backward") <= (ranks - 1) * (pair + 2 * pair)
    hops = sum((ranks - 1) / 2 + rank / 2 for rank in range(ranks))
    assert sum(sent(found, "forward") for found in by_rank) == hops * pair
    assert sum(sent(found, "backward") for found in by_rank) == hops * (pair + 2 * pair)


def tokens_sent(case: Case, ranks: int) -> int:
    """Hops of all keys, found key by key: the nearer way to the farthest rank that has a later token of the document.

    The keys of one document in one piece have the same ranks to go to, so no plan by pieces sends fewer.
    """
    rank_of = {
        position: r for r, pieces in enumerate(slices("ring", case.tokens, ranks)) for p in pieces for position in p
    }
    total = end = 0
    for length in case.lengths:
        end += length
        for position in range(end - length, end):
            away = [rank_of[later] - rank_of[position] for later in range(position + 1, end)]
            total += min(max([way * hops % ranks for hops in away], default=0) for way in (-1, 1))
    return total


@pytest.mark.parametrize(
    ("lengths", "tokens"),
    [
        ((6,) * 8, [0, 0, 0, 0]),  # each piece is a document
        ((12,) * 4, [6, 6, 6, 6]),  # pieces in pairs: from the earlier to the neighbour
        ((3, 17, 1, 27), None),
        ((22, 7, 19), None),
    ],
)
def test_a_ring_sends_only_keys_that_documents_of_others_need(lengths, tokens):
    case, row = Case(lengths), 2 * 2 * 8 * torch.float32.itemsize
    by_rank = [found for (found,) in on_ranks(4, run_rank, "ring", [(case, torch.float32)], init=True)]
    if tokens:
        assert [sent(found, "forward") / row for found in by_rank] == tokens
        assert [sent(found, "backward") / row for found in by_rank] == [2 * n for n in tokens]
    assert sum(sent(found, "forward") for found in by_rank) / row == tokens_sent(case, 4)


def misuse(kind: Kind) -> list[str]:
    core, messages = core_of(kind), []
    for heads, kv_heads, own in ((12, 2, 5), (9, 3, 4)):
        q, k = torch.zeros(own, heads, 8), torch.zeros(own, kv_heads, 8)
        if kind == "ulysses" or own == 5:
            with pytest.raises(ValueError) as caught:
                core(q, k, k, Documents.of_lengths([8], CPU))
            messages.append(str(caught.value))
    return messages


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_what_is_not_this_ranks_raises_on_every_rank(kind):
    for messages in on_ranks(2, misuse, kind, init=True):
        assert messages[0] == "this rank has 5 tokens, but 4 of the 8 are its own"
        assert messages[1:] == (["2 ranks cannot share 9 query heads of 3 kv heads"] if kind == "ulysses" else [])


class Attends(torch.nn.Module):
    def __init__(self, core: AttentionCore) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: Tensor, docs: Documents) -> Tensor:
        return self.core(x, x, x, docs) * 2


def two_under_way(kind: Kind, recompute: str) -> list[Tensor | None]:
    """Gradients of two layers for two sequences that are both computed forward before either is backward."""
    core = core_of(kind)
    layers = [Attends(core), Attends(core)]
    checkpoint_activations(layers, recompute)
    source, inputs, results = torch.Generator().manual_seed(0), [], []
    for lengths in ([12], [5, 7]):
        x = torch.randn(6, 4, 8, generator=source).requires_grad_()
        inputs.append(x)
        docs = Documents.of_lengths(lengths, CPU)
        results.append(layers[1](layers[0](x, docs), docs))
    for result in results:
        result.sum().backward()
    return [x.grad for x in inputs]


@pytest.mark.parametrize("kind", ["ulysses", "ring"])
def test_passes_are_recomputed_after_other_documents_came(kind):
    """As in a pipeline. Selective recomputation fails where the second pass does not do the same as the first."""
    kept = on_ranks(2, two_under_way, kind, "none", init=True)
    for recompute in ("selective", "full"):
        for found, expected in zip(on_ranks(2, two_under_way, kind, recompute, init=True), kept, strict=True):
            assert all(map(torch.equal, found, expected))
