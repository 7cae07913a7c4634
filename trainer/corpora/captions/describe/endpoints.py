"""The file of captioners: a YAML mapping from routes to endpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from trainer.corpora.captions.describe.captioner import MODELS, Endpoint
from trainer.data.errors import DataError

ZERO_ALLOWED = ("temperature", "retries", "backoff", "price_in", "price_out")
KEYS = tuple(field.name for field in fields(Endpoint))


def read_endpoints(path: Path) -> dict[str, Endpoint]:
    """The captioners by route. A route of `MODELS` needs no model. Raises DataError, also for a key that is unknown."""
    import yaml

    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        allowed = "a YAML file with a captioner for each route"
        raise DataError(f"{path}: {reason}; give {allowed}", where=str(path), allowed=allowed) from error
    if not isinstance(found, dict) or not found:
        allowed = "a mapping from routes, such as science and general, to captioners"
        raise DataError(f"{path}: give {allowed}", where=str(path), value=found, allowed=allowed)
    return {str(route): _endpoint(f"{path}: {route}", str(route), values) for route, values in found.items()}


def _endpoint(where: str, route: str, values: Any) -> Endpoint:
    if not isinstance(values, dict) or not isinstance(values.get("url"), str):
        allowed = "a mapping with the url of a server"
        raise DataError(f"{where}: give {allowed}", where=where, value=values, allowed=allowed)
    if unknown := sorted(map(str, set(values) - set(KEYS))):
        text = f"{where}.{unknown[0]}: no such key; use {', '.join(KEYS)}"
        raise DataError(text, where=f"{where}.{unknown[0]}", value=unknown[0], allowed=KEYS)
    for field in fields(Endpoint):
        if field.name in values:
            _check(f"{where}.{field.name}", str(field.type), values[field.name], zero=field.name in ZERO_ALLOWED)
    if route not in MODELS and "model" not in values:
        allowed = f"a model; only {' and '.join(MODELS)} have one by default"
        raise DataError(f"{where}.model: give {allowed}", where=f"{where}.model", allowed=allowed)
    given: Mapping[str, Any] = {"model": MODELS.get(route), **values}
    return Endpoint(**given)


def _check(where: str, kind: str, value: Any, *, zero: bool) -> None:
    if kind == "str":
        good, allowed = isinstance(value, str), "a text"
    else:
        number = int if kind == "int" else (int, float)
        good = isinstance(value, number) and not isinstance(value, bool) and (value >= 0 if zero else value > 0)
        allowed = f"a{' whole' if kind == 'int' else ''} number {'from 0' if zero else 'above 0'}"
    if not good:
        raise DataError(f"{where}={value!r}: use {allowed}", where=where, value=value, allowed=allowed)
