"""LMDeploy's HTTP API as far as rollouts need it: what is sent, how replies are read, and which versions are known.

Source: LMDeploy 0.18.0, serve/openai/protocol.py and serve/openai/endpoints.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from parallel.errors import Fault, one_of
from trainer.config.model import ModelConfig
from trainer.engine.request import Request
from trainer.rl.rollout.protocol import Rollout
from trainer.rl.servers.routes import Routes, Store, routes_from_lists

# Fields of the requests by which a version is known: a server states them at /openapi.json, and nowhere its number.
VERSIONS: Final[dict[str, dict[str, frozenset[str]]]] = {
    "0.18": {
        "GenerateReqInput": frozenset({
            "session_id", "prompt", "input_ids", "image_data", "return_logprob", "top_logprobs_num",
            "logprob_start_len", "max_tokens", "stop", "stop_token_ids", "stream", "temperature",
            "repetition_penalty", "ignore_eos", "top_p", "top_k", "min_p", "skip_special_tokens",
            "spaces_between_special_tokens", "include_stop_str_in_output", "return_routed_experts",
            "repetition_ngram_size", "repetition_ngram_threshold", "media_io_kwargs", "mm_processor_kwargs",
        }),
        "UpdateParamsRequest": frozenset({"serialized_named_tensors", "load_format", "finished"}),
        "AbortRequest": frozenset({"abort_all", "finished_reason", "abort_message", "session_id"}),
    },
}  # fmt: skip
PATHS: Final = frozenset({
    "/generate", "/update_weights", "/sleep", "/wakeup", "/is_sleeping", "/abort_request",
    "/update_weights_from_ipc", "/v1/models",
})  # fmt: skip
PROBED: Final = 20  # most likely tokens that a probe asks for


_STARTED = re.compile(r"^process_start_time_seconds (\S+)", re.MULTILINE)
_PREFIX_HITS = re.compile(r"^lmdeploy:prefix_cache_hit_rate(?:\{[^}]*\})? (\S+)", re.MULTILINE)


def process_of(metrics: Any) -> str | None:
    """The time at which the server's process started, of the text of /metrics; None for a server without one."""
    found = _STARTED.search(metrics) if isinstance(metrics, str) else None
    return found[1] if found else None


def finds_prefixes(metrics: Any) -> bool:
    """Return True if the server has found prefixes in its cache."""
    found = _PREFIX_HITS.search(metrics) if isinstance(metrics, str) else None
    return found is not None and float(found[1]) > 0


def version_of(openapi: Any) -> str | None:
    """The known version whose fields and paths a server states; None for any other."""
    try:
        schemas = openapi["components"]["schemas"]
        stated = {name: frozenset(schemas[name]["properties"]) for name in next(iter(VERSIONS.values()))}
        paths = openapi["paths"].keys()
    except (LookupError, TypeError, AttributeError):
        return None
    return next((version for version, fields in VERSIONS.items() if fields == stated and paths >= PATHS), None)


def workers_of(info: Any) -> int | None:
    """Processes that hold parts of the model, of the reply of /distserve/engine_info; None where there are copies."""
    found = json.loads(info) if isinstance(info, str) else info  # JSON in a string of JSON
    return None if found["dp_size"] > 1 else int(found["tp_size"])


def faults_of(request: Request, number: int) -> list[Fault]:
    """The parts of a request that LMDeploy's /generate has no equal for."""

    def fault(name: str, value: Any, allowed: str) -> Fault:
        text = f"request {number} has {name}={value}, which LMDeploy cannot serve as asked; use {allowed}"
        return Fault(text, name, value, allowed)

    found = []
    if not request.prompt:
        found.append(fault("prompt", 0, "at least one token"))
    if request.max_tokens < 1:
        found.append(fault("max_tokens", request.max_tokens, "1 or more"))
    if request.stop:  # it stops at any token that contains the text
        found.append(fault("stop", request.stop, "stop_ids"))
    if request.media:
        found.append(fault("media", len(request.media), "text alone"))
    if request.score_prompt or request.alternatives:
        found.append(fault("score_prompt or alternatives", True, "neither"))
    if not 0 <= request.sampling.temperature <= 2:
        found.append(fault("temperature", request.sampling.temperature, "0 to 2"))
    return found


def body_of(request: Request, *, routes: bool, top_logprobs: int | None = None) -> dict[str, Any]:
    """The body of /generate, with every field: one that is missing is the server's own default (temperature 0.8,
    top_k 50, or what the model's generation_config.json says).

    ignore_eos stays false: LMDeploy turns the end tokens of such a request into tokens that are never drawn.
    There is no field for a seed.
    """
    s = request.sampling
    return {
        "session_id": -1,
        "prompt": None,
        "input_ids": [int(token) for token in request.prompt],
        "image_data": None,
        "return_logprob": True,
        "top_logprobs_num": top_logprobs,
        "logprob_start_len": -1,
        "max_tokens": request.max_tokens,
        "stop": None,
        "stop_token_ids": sorted(request.stop_ids),
        "stream": False,
        "temperature": float(s.temperature),
        "repetition_penalty": 1.0,
        "ignore_eos": False,
        "top_p": float(s.top_p),
        "top_k": s.top_k,
        "min_p": float(s.min_p),
        "skip_special_tokens": False,
        "spaces_between_special_tokens": True,
        "include_stop_str_in_output": True,  # otherwise log-probabilities and routes lack the end token
        "return_routed_experts": routes,
        "repetition_ngram_size": 0,
        "repetition_ngram_threshold": 0,
        "media_io_kwargs": None,
        "mm_processor_kwargs": None,
    }


def read_rollout(reply: Any, request: Request, version: int, *, routes: bool, store: Store) -> Rollout:
    """The rollout of a reply of /generate. Raises ValueError, LookupError, TypeError or AttributeError for a reply that
    is none, or whose lengths disagree."""
    meta, ids = reply["meta_info"], tuple(reply["output_ids"])
    finish = meta["finish_reason"]["type"]
    if finish not in ("stop", "length", "abort"):
        raise ValueError(f"finish_reason {finish!r}, which is not {one_of(('stop', 'length', 'abort'))}")
    if not all(isinstance(token, int) and token >= 0 for token in ids):
        raise ValueError("output_ids that are not token ids")
    if not ids and finish != "abort":
        raise ValueError(f"an answer without tokens that ended by {finish}")
    if len(ids) > request.max_tokens:
        raise ValueError(f"{len(ids)} tokens, and at most {request.max_tokens} were asked for")
    if finish == "length" and len(ids) < request.max_tokens:
        raise ValueError(f"{len(ids)} of {request.max_tokens} tokens, cut by the server's --session-len")
    if (meta["prompt_tokens"], meta["completion_tokens"]) != (len(request.prompt), len(ids)):
        counted = f"{meta['prompt_tokens']} + {meta['completion_tokens']}"
        raise ValueError(f"a count of {counted} tokens for a prompt of {len(request.prompt)} and {len(ids)} ids")
    log_probs = log_probs_of(meta["output_token_logprobs"] or [], ids)
    found: Routes | None = None
    sent = meta["routed_experts"]
    if routes and ids and not (sent is None and finish == "abort"):  # a request that is ended early may lack them
        if sent is None:
            raise ValueError("no routed_experts, although they were asked for")
        rows = len(request.prompt) + len(ids) - 1
        found = routes_from_lists(store(sent) if isinstance(sent, str) else sent, rows)
    versions = np.full(len(ids), version, np.int64)
    return Rollout(tuple(request.prompt), ids, log_probs, found, versions, finish)


def log_probs_of(pairs: Any, ids: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """[G] fp32 of pairs (log-probability, token). Raises ValueError where they are not of these tokens, or are not
    log-probabilities."""
    if [pair[1] for pair in pairs] != [*ids]:
        raise ValueError(f"log-probabilities of other tokens than the {len(ids)} of the answer")
    found = np.array([pair[0] for pair in pairs], np.float32)
    if not np.isfinite(found).all() or (found > 1e-3).any():
        raise ValueError("log-probabilities that are infinite or above 0")
    return found


def probed(reply: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """The values of the most likely tokens in the reply to a probe, which should be raw log-probabilities."""
    (top,) = reply["meta_info"]["output_top_logprobs"]
    return np.array([value for value, _ in top], np.float32)


def other_model(reply: Mapping[str, Any], routes: Routes | None, model: ModelConfig) -> str | None:
    """The first size by which the model that answered a probe is not `model`, as far as a reply shows it, or None.

    routes: of the reply, [T, L, K]. A smaller number of experts, and the width of matrices, show in no reply; weights
    of another shape are refused when they arrive."""
    if (most := max(token for _, token in reply["meta_info"]["output_top_logprobs"][0])) >= model.vocab_size:
        return f"token {most} of a vocabulary of {model.vocab_size}"
    if routes is None:
        return None
    for what, found, own in (
        ("layers with experts", routes.shape[1], model.num_layers),
        ("experts for each token", routes.shape[2], model.experts_per_token),
    ):
        if found != own:
            return f"{found} {what} instead of {own}"
    size, picks = model.num_experts // model.router_groups, model.experts_per_token // model.router_groups
    if (routes // size != np.arange(model.experts_per_token) // picks).any():
        groups = f"{picks} of each {size} experts in {model.router_groups} groups"
        return f"routes such as {routes[0, 0].tolist()}, which are not {groups}"
    return None


def are_log_probs(values: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """Return False for logits, whose exponentials do not sum to at most 1."""
    return bool((values <= 1e-3).all() and np.exp(values.astype(np.float64)).sum() <= 1 + 1e-2)


def are_rounded(values: np.ndarray[Any, np.dtype[np.float32]]) -> bool:
    """Return True if all have at most the 11 significant bits of fp16 (bf16: 8), as of a head in 16 bits."""
    return not (values.view(np.uint32) & 0x1FFF).any()
