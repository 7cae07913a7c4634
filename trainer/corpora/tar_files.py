"""The files of a tar, with the check for its end that Python's tarfile leaves out."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path


def files_of(path: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Each regular file of an uncompressed tar with its content, in order. Only one is in memory.

    Raises tarfile.TarError for what is not a tar, or is truncated: inside a member, or between two, where tarfile takes
    it for a whole one. OSError.
    """
    with tarfile.open(path, "r:") as tar:
        end = 0
        for member in tar:
            end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if member.isreg():
                file = tar.extractfile(member)
                assert file is not None
                content = file.read()
                if len(content) < member.size:
                    raise tarfile.ReadError(f"it ends inside {member.name}")
                yield member, content
            tar.members.clear()  # type: ignore[attr-defined]  # it keeps a list of all that it has seen
    with path.open("rb") as raw:
        raw.seek(end)
        if raw.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it has no end of the archive")
