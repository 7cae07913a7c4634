"""Reading random packs with their document boundaries: our reader beside Megatron-core's `GPTDataset`, and a bare copy.

One shard of int32 tokens in Megatron's format, documents of 1,111 tokens on average (geometric), in the page cache. All
arms read the same windows of 4,097 tokens in the same random order, in turns, on one thread:

- copy: `out[row] = tokens[start : start + 4097]` from the map into int64 rows: the limit, and no boundaries
- octavo: `IndexedTokens.windows` by the batch: int64 tokens and where documents start
- octavo, checked: `Shards.read`, what training calls: the same, and every id is in the vocabulary, every document
  starts with a prefix of its group, and prefix tokens are marked
- megatron: `GPTDataset[i]` with `reset_position_ids`: int64 tokens, labels, loss mask, and positions, 0 where a
  document starts
- megatron, core: what it calls inside for the tokens and their documents, cast to int64, and boundaries by comparing
  with the end-of-document token: the least that could be done with its code

Its document and shuffle indices are set to the order of the file and of the others, which is kind to it: with its own
shuffled documents each window comes from several places of the file.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from trainer.corpora.tokenize.write import builder
from trainer.data.shards.files import hash_shard, write_manifest
from trainer.data.shards.megatron_index import IndexedTokens
from trainer.data.shards.windows import Shards

SEQ_LEN, MEAN_DOCUMENT, VOCAB, EOD = 4096, 1111, 150_000, 0
PREFIXES = [[*range(1, 21)], [*range(30, 54)], [*range(60, 82)]]
BATCHES = (8, 64)
Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]  # windows -> tokens [n, S + 1], starts [n, S + 1]


def write_source(directory: Path, tokens: int) -> None:
    """A source of one shard of about so many tokens."""
    rng = np.random.default_rng(0)
    shard = builder(str(directory / "train-00000.bin"), np.dtype("<i4"))
    written = documents = 0
    while written < tokens:
        prefix = PREFIXES[rng.integers(len(PREFIXES))]
        body = rng.integers(100, VOCAB, rng.geometric(1 / (MEAN_DOCUMENT - len(prefix))))
        ids = np.concatenate([prefix, body, [EOD]]).astype(np.int32)
        shard.add_document(ids, [len(ids)])
        written += len(ids)
        documents += 1
    shard.finalize(str(directory / "train-00000.idx"))
    facts = {
        "name": "bench", "domain": "science", "tokenizer": {"vocab_size": VOCAB, "eos_id": EOD},
        "prefix": {"group": "science", "texts": [], "ids": PREFIXES}, "heldout": [],
    }  # fmt: skip
    stem = directory / "train-00000"
    shards = [{"stem": stem.name, "tokens": written, "documents": documents, "files": hash_shard(stem)}]
    write_manifest(directory, {**facts, "shards": shards})


def megatron_dataset(stem: Path, order: np.ndarray) -> Any:
    """Its GPTDataset over the shard: documents in the order of the file, samples in the given one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from megatron.core.datasets import helpers
        from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
        from megatron.core.datasets.indexed_dataset import IndexedDataset
        from megatron.core.datasets.utils import Split
    low = IndexedDataset(str(stem))
    tokenizer = SimpleNamespace(vocab_size=VOCAB, eod=EOD, pad=-1, unique_identifiers={})
    config = GPTDatasetConfig(
        random_seed=0, sequence_length=SEQ_LEN, tokenizer=tokenizer,
        reset_position_ids=True, reset_attention_mask=False, eod_mask_loss=False, create_attention_mask=False,
    )  # fmt: skip
    documents = np.arange(len(low), dtype=np.int32)
    dataset = GPTDataset(low, str(stem), documents, None, Split.train, config)
    tokens = int(low.sequence_lengths.sum())
    dataset.document_index = documents
    dataset.sample_index = helpers.build_sample_idx(low.sequence_lengths, documents, SEQ_LEN, 1, tokens)
    dataset.shuffle_index = order
    return dataset


def arms(directory: Path, order: np.ndarray) -> dict[str, Read]:
    """Each reads windows by their places in `order`."""
    stem, L = directory / "train-00000", SEQ_LEN + 1
    ours, checked, theirs = IndexedTokens(stem), Shards(directory), megatron_dataset(stem, order)
    flat = np.asarray(np.memmap(f"{stem}.bin", "<i4", mode="r"))

    def copy(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = np.empty((len(places), L), np.int64)
        for row, start in enumerate((order[places] * SEQ_LEN).tolist()):
            out[row] = flat[start : start + L]
        return out, np.empty((0, L))

    def octavo(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return ours.windows(order[places] * SEQ_LEN, L)

    def octavo_checked(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        windows = checked.read(order[places], SEQ_LEN)
        return windows.tokens_BL, windows.starts_BL

    def megatron(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        samples = [theirs[place] for place in places]
        tokens, positions = (np.stack([s[key].numpy() for s in samples]) for key in ("tokens", "position_ids"))
        return tokens, positions == 0

    def megatron_core(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        out = np.empty((len(places), L), np.int64)
        for row, place in enumerate(places):
            out[row] = theirs._query_document_sample_shuffle_indices(place)[0]
        return out, np.pad(out[:, :-1] == EOD, ((0, 0), (1, 0)))

    return {
        "copy": copy,
        "octavo": octavo,
        "octavo, checked": octavo_checked,
        "megatron": megatron,
        "megatron, core": megatron_core,
    }


def agree(read: dict[str, Read], places: np.ndarray) -> None:
    """AssertionError where two arms give different tokens or boundaries.

    Megatron cannot know of a document that starts with the window, and its samples have no token S + 1.
    """
    tokens, begins = read["octavo"](places)
    assert begins[:, 1:].any()
    for name, arm in read.items():
        some, others = arm(places)
        np.testing.assert_array_equal(some, tokens[:, : some.shape[1]], name)
        if name != "copy":
            np.testing.assert_array_equal(others[:, 1:], begins[:, 1 : some.shape[1]], name)


def report(*, quick: bool, rounds: int) -> dict[str, Any]:
    """Prints the table; returns every figure."""
    tokens = 2_000_000 if quick else 64_000_000
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_source(directory, tokens)
        order = np.random.default_rng(1).permutation(Shards(directory).num_windows(SEQ_LEN))
        read = arms(directory, order)
        agree(read, np.arange(min(len(order), 100)))
        print(f"\nReading {len(order):,} packs of {SEQ_LEN:,} tokens, million tokens per CPU-second (of the limit)")
        print("| batch | " + " | ".join(read) + " | over megatron | over its core | checked, over its core |")
        print("|---" * (len(read) + 4) + "|")
        return {f"batch {batch}": _turns(read, len(order), batch, rounds) for batch in BATCHES}


def _turns(read: dict[str, Read], samples: int, batch: int, rounds: int) -> dict[str, float]:
    """Medians over the rounds; the ratios are medians of the rounds' own."""
    speeds: dict[str, list[float]] = {name: [] for name in read}
    for turn in range(rounds + 1):
        for name, arm in read.items():
            began = time.process_time()
            for first in range(0, samples - batch + 1, batch):
                arm(np.arange(first, first + batch))
            if turn:  # the first warms up
                count = samples // batch * batch
                speeds[name].append(count * SEQ_LEN / (time.process_time() - began) / 1e6)

    def over(one: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))

    figures = {name: statistics.median(some) for name, some in speeds.items()}
    figures |= {f"{name}, of the limit": over(name, "copy") for name in read}
    figures |= {"over megatron": over("octavo", "megatron"), "over its core": over("octavo", "megatron, core")}
    figures["checked, over its core"] = over("octavo, checked", "megatron, core")
    cells = [f"{figures[name]:,.0f} ({figures[f'{name}, of the limit']:.2f})" for name in read]
    ratios = [f"{figures[key]:.1f}x" for key in ("over megatron", "over its core", "checked, over its core")]
    print("| " + " | ".join([str(batch), *cells, *ratios]) + " |", flush=True)
    return figures
