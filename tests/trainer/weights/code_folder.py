"""The folder that transformers copies remote code to, and imports it from, as one of a test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from transformers import dynamic_module_utils

PACKAGE = "transformers_modules"


@contextmanager
def code_folder(folder: Path) -> Iterator[None]:
    """Modules of another folder that were imported before are imported anew: their package has that folder's path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(folder))
        patch.setattr(sys, "path", [*sys.path])
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            patch.delitem(sys.modules, name)
        before = {*sys.modules}
        yield
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE and name not in before]:
            del sys.modules[name]
