"""The settings of a stage, kept in its directory, so that a later start with other ones is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.errors import DataError
from trainer.storage.atomic import atomic_file

PLAN = "plan.json"


def keep_settings(directory: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a stage, or check that an earlier start had the same. Raises DataError, OSError."""
    path = directory / PLAN
    text = json.dumps(settings, indent=1, sort_keys=True)
    wanted = json.loads(text)
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        with atomic_file(path) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
        return
    except ValueError:
        earlier = {}
    if changed := [key for key in sorted({*wanted, *earlier}) if wanted.get(key) != earlier.get(key)]:
        key = changed[0]
        remedy = f"repeat the earlier command, or remove {directory} to do the stage again"
        text = f"{directory} was made with {key}={earlier.get(key)}, and this command has {wanted.get(key)}; {remedy}"
        raise DataError(text, where=str(directory), value=tuple(changed), allowed=remedy)
