"""Counts of experts that are used together, and cuts of the experts that separate a token's two best ones.

In a grouped router that selects one expert a group, an expanded model uses both of a token's best experts if they are
in different parts. With each token an edge between its two best experts, a good cut is a maximum cut of that graph into
parts of one size. No torch here.

Legend: E experts · P parts of E/P experts · L layers.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainer.storage.atomic import atomic_file
from trainer.storage.lock import LockedError
from trainer.weights.hf_config import FUNCTION
from trainer.weights.hf_files import HuggingFaceError
from trainer.weights.hf_survey import SourceModel
from trainer.weights.upcycle.errors import UpcycleError

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Cut = list[list[int]]  # P sorted lists of experts, in the order of their first ones

STARTS = 16  # random cuts that the search starts from
# Weight, in a further cut, of pairs that earlier ones separate: the expanded model's output is the sum over all groups,
# so a token's second expert contributes if any cut separates the two.
AGAIN = 0.25


@dataclass(frozen=True)
class Counts:
    """Counts of each expert as a token's best, and of each pair as its best two, on calibration text."""

    top1: Ints  # [L, E] number of tokens whose best expert this is
    pairs: Ints  # [L, E, E] number of tokens whose two best experts these are, in either order; lower index first
    tokens: int
    model: str  # `model_digest` of the model that was counted

    def save(self, path: Path) -> None:
        """Write one file, atomically. Raises UpcycleError if it cannot be written."""
        facts = json.dumps({"tokens": self.tokens, "model": self.model})
        try:
            with atomic_file(path) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, top1=self.top1, pairs=self.pairs, facts=np.array(facts))
        except LockedError as error:
            raise UpcycleError(
                f"{path} is being written by another process; wait for it to end",
                where=str(path),
                allowed="another file",
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise UpcycleError(
                f"{path} cannot be written: {reason}",
                where=str(path),
                value=reason,
                allowed="a path that can be written",
            ) from error

    @classmethod
    def load(cls, path: Path, source: SourceModel) -> Counts:
        """Read the counts of `source`. Raises UpcycleError if the file cannot be read, or counts another model."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                top1, pairs = stored["top1"], stored["pairs"]
                facts = json.loads(str(stored["facts"]))
            counts = cls(top1, pairs, int(facts["tokens"]), str(facts["model"]))
        except OSError as error:
            reason = error.strerror or str(error)
            raise UpcycleError(
                f"{path} cannot be read: {reason}", where=str(path), value=reason, allowed="a readable file"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise UpcycleError(
                f"{path} does not hold counts of experts made by octavo upcycle --calibrate",
                where=str(path),
                allowed="a file that octavo upcycle --calibrate wrote",
            ) from error
        layers, experts = source.model.num_layers, source.model.num_experts
        if counts.model != model_digest(source) or counts.pairs.shape != (layers, experts, experts):
            raise UpcycleError(
                f"{path} counts the experts of a model other than {source.directory.path}; make it again with octavo "
                "upcycle --calibrate",
                where=str(path),
                allowed=f"counts of {source.directory.path}",
            )
        return counts


def model_digest(source: SourceModel) -> str:
    """SHA-256 of the configuration keys that define the model's function, and of all routers as they are stored.

    Raises HuggingFaceError if a router cannot be read.
    """
    digest = hashlib.sha256(repr([(key, getattr(source.model, key)) for key in FUNCTION]).encode())
    for piece in source.pieces:
        if piece.parameter.endswith("moe.router.weight"):
            stored = source.stored(piece)
            try:
                with open(stored.file, "rb") as file:
                    file.seek(stored.start)
                    digest.update(file.read(stored.nbytes))
            except OSError as error:
                raise HuggingFaceError(
                    f"{stored.file}: {stored.name} cannot be read: {error}",
                    where=str(stored.file),
                    value=stored.name,
                    allowed="a complete, readable file",
                ) from error
    return digest.hexdigest()


def survival(pairs_EE: Ints, *cuts: Cut) -> float:
    """Fraction of tokens whose two best experts are in different parts in at least one of `cuts`; 1 if no tokens."""
    kept = np.zeros(pairs_EE.shape, bool)
    for cut in cuts:
        kept |= _in_different_parts(_part_of(cut))
    total = int(pairs_EE.sum())
    return float(pairs_EE[kept].sum() / total) if total else 1.0


def expected_survival(experts: int, parts: int, cuts: int = 1) -> float:
    """Expected `survival` of random cuts: E/P - 1 of the E - 1 other experts are in the best expert's part."""
    return 1.0 - float((experts / parts - 1) / (experts - 1)) ** cuts


def best_cut(pairs_EE: npt.NDArray[np.number], parts: int, seed: int) -> Cut:
    """Cut the experts into `parts` parts of one size that separate the two best experts of as many tokens as possible.

    From each of STARTS random cuts, pairs of experts are exchanged as long as that helps (passes of Kernighan and Lin
    1970, which also go through worse cuts); the best result is taken. The same arguments give the same cut.

    Raises: ValueError if `parts` does not divide the number of experts.
    """
    experts = len(pairs_EE)
    if experts % parts:
        raise ValueError(f"{experts} experts cannot be cut into {parts} parts of one size")
    weights = pairs_EE.astype(np.float64)
    weights = weights + weights.T
    np.fill_diagonal(weights, 0.0)
    generator = np.random.default_rng(seed)
    best, least = np.empty(0, np.int64), np.inf
    for _ in range(STARTS):
        part_of = generator.permutation(np.repeat(np.arange(parts), experts // parts))
        while _improve(weights, part_of):
            pass
        inside = float(weights[~_in_different_parts(part_of)].sum())
        if inside < least:
            best, least = part_of, inside
    return _as_cut(best, parts)


def best_cuts(pairs_EE: Ints, parts: int, count: int, seed: int) -> list[Cut]:
    """`count` different good cuts that together separate the two best experts of most tokens.

    Raises: ValueError as `best_cut`, or if there are fewer different cuts.
    """
    cuts: list[Cut] = []
    together = np.ones(pairs_EE.shape, bool)
    for number in range(count):
        # Pairs that never occurred count a little: they decide between cuts that are equally good on the text.
        fresh = np.where(together, pairs_EE + 1e-3, 0.0)
        again = np.where(together, 0.0, pairs_EE)
        start = seed + 1000 * number
        tries = chain(
            (best_cut(fresh + weight * again, parts, start) for weight in (AGAIN, 0.0)),
            (_random_cut(len(pairs_EE), parts, start + n) for n in range(100)),
        )
        found = next((cut for cut in tries if cut not in cuts), None)
        if found is None:
            raise ValueError(f"{len(pairs_EE)} experts have fewer than {count} different cuts into {parts} parts")
        cuts.append(found)
        together &= ~_in_different_parts(_part_of(found))
    return cuts


def _random_cut(experts: int, parts: int, seed: int) -> Cut:
    return _as_cut(np.random.default_rng(seed).permutation(np.repeat(np.arange(parts), experts // parts)), parts)


def _as_cut(part_of: Ints, parts: int) -> Cut:
    return sorted(np.flatnonzero(part_of == part).tolist() for part in range(parts))


def _part_of(cut: Sequence[Sequence[int]]) -> Ints:
    parts = np.empty(sum(len(part) for part in cut), np.int64)
    for number, part in enumerate(cut):
        parts[list(part)] = number
    return parts


def _in_different_parts(part_of: Ints) -> npt.NDArray[np.bool_]:
    return part_of[:, None] != part_of[None, :]


def _improve(weights_EE: Floats, part_of: Ints) -> bool:
    """One pass: repeatedly exchange the pair of experts that gains most (or loses least), each expert once, and keep
    the exchanges up to the best cut. Changes `part_of` in place; returns False if no cut was better."""
    experts = np.arange(len(part_of))
    trial, free = part_of.copy(), np.ones(len(part_of), bool)
    to_part = np.stack([weights_EE[:, trial == part].sum(1) for part in range(int(trial.max()) + 1)], 1)  # [E, P]
    gained, best, kept = 0.0, 0.0, None
    for _ in range(len(part_of) // 2):
        moves = to_part[experts, trial][:, None] - to_part[:, trial]  # [u, v]: what u gains in v's part
        gains = moves + moves.T + 2 * weights_EE
        gains[~(free[:, None] & free[None, :] & _in_different_parts(trial))] = -np.inf
        u, v = np.unravel_index(int(gains.argmax()), gains.shape)
        if gains[u, v] == -np.inf:
            break
        gained += float(gains[u, v])
        p, q = trial[u], trial[v]
        to_part[:, p] += weights_EE[:, v] - weights_EE[:, u]
        to_part[:, q] += weights_EE[:, u] - weights_EE[:, v]
        trial[u], trial[v] = q, p
        free[[u, v]] = False
        if gained > best + 1e-9 * max(1.0, best):
            best, kept = gained, trial.copy()
    if kept is None:
        return False
    part_of[:] = kept
    return True
