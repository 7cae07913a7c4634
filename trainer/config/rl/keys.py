"""The keys of reinforcement learning, read with `train.objective=policy`. No torch here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config.coerce import FREE

Denominator = Literal["all", "kept", "sequence"]
Engine = Literal["embedded", "lmdeploy", "ray"]
Level = Literal["token", "sequence", "geometric"]
Mode = Literal["dual", "joint"]
Replay = Literal["replay", "record", "off"]
Estimator = Literal["k2", "k3"]


def _free(default: Any) -> Any:
    return field(default=default, metadata=FREE)


@dataclass(kw_only=True)
class RlConfig:
    """See docs/rl.md, also for the sources of the defaults. train.global_batch counts questions."""

    group_size: int = 8  # rollouts of each question
    max_tokens: int = 16  # the most tokens of a rollout
    reward: str = "exact"  # what a rollout is worth: a name of docs/rewards.md, or {name: ..., OPTION: ...}
    environment: str = ""  # tools of several turns: {tools: [calculator], ...} of docs/rewards.md; empty: one turn
    # what answers; embedded: the run's own modules, on its own ranks; lmdeploy: LMDeploy's api_server at rl.url; ray:
    # rl.rollout_workers engines with weights of their own, on the machines of a Ray cluster
    engine: Engine = "embedded"
    # lmdeploy: the server's address, such as http://localhost:23333, or several addresses separated by commas
    url: str = _free("")
    bucket_mb: int = _free(512)  # lmdeploy, ray: the most weights in one message, MiB
    # lmdeploy: how weights are sent; buckets: as memory that a server on this machine opens; distributed: through a
    # process group with the server's workers, NCCL between GPUs, which may be on other machines
    sync: Literal["buckets", "distributed"] = _free("buckets")
    rollout_workers: int = _free(1)  # ray: the number of engines
    # processes of each rank that play rl.environment, or without it compute rl.reward; 0: the run's own process does
    environment_workers: int = _free(0)
    # where environment workers are; local: on the machine of their rank, ray: on the machines of a Ray cluster
    placement: Literal["local", "ray"] = _free("local")
    # ray: the cluster, as HOST:PORT; auto: the running one, of RAY_ADDRESS or on this machine; local: a new one, for
    # this run alone
    ray_address: str = _free("auto")
    ray_cpus: float = _free(1.0)  # ray: cores that are reserved for each worker
    ray_gpus: float = _free(0.0)  # ray: GPUs that are reserved for each rollout worker; 0: it computes on cores
    exact: bool = False  # compute rollouts and training in exact arithmetic: equal log-probabilities, bit for bit
    updates: int = 1  # optimizer steps for each round of rollouts, train.global_batch questions each
    # a step asks further questions until train.global_batch groups teach, up to this many times train.global_batch; 1:
    # the first train.global_batch questions, whether they teach or not
    oversample: int = 1
    # 0: rollouts are drawn under the weights of their round; more: questions are asked ahead, and no token that is
    # trained is older than this many optimizer steps
    max_staleness: int = 0
    # rollouts that are not done when the weights change; keep: they continue, discard: they are drawn anew
    partial_rollouts: Literal["keep", "discard"] = "keep"
    # the experts of a rollout in training; replay: they are selected again, record: their differences are counted
    replay: Replay = "replay"
    freeze_router: bool = False  # leave the routers' weights as they are
    # what experts in FP8 quantise; bf16: the bf16 rounding of the weights, which a rollout engine receives; masters:
    # the fp32 weights, which no engine has
    fp8_weights: Literal["bf16", "masters"] = "bf16"
    # of the ratios train over rollout engine and new over old weights; dual: each is masked; joint: their product is
    mode: Mode = "dual"
    # token: a ratio for each token; sequence: the product over a rollout; geometric: the geometric mean over it
    level: Level = "token"
    alpha: float = 0.5  # ratios of train over rollout engine, or joint ones, that are not above it weigh nothing
    beta: float = 5.0  # ratios of train over rollout engine, or joint ones, that are not below it weigh nothing
    off_alpha: float = 0.5  # dual: as alpha, for new over old weights
    off_beta: float = 5.0  # dual: as beta, for new over old weights
    # what sums over tokens are divided by; all: the tokens of all rollouts; kept: those that mask and veto leave;
    # sequence: the rollouts, each with the mean of its tokens
    denominator: Denominator = "all"
    # nats: the loss has this times the mean entropy of the distribution of a token subtracted
    entropy_coef: float = 0.0
    # the loss has this times the mean divergence of a token from a reference policy added; 0: off, without a reference
    kl_coef: float = 0.0
    # of d = log(policy) - log(reference); k3: e^-d - 1 + d; k2: d^2 / 2
    kl_estimator: Estimator = "k3"
    kl_reference: str | None = None  # Hugging Face directory of the reference; null: the weights at the run's start
    clip_low: float | None = None  # PPO: a ratio of new over old below 1 - clip_low gets no gradient where A < 0
    clip_high: float | None = None  # PPO: a ratio of new over old above 1 + clip_high gets no gradient where A > 0
    dual_clip: float | None = None  # PPO: a ratio of new over old above it gets no gradient where A < 0
    veto_low: float | None = None  # a rollout with a ratio of train over rollout engine below it is left out
    veto_high: float | None = None  # a rollout with a ratio of train over rollout engine above it is left out
    skip_grad_norm: float = 0.0  # a step whose gradient norm is above it is skipped: weights stay as they were; 0: off
    concurrent: int = _free(256)  # the most rollouts of a rank at one time
    deadline_s: float = _free(600.0)  # seconds that a round of rollouts may take
    environment_s: float = _free(60.0)  # seconds that one step of one environment may take
    eval_questions: int = _free(128)  # held-out questions of each source in an evaluation

    @property
    def urls(self) -> list[str]:
        """The addresses of `url`."""
        return [one.strip() for one in self.url.split(",")]

    @property
    def rounds_ahead(self) -> int:
        """Rounds whose questions are asked ahead of the one that is trained."""
        return (self.max_staleness + 1) // self.updates - 1 if self.max_staleness else 0
