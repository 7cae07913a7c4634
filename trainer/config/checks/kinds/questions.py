"""Questions with answers to verify, and what learns from them: keys of `data.name=questions` and of `rl`."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from parallel.errors import Fault, one_of
from parallel.layout import divisors
from trainer.config.checks.data import NAME
from trainer.config.checks.kinds import policy
from trainer.config.keys import Config
from trainer.config.rl.keys import RlConfig
from trainer.config.rl.rewards import check_environment, check_reward

OBJECTIVES = ("next_token", "policy")
SERVED = ("fp32", "bf16", "fp8_block", "fp8_reference")  # of precision.experts, by rl.engine=lmdeploy; fp32 as bf16
SERVER, RAY = ("lmdeploy",), ("ray",)  # of rl.engine
APART = (*SERVER, *RAY)  # engines that are sent the weights
EXACT = ("fp32", "bf16", "fp8_reference")  # of precision.experts, in exact arithmetic
USED = {"url": SERVER, "sync": SERVER, "bucket_mb": APART, "rollout_workers": RAY, "ray_gpus": RAY}
ADDRESS = "an address such as http://localhost:23333"


def check(cfg: Config) -> list[Fault]:
    """Faults of the keys of questions, and of reinforcement learning."""
    return [*_sources(cfg), *(_rl(cfg) if cfg.train.objective == "policy" else _without(cfg))]


def _sources(cfg: Config) -> Iterator[Fault]:
    data, objective = cfg.data, cfg.train.objective
    if data.name != "questions":
        if data.questions:
            text = f"data.questions needs data.name=questions, and this is data.name={data.name}; leave it out"
            yield Fault(text, "data.questions", tuple(data.questions), ())
        if objective == "policy":
            text = f"train.objective=policy learns from questions, and this is data.name={data.name}"
            yield Fault(f"{text}; use a data option with questions", "data.name", data.name, ("questions",))
        return
    if objective not in OBJECTIVES:
        text = f"train.objective={objective} does not learn from questions; use policy, or next_token for fine-tuning"
        yield Fault(text, "train.objective", objective, OBJECTIVES)
    if not data.questions:
        text = "data.questions is empty; data.name=questions needs one or more"
        yield Fault(text, "data.questions", {}, "one or more")
    for name, source in data.questions.items():
        at = f"data.questions.{name}"
        if not NAME.fullmatch(name):
            allowed = "letters, digits, '_' and '-'"
            yield Fault(f"{at}: not a valid name; use {allowed}", at, name, allowed)
        if not source.path.strip():
            allowed = "a .jsonl file"
            yield Fault(f"{at}.path is empty; use {allowed}", f"{at}.path", source.path, allowed)
    if data.build == "toy" and data.tokenizer is not None:
        text = "data.tokenizer: the toy's questions have their own; use data.tokenizer=null"
        yield Fault(text, "data.tokenizer", data.tokenizer, (None,))
    if data.build == "none" and data.tokenizer is None and cfg.checkpoint.init_from is None:
        allowed = "a tokenizer.json, or a directory with one"
        text = f"data.tokenizer is missing; use {allowed}, or set checkpoint.init_from to weights with one"
        yield Fault(text, "data.tokenizer", None, allowed)
    if data.workers:
        text = f"data.workers={data.workers}: questions are held in memory; use 0"
        yield Fault(text, "data.workers", data.workers, (0,))


def _without(cfg: Config) -> Iterator[Fault]:
    default = vars(RlConfig())
    for key, value in vars(cfg.rl).items():
        if value != default[key]:
            text = f"rl.{key} needs train.objective=policy, and this is train.objective={cfg.train.objective}"
            yield Fault(f"{text}; leave it out", f"rl.{key}", value, (default[key],))


def _rl(cfg: Config) -> Iterator[Fault]:
    rl, p = cfg.rl, cfg.parallel
    yield from check_reward(rl.reward, "rl.reward")
    if rl.environment:
        yield from check_environment(rl.environment, "rl.environment", reward=True)
    yield from _engine(rl)
    if rl.engine == "lmdeploy":
        yield from served_precision(cfg)
    if rl.engine == "ray" and (experts := cfg.precision.experts) not in EXACT:
        text = f"precision.experts={experts}: rollout workers of rl.engine=ray do not have it"
        yield Fault(f"{text}; use {one_of(EXACT)}", "precision.experts", experts, EXACT)
    yield from _staleness(cfg)
    yield from policy.check(rl, cfg.data.seq_len)
    if cfg.lora.target != "none":
        text = f"train.objective=policy trains all weights, and lora.target is {cfg.lora.target}; use none"
        yield Fault(text, "lora.target", cfg.lora.target, ("none",))
    if cfg.optim.engine == "deepspeed":
        text = "train.objective=policy needs the weights of the run's own engine; use optim.engine=native"
        yield Fault(text, "optim.engine", "deepspeed", ("native",))
    if rl.exact and cfg.train.compile:
        text = "rl.exact=true computes each operation in one order, and train.compile=true in others; use false"
        yield Fault(text, "train.compile", True, (False,))
    if p.cp > 1 and rl.exact:
        if p.cp_kind != "ulysses":
            text = f"rl.exact=true adds up keys in their order, and parallel.cp_kind={p.cp_kind} does not; use ulysses"
            yield Fault(text, "parallel.cp_kind", p.cp_kind, ("ulysses",))
        heads = cfg.model.num_kv_heads
        if heads % p.cp:
            fit = divisors(heads)
            text = f"rl.exact=true needs model.num_kv_heads={heads} to be a multiple of parallel.cp={p.cp}"
            yield Fault(f"{text}; use {one_of(fit)}", "parallel.cp", p.cp, fit)


def _staleness(cfg: Config) -> Iterator[Fault]:
    rl = cfg.rl
    least = 2 * rl.updates - 1  # a round that is asked for one round ahead is so old at its last update
    if 0 < rl.max_staleness < least:
        text = f"rl.max_staleness={rl.max_staleness} is less than one round ahead with rl.updates={rl.updates}"
        yield Fault(f"{text}; use 0, or {least} or more", "rl.max_staleness", rl.max_staleness, (0, least))
    if rl.partial_rollouts != "keep" and not rl.max_staleness:
        text = f"rl.partial_rollouts={rl.partial_rollouts} needs rl.max_staleness above 0; leave it out"
        yield Fault(text, "rl.partial_rollouts", rl.partial_rollouts, ("keep",))


def _engine(rl: RlConfig) -> Iterator[Fault]:
    """Faults of the keys of a rollout engine and of workers."""
    default = RlConfig()
    known = rl.engine in ("embedded", *APART)  # others are a fault of the whole configuration
    for key, engines in USED.items():
        if known and rl.engine not in engines and (value := getattr(rl, key)) != (allowed := getattr(default, key)):
            text = f"rl.{key} needs rl.engine={one_of(engines)}, and this is rl.engine={rl.engine}; leave it out"
            yield Fault(text, f"rl.{key}", value, (allowed,))
    if rl.placement == "ray" and not rl.environment_workers:
        text = "rl.placement=ray places workers, and rl.environment_workers=0; use 1 or more, or rl.placement=local"
        yield Fault(text, "rl.environment_workers", 0, "1 or more")
    if rl.engine != "ray" and rl.placement != "ray":
        for key in ("ray_address", "ray_cpus"):
            if (value := getattr(rl, key)) != (allowed := getattr(default, key)):
                text = f"rl.{key} needs rl.engine=ray or rl.placement=ray; leave it out"
                yield Fault(text, f"rl.{key}", value, (allowed,))
    if rl.engine != "lmdeploy":
        return
    servers = dict[tuple[object, ...], str]()
    for url in rl.urls:
        if not url and rl.url:
            text = f"rl.url={rl.url} has a comma without an address; use one comma between each two addresses"
            yield Fault(text, "rl.url", rl.url, ADDRESS)
        elif not _is_address(url):
            found = f"rl.url={url} is not the address of a server" if url else "rl.url is missing"
            yield Fault(f"{found}; rl.engine={rl.engine} needs {ADDRESS}", "rl.url", url or None, ADDRESS)
        elif urlsplit(url).path.rstrip("/").endswith("/v1"):
            allowed = url.rstrip("/").removesuffix("/v1").rstrip("/")
            text = f"rl.url={url} is for OpenAI's clients, and rl.engine={rl.engine} needs the server's own"
            yield Fault(f"{text}; use {allowed}", "rl.url", url, (allowed,))
        elif (first := servers.get(_server(url))) is not None:
            text = f"rl.url has {url} twice" if url == first else f"rl.url has one server twice, as {first} and {url}"
            yield Fault(f"{text}; use each server once", "rl.url", url, "different addresses")
        else:
            servers[_server(url)] = url
    if rl.exact:
        text = f"rl.exact=true needs rollouts in exact arithmetic, and rl.engine={rl.engine} has its own; use false"
        yield Fault(text, "rl.exact", True, (False,))


def served_precision(cfg: Config) -> Iterator[Fault]:
    """Experts that LMDeploy 0.18 cannot quantise alike: its FP8 has a scale for each tile of 128 x 128."""
    if (experts := cfg.precision.experts) not in SERVED:
        text = f"precision.experts={experts} is not a precision that LMDeploy has for experts"
        yield Fault(f"{text}; use {one_of(SERVED)}", "precision.experts", experts, SERVED)


def _server(url: str) -> tuple[object, ...]:
    """The parts that addresses of one server have in common, however they are written."""
    parts = urlsplit(url)
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return parts.scheme, parts.hostname, port, parts.path.rstrip("/")


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and not parts.query
            and not parts.fragment
            and parts.port != 0
        )
    except ValueError:  # its port cannot be read
        return False
