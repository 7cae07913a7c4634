"""Count which experts of a Hugging Face model are used together on a text, with one layer in memory at a time.

Legend: N tokens of text · H hidden size · E experts · K experts per token · L layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.context.base import Documents
from trainer.data.errors import DataError
from trainer.data.shards.tokenizer import read_tokenizer
from trainer.model.decoder import DecoderBlock
from trainer.model.rotary import Rotary
from trainer.storage.progress import OnProgress, Progress, ignore
from trainer.weights.hf_read import fill
from trainer.weights.hf_survey import SourceModel
from trainer.weights.upcycle.coactivation import Counts, Ints, model_digest
from trainer.weights.upcycle.errors import UpcycleError

TOKENIZER = "tokenizer.json"
WINDOW = 2048  # tokens that attend to one another
AT_ONE_TIME = 8192  # tokens whose activations inside a layer are in memory
MOST_CHARACTERS = 16  # characters read from a file for each token wanted


def read_windows(files: Sequence[Path], source: SourceModel, tokens: int) -> list[Ints]:
    """At most `tokens` token ids of the files, in windows of WINDOW or fewer, from each file in turn.

    files: UTF-8 text, for the tokenizer.json of `source`; or .npy files with token ids, one document each.
    Raises: UpcycleError naming the file.
    """
    longest = min(WINDOW, source.model.max_position)
    cut = [_windows(_token_ids(file, source, tokens), longest) for file in files]
    windows, left = [], tokens
    for window in chain.from_iterable(zip_longest(*cut)):
        if window is not None and left > 0:
            windows.append(window[:left])
            left -= len(windows[-1])
    return windows


def _windows(ids: Ints, longest: int) -> list[Ints]:
    return [ids[first : first + longest] for first in range(0, len(ids), longest)]


def _token_ids(file: Path, source: SourceModel, tokens: int) -> Ints:
    vocabulary = source.model.vocab_size
    try:
        if file.suffix == ".npy":
            stored = np.load(file, mmap_mode="r", allow_pickle=False)
            if stored.ndim != 1 or stored.dtype.kind not in "iu":
                raise UpcycleError(
                    f"{file} holds {stored.dtype} {list(stored.shape)}; give a one-dimensional array of whole numbers",
                    where=str(file),
                    value=f"{stored.dtype} {list(stored.shape)}",
                    allowed="a one-dimensional array of whole numbers",
                )
            ids = np.array(stored[:tokens], np.int64)
        else:
            with open(file, encoding="utf-8") as text:
                ids = np.array(_tokenizer(source).encode(text.read(MOST_CHARACTERS * tokens)).ids, np.int64)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error  # an OSError's own text names the file again
        raise UpcycleError(
            f"{file} cannot be read: {reason}; give UTF-8 text, or token ids in a .npy file",
            where=str(file),
            value=str(reason),
            allowed="UTF-8 text, or token ids in a .npy file",
        ) from error
    except ValueError as error:  # numpy's own text suggests to unpickle the file, whatever it holds
        raise UpcycleError(
            f"{file} is not a .npy file of token ids; numpy.save of a one-dimensional array of whole numbers makes one",
            where=str(file),
            allowed="numpy.save of a one-dimensional array of whole numbers",
        ) from error
    if not len(ids):
        raise UpcycleError(f"{file} holds no tokens", where=str(file), value=0, allowed="one token or more")
    if ids.min() < 0 or ids.max() >= vocabulary:
        outside = int(ids.min() if ids.min() < 0 else ids.max())
        raise UpcycleError(
            f"{file}: token id {outside} is outside the model's vocabulary of {vocabulary}",
            where=str(file),
            value=outside,
            allowed=f"0 to {vocabulary - 1}",
        )
    return ids


def _tokenizer(source: SourceModel) -> tokenizers.Tokenizer:
    file = source.directory.path / TOKENIZER
    if not file.is_file():
        raise UpcycleError(
            f"{file} is missing, so text cannot be tokenized; copy "
            "the tokenizer's tokenizer.json there, or give token ids in .npy files instead",
            where=str(file),
            allowed="a tokenizer.json there, or token ids in .npy files",
        )
    try:
        return read_tokenizer(file)
    except DataError as error:
        raise UpcycleError(error.faults) from error


@torch.no_grad()
def count_experts(
    source: SourceModel,
    windows: Sequence[Ints],
    device: torch.device,
    progress: OnProgress = ignore,
) -> Counts:
    """Count, in every layer, how often each expert is a token's best and how often two experts are its best two.

    Each window is a document of its own. One layer's weights and N x H hidden states are in memory, in fp32 on a CPU
    (where bf16 is slow) and in bf16 on a GPU. Call `source.require` first.

    progress: called after each layer.
    Raises: UpcycleError for a model whose router has groups or selects only one expert; HuggingFaceError.
    """
    cfg = source.model
    if cfg.router_groups != 1 or cfg.experts_per_token < 2:
        raise UpcycleError(
            f"{source.directory.path}: num_experts_per_tok={cfg.experts_per_token} in {cfg.router_groups} router "
            "groups; counting a token's two best experts needs 2 or more per token in a single group",
            where=str(source.directory.path),
            value=(cfg.experts_per_token, cfg.router_groups),
            allowed="2 or more experts per token in one router group",
        )
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    batches = list(_batches(windows))
    ids = torch.from_numpy(np.concatenate(windows))
    x_NH = _embedding(source, ids, dtype).to(device)
    with torch.device("meta"):
        block, rotary = DecoderBlock(cfg), Rotary(cfg)
    block = block.to(dtype).to_empty(device=device)
    block.moe.router.float()
    rotary = rotary.to_empty(device=device)
    fill(_named(rotary=rotary), source)
    best: list[Tensor] = []
    block.moe.router.register_forward_hook(lambda router, arguments, routed: best.append(routed[0][:, :2]))
    top1 = torch.zeros(cfg.num_layers, cfg.num_experts, dtype=torch.int64)
    pairs = torch.zeros(cfg.num_layers, cfg.num_experts, cfg.num_experts, dtype=torch.int64)
    for layer in range(cfg.num_layers):
        fill(_named(layers=nn.ModuleDict({str(layer): block})), source)
        for rows, lengths in batches:
            positions = torch.cat([torch.arange(length) for length in lengths]).to(device)
            bounds = F.pad(torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32), (1, 0))
            cos, sin = rotary(positions, dtype)
            docs = Documents.from_cu_seqlens(bounds, len(positions), device)
            x_NH[rows], _ = block(x_NH[rows], cos, sin, docs)
        first, second = torch.cat(best).cpu().unbind(1)
        best.clear()
        top1[layer] = first.bincount(minlength=cfg.num_experts)
        pair = torch.minimum(first, second) * cfg.num_experts + torch.maximum(first, second)
        pairs[layer] = pair.bincount(minlength=cfg.num_experts**2).view(cfg.num_experts, -1)
        progress(Progress("counting experts", layer + 1, cfg.num_layers, "layers"))
    return Counts(top1.numpy(), pairs.numpy(), len(ids), model_digest(source))


def _batches(windows: Sequence[Ints]) -> Iterator[tuple[slice, list[int]]]:
    """Runs of whole windows, AT_ONE_TIME tokens or fewer each: their rows among all tokens, and their lengths."""
    lengths: list[int] = []
    start = 0
    for window in windows:
        if lengths and sum(lengths) + len(window) > AT_ONE_TIME:
            yield slice(start, start + sum(lengths)), lengths
            start, lengths = start + sum(lengths), []
        lengths.append(len(window))
    yield slice(start, start + sum(lengths)), lengths


def _embedding(source: SourceModel, ids: Tensor, dtype: torch.dtype) -> Tensor:
    table = nn.Parameter(torch.empty(source.model.vocab_size, source.model.hidden_size, dtype=dtype))
    fill(_named(embed=table), source)
    return F.embedding(ids, table)


def _named(**parts: Any) -> nn.Module:
    """Parts of a `Decoder` under the names that they have there, for `fill`."""
    holder = nn.Module()
    for name, part in parts.items():
        setattr(holder, name, part)
    return holder
