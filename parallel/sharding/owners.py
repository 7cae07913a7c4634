"""Work on whole matrices whose weights are sharded: each is assembled on one rank, its owner, and the result is sharded
again.

Every rank makes the same plan, once and without communication, from the placements of the weights. The owner of a
matrix is one of the ranks that hold a part of it, in any replica: each matrix is worked on once, and replicas get the
same bits. Work is balanced by its cost. A matrix that one rank alone holds is not sent.

Legend: stack: matrices of one shape in one weight, [number, rows, columns].
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from parallel.dispatch.collectives import start_all_to_all
from parallel.torch_private import dtensor_regions


@dataclass(frozen=True)
class Stack:
    """The matrices in the last two dimensions of a weight; of a weight with two dimensions, the one in `rows`."""

    weight: Tensor
    rows: slice

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of each."""
        return self.rows.stop - self.rows.start, self.weight.shape[-1]


@dataclass(frozen=True)
class Part:
    """A rank's part of a stack: some rows and columns of each matrix in `index`."""

    index: slice
    rows: slice
    columns: slice

    @property
    def matrix(self) -> tuple[int, int]:
        return _length(self.rows), _length(self.columns)


@dataclass(frozen=True)
class Run:
    """Neighbours in a stack that have one owner, a rank of the group.

    sources: what ranks of the owner's replica hold of them, each element once; targets: the same of all replicas.
    """

    owner: int
    index: slice
    sources: tuple[tuple[int, Part], ...]
    targets: tuple[tuple[int, Part], ...]


@dataclass(frozen=True)
class Job:
    """Matrices of stack number `stack`, in which this rank holds `part`.

    matrix: rows and columns of each, whole. runs: all of them, in order. here: the part in this rank's own tensor, as
    slices of its matrices and of their rows.
    """

    stack: int
    matrix: tuple[int, int]
    part: Part
    runs: tuple[Run, ...]
    here: tuple[slice, slice]

    def view(self, held: Tensor) -> Tensor:
        """The part, [number, rows, columns], of a contiguous tensor laid out as what this rank holds of the weight."""
        return held.view(-1, *held.shape[-2:])[self.here]

    def place(self, run: Run) -> slice:
        """The place of `run` in this rank's part."""
        return slice(run.index.start - self.part.index.start, run.index.stop - self.part.index.start)


class Bucket:
    """Jobs that are done together, with one exchange before and one after.

    group None: this rank holds all of them whole and alone, and nothing is sent.
    """

    def __init__(self, jobs: Sequence[Job], group: dist.ProcessGroup | None) -> None:
        self.jobs, self.group = list(jobs), group
        if group is None:
            return
        rank, ranks = dist.get_rank(group), dist.get_world_size(group)
        # For each rank, in the order in which tensors travel: what this rank's parts give to matrices that it owns, and
        # what it gives to those that this rank owns.
        self._given: list[list[tuple[int, slice]]] = [[] for _ in range(ranks)]
        self._taken: list[list[tuple[int, Part]]] = [[] for _ in range(ranks)]
        # The way back: what this rank owes to each, and what each owes to it.
        self._owed: list[list[tuple[int, Part]]] = [[] for _ in range(ranks)]
        self._due: list[list[tuple[int, slice]]] = [[] for _ in range(ranks)]
        self._owned: list[tuple[int, int, int]] = []  # shapes of the whole matrices
        for number, job in enumerate(self.jobs):
            for run in job.runs:
                if any(source == rank for source, _ in run.sources):
                    self._given[run.owner].append((number, job.place(run)))
                self._due[run.owner].append((number, job.place(run)))
                if run.owner == rank:
                    for lists, ends in ((self._taken, run.sources), (self._owed, run.targets)):
                        for other, part in ends:
                            lists[other].append((len(self._owned), part))
                    self._owned.append((_length(run.index), *job.matrix))

    def whole(self, parts: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """The matrices that this rank owns, whole, from the ranks' parts of every job. Collective.

        parts: [number, rows, columns], one for each job; like: of their dtype and device, as there may be none. Returns
        stacks of such matrices.
        """
        if self.group is None:
            return list(parts)
        given = [[parts[number][place] for number, place in of_rank] for of_rank in self._given]
        shapes = [[(self._owned[number][0], *part.matrix) for number, part in of_rank] for of_rank in self._taken]
        wholes = [like.new_empty(shape) for shape in self._owned]
        for of_rank, tensors in zip(self._taken, _exchange(given, shapes, like, self.group), strict=True):
            for (number, part), tensor in zip(of_rank, tensors, strict=True):
                wholes[number][:, part.rows, part.columns] = tensor
        return wholes

    def parts(self, wholes: Sequence[Tensor], like: Tensor) -> list[Tensor]:
        """The reverse of `whole`: this rank's part of every job. Collective."""
        if self.group is None:
            return list(wholes)
        owed = [[wholes[number][:, part.rows, part.columns] for number, part in of_rank] for of_rank in self._owed]
        matrices = [job.part.matrix for job in self.jobs]
        shapes = [[(_length(place), *matrices[number]) for number, place in of_rank] for of_rank in self._due]
        parts = [like.new_empty(_length(job.part.index), *job.part.matrix) for job in self.jobs]
        for of_rank, tensors in zip(self._due, _exchange(owed, shapes, like, self.group), strict=True):
            for (number, place), tensor in zip(of_rank, tensors, strict=True):
                parts[number][place] = tensor
        return parts


def plan(
    stacks: Sequence[Stack],
    cost: Callable[[int, int], float],
    group: dist.ProcessGroup | None,
    *,
    elements: int,
    elements_alone: int,
) -> list[Bucket]:
    """Divide the matrices of `stacks` among the ranks of `group`, which are those that hold any part of them.

    cost: of the work on one matrix of so many rows and columns. elements: that a rank sends in one bucket, about;
    elements_alone: that are worked on at one time where nothing is sent. Not collective: all ranks make one plan if
    they give the same stacks in the same order. group None: this rank is alone.
    Raises ValueError for a weight whose mesh is not over the ranks of the group.
    """
    if group is not None:
        ranks = {rank: place for place, rank in enumerate(dist.get_process_group_ranks(group))}
    else:
        ranks = {dist.get_rank() if dist.is_initialized() else 0: 0}
    me = dist.get_rank(group) if group else 0
    load = dict.fromkeys(ranks.values(), 0.0)
    alone: list[Job] = []
    shared: list[tuple[list[Job], int]] = []  # with the elements of one rank
    for number in sorted(range(len(stacks)), key=lambda number: -cost(*stacks[number].matrix)):  # large ones first
        stack, cells = stacks[number], _cells(stacks[number], ranks)
        single = all(len(holders) == 1 for holders in cells.values())
        largest = max(math.prod(holder.part.matrix) for holders in cells.values() for holder in holders)
        at_once = max(1, (elements_alone if single else elements) // largest)
        longest = max(stop - start for start, stop in cells)
        for first in range(0, longest, at_once):
            jobs = []
            for (start, stop), holders in cells.items():
                index = slice(min(start + first, stop), min(start + first + at_once, stop))
                counts = _divide(_length(index), [holder.rank for holder in holders], cost(*stack.matrix), load)
                mine = next((holder for holder in holders if holder.rank == me), None)
                if mine is not None and _length(index):
                    part = Part(index, mine.part.rows, mine.part.columns)
                    here = (
                        slice(index.start - start, index.stop - start),
                        slice(mine.first_row, mine.first_row + _length(part.rows)),
                    )
                    jobs.append(Job(number, stack.matrix, part, tuple(_runs(index, counts, holders)), here))
            if single:
                alone += jobs
            else:
                shared.append((jobs, min(at_once, longest - first) * largest))
    buckets, size = [Bucket([job], None) for job in alone], 0
    jobs = []
    for more, count in shared:
        if size and size + count > elements:
            buckets.append(Bucket(jobs, group))
            jobs, size = [], 0
        jobs, size = jobs + more, size + count
    return buckets + ([Bucket(jobs, group)] if size else [])


@dataclass(frozen=True)
class _Holder:
    rank: int  # of the group
    replica: tuple[int, ...]
    part: Part
    first_row: int  # of the part, in what the rank holds of the weight


def _cells(stack: Stack, ranks: dict[int, int]) -> dict[tuple[int, int], list[_Holder]]:
    """The ranks that hold something of a stack, by the (first, end) of the matrices that they share."""
    weight, cells = stack.weight, defaultdict[tuple[int, int], list[_Holder]](list)
    if isinstance(weight, DTensor):
        held = dtensor_regions(weight)
        if {rank for rank, *_ in held} != ranks.keys():
            raise ValueError(f"a weight on the ranks {[rank for rank, *_ in held]} and a group of {list(ranks)}")
    else:  # replicas
        held = [(rank, (rank,), tuple(slice(0, size) for size in weight.shape)) for rank in ranks]
    per_row = math.prod(weight.shape[1:-2])  # matrices in one row of the first dimension
    for rank, replica, region in held:
        index = slice(0, 1) if weight.ndim == 2 else slice(region[0].start * per_row, region[0].stop * per_row)
        rows = slice(
            max(region[-2].start, stack.rows.start) - stack.rows.start,
            min(region[-2].stop, stack.rows.stop) - stack.rows.start,
        )
        if min(_length(index), _length(rows), _length(region[-1])) > 0:
            first_row = rows.start + stack.rows.start - region[-2].start
            holder = _Holder(ranks[rank], replica, Part(index, rows, region[-1]), first_row)
            cells[index.start, index.stop].append(holder)
    return cells


def _divide(count: int, ranks: Sequence[int], cost: float, load: dict[int, float]) -> list[int]:
    """The number of `count` equal pieces of work that each of `ranks` gets, by their load, which grows."""
    least = [(load[rank], place) for place, rank in enumerate(ranks)]
    heapq.heapify(least)
    counts = [0] * len(ranks)
    for _ in range(count):
        of_rank, place = least[0]
        counts[place] += 1
        heapq.heapreplace(least, (of_rank + cost, place))
    for of_rank, place in least:
        load[ranks[place]] = of_rank
    return counts


def _runs(index: slice, counts: Sequence[int], holders: Sequence[_Holder]) -> Iterator[Run]:
    replicas = defaultdict[tuple[int, ...], list[tuple[int, Part]]](list)
    for holder in holders:
        replicas[holder.replica].append((holder.rank, holder.part))
    sources = {replica: tuple(ends) for replica, ends in replicas.items()}
    targets = tuple(end for ends in sources.values() for end in ends)
    first = index.start
    for holder, count in zip(holders, counts, strict=True):
        if count:
            yield Run(holder.rank, slice(first, first + count), sources[holder.replica], targets)
            first += count


def _exchange(
    given: Sequence[Sequence[Tensor]],
    shapes: Sequence[Sequence[tuple[int, ...]]],
    like: Tensor,
    group: dist.ProcessGroup,
) -> list[list[Tensor]]:
    """Tensors for each rank -> the tensors from each rank, of `shapes`, in one all-to-all."""
    send = [sum(tensor.numel() for tensor in of_rank) for of_rank in given]
    receive = [[math.prod(shape) for shape in of_rank] for of_rank in shapes]
    flat = [tensor.reshape(-1) for of_rank in given for tensor in of_rank]
    packed = torch.cat(flat) if flat else like.new_empty(0)
    result = start_all_to_all(packed, group, send, [sum(sizes) for sizes in receive]).wait()
    pieces = iter(result.split([size for sizes in receive for size in sizes]))
    return [[next(pieces).view(shape) for shape in of_rank] for of_rank in shapes]


def _length(part: slice) -> int:
    return part.stop - part.start
