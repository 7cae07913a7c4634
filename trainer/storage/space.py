"""Free space on a disk."""

from __future__ import annotations

import shutil
from pathlib import Path


def free_space(path: Path) -> tuple[Path, int]:
    """The nearest existing directory at or above `path`, and the free bytes of its disk. Raises OSError."""
    place = next(place for place in (path.absolute(), *path.absolute().parents) if place.is_dir())
    return place, shutil.disk_usage(place).free
