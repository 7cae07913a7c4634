"""A mixture as a run reads it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.errors import DataError
from trainer.data.mixture.reader import MixtureReader, with_source
from trainer.data.protocols import Data
from trainer.data.read_ahead import ReadAhead
from trainer.data.text import TextHeldOut, TextStream

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig


def open_mixture(
    data: DataConfig, directories: Mapping[str, Path], *, seed: int, samples: int, warn: Callable[[str], None]
) -> Data:
    """Open the sources in `directories` and check as many of their hashes as `data.verify` says.

    seed, samples: as for `MixtureReader`. warn: receives a line for each corrupt file under `data.on_fault=skip`.
    Raises DataError as `MixtureReader` does, and for corrupt files under `data.on_fault=fail`.
    """
    open_reader = functools.partial(MixtureReader, data, directories, seed=seed, samples=samples)
    reader = open_reader()
    if data.on_fault == "skip":
        for fault in reader.too_large():
            warn(fault.text)
    for split in (reader.train, reader.heldout):
        for name, shards in split.items():
            skip = (lambda fault, name=name: warn(with_source(name, fault).text)) if data.on_fault == "skip" else None
            try:
                shards.verify(data.verify, report=skip)
            except DataError as error:
                faults = [with_source(name, fault) for fault in error.faults]
                if data.on_fault == "fail":
                    remedy = ", or set data.on_fault=skip to continue without what is damaged"
                    faults = [replace(fault, text=fault.text + remedy) for fault in faults]
                raise DataError(faults) from error
    return Data(
        stream=TextStream(ReadAhead(reader, open_reader, data.workers).read, reader.shares),
        heldout=TextHeldOut(reader),
        fingerprint=reader.fingerprint,
        text=reader,
        tokenizer=reader.tokenizer_file,
        media=reader.media_rules(),
    )
