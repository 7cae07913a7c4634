"""The schema of a run: every key that exists, its type and its default. No torch here.

Fields marked `free()` may change when a run is resumed. All others define the result and are hashed by `config_hash`;
of these, the ones marked `named()` may change, too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config import coerce
from trainer.config.coerce import FREE, NAMED
from trainer.config.mixture import ChatSourceConfig, PairSourceConfig, PhaseConfig, QuestionSourceConfig, SourceConfig
from trainer.config.model import ModelConfig, Shape
from trainer.config.rl.keys import RlConfig


def free(default: Any) -> Any:
    """A field that may change when a run is resumed: it extends the run, or changes how the same step is computed,
    which affects the numbers by rounding alone (except micro_batch: the balance loss is a mean over micro-batches)."""
    return field(default=default, metadata=FREE)


def named(default: Any) -> Any:
    """A field that changes the numbers of a run but not the layout of its checkpoints: part of the default directory's
    name, yet a run may resume with another value."""
    return field(default=default, metadata=NAMED)


@dataclass(kw_only=True)
class RunConfig:
    name: str = free("run")  # the recipe's name; part of the default directory
    dir: str | None = free(None)  # None: runs/<name>-<8 hex of config_hash>


@dataclass(kw_only=True)
class DataConfig:
    # synthetic: sequences from integer arithmetic, no corpus; pairs: images with captions, in tar files; chat:
    # conversations, with a loss on the assistant's part alone; questions: with an answer that can be verified
    name: Literal["synthetic", "mixture", "pairs", "chat", "questions"] = "mixture"
    seq_len: int = 256  # tokens of one sequence (window); the most of a caption
    cache_dir: str = free(".cache/octavo")  # where corpora are built; relative to the working directory
    # of corpora that are built
    tokens_per_source: int = 2_000_000  # the most tokens that are taken from each source
    # fraction of each source's documents or chats that is never trained on; of pairs, fraction of the captions
    holdout_fraction: float = 0.02
    # of data.name=mixture
    sources: dict[str, SourceConfig] = field(default_factory=dict)  # corpora, each with its share of the tokens
    phases: dict[str, PhaseConfig] = field(default_factory=dict)  # spans of steps, in this order; the last has no end
    prefixes: dict[str, list[str]] = field(default_factory=dict)  # group -> paraphrases at the start of documents
    # of data.name=pairs
    pairs: dict[str, PairSourceConfig] = field(default_factory=dict)  # directories of tar files with pairs
    zero_shot: dict[str, str] = field(default_factory=dict)  # name -> directory of images with classes, to evaluate on
    # of captions, chats and questions: a tokenizer.json, or a directory with one; null: for chats and
    # questions, that of checkpoint.init_from
    tokenizer: str | None = None
    min_pixels: int = 65_536  # the least area that an image is scaled to
    max_pixels: int = 16_777_216  # the largest area that an image is scaled to
    # of data.name=chat
    chats: dict[str, ChatSourceConfig] = field(default_factory=dict)  # files of conversations
    chat_template: str | None = None  # a .jinja file, or a directory with a chat template; null: beside the tokenizer
    # names that the template reads, such as enable_thinking; chat_template_kwargs of a record go first
    chat_values: dict[str, bool | int | float | str] = field(default_factory=dict)
    chat_date: str | None = None  # the day that templates print, such as 2026-12-01; null: printing it is refused
    long_chats: Literal["refuse", "cut", "skip"] = "refuse"  # what to do about chats of more than seq_len tokens
    pack_chats: Literal["best_fit", "none"] = "best_fit"  # none: one chat to a window, the rest is padding
    # of data.name=questions
    questions: dict[str, QuestionSourceConfig] = field(default_factory=dict)  # files of questions
    # of all but synthetic
    build: Literal["none", "toy"] = "none"  # toy: the sources are made into cache_dir from installed packages
    root: str = free(".")  # directory that relative paths of sources start from; relative to the working directory
    reader: Literal["octavo", "megatron"] = free("octavo")  # reads .bin and .idx; both give the same tokens
    workers: int = free(0)  # processes of each rank that read ahead; 0: none, samples are read when needed
    verify: Literal["sampled", "full", "off"] = free("sampled")  # hashes of the shards that are checked at the start
    on_fault: Literal["fail", "skip"] = free("fail")  # what to do about tokens that cannot be read
    max_skips: int = free(100)  # on_fault=skip: abort after this many skipped samples and documents
    allow_changed: bool = free(False)  # resume a run whose corpora have changed


@dataclass(kw_only=True)
class ParallelConfig:
    """World = pp * dp_replicate * dp_shard * cp. A size of 0 is filled in: dp_shard is then as small as ep lets it be,
    unless dp_replicate is given; ep the largest that suits the ranks and the model's router groups."""

    pp: int = free(1)  # ranks of a pipeline, each with different layers
    # order of the forward and backward passes of a pipeline; see docs/pipeline.md
    schedule: Literal["1f1b", "interleaved_1f1b", "interleaved_zero_bubble", "zbv", "dualpipev"] = free("1f1b")
    stages_per_rank: int = free(0)  # pipeline stages of each rank; 0: 1 for 1f1b, 2 for the other schedules
    cp: int = free(1)  # ranks that share each sequence
    # ulysses: exchanges heads, whose number cp must divide; ring: sends keys and values around, for any number of heads
    cp_kind: Literal["ulysses", "ring"] = free("ulysses")
    dp_replicate: int = free(0)  # copies of the sharded model
    dp_shard: int = free(0)  # dp_shard x cp ranks share one copy of the weights
    ep: int = free(1)  # neighbouring ranks out of dp_shard x cp that share the experts
    dispatch: Literal["auto", "all_gather", "all_to_all"] = free("auto")  # how tokens reach experts on other ranks
    combine: Literal["fixed_order", "reduce_scatter"] = free("fixed_order")  # how all_gather adds the ranks' results
    regather: bool = free(False)  # all_gather: gather hidden states again in backward instead of keeping them
    overlap: int = free(1)  # all_gather: parts of a micro-batch whose exchange and experts run side by side
    reshard_dense: bool = free(True)  # free gathered dense weights after forward, gather them again in backward
    reshard_experts: bool = free(False)  # the same for experts; false keeps them gathered until the end of the step
    # when sharded gradients are summed over ranks; auto: once a step with a pipeline, otherwise in every
    # micro-batch
    reduce_every: Literal["auto", "step", "micro_batch"] = free("auto")
    balance_towers: bool = free(False)  # spread images over the ranks of a stage by their patches before the tower
    timeout_s: float = free(600.0)  # seconds without progress on any rank, after which the run ends


@dataclass(kw_only=True)
class PrecisionConfig:
    """The dtype of every part. A part with a single value is listed for the record, and so that others are refused."""

    linears: Literal["fp32", "bf16"] = named("fp32")  # matrices of attention and towers; activations between parts
    # bf16 and fp32: as `linears`. fp8_*, mxfp8: e4m3 matmuls under the Transformer Engine recipe of that name;
    # fp8_reference: fp8_block's quantisation in fp32 arithmetic, on any device
    experts: Literal["fp32", "bf16", "fp8_block", "fp8_current", "fp8_delayed", "mxfp8", "fp8_reference"] = named(
        "fp32"
    )
    payload: Literal["fp32", "bf16", "fp8"] = named("fp32")  # hidden states that all_gather sends to experts
    kept: Literal["exact", "fp8"] = named("exact")  # the inputs of blocks that train.recompute=full keeps for backward
    router: Literal["fp32"] = "fp32"  # logits and softmax
    norms: Literal["fp32"] = "fp32"  # reductions and product of the norms
    rotary: Literal["fp32"] = "fp32"  # position tables and rotation
    lm_head: Literal["fp32"] = "fp32"  # logits and cross-entropy
    masters: Literal["fp32"] = "fp32"  # the weights that are trained and saved
    moments: Literal["fp32", "bf16"] = named("fp32")  # the moments of the optimizer
    gradients: Literal["fp32"] = "fp32"  # the gradients that the optimizer receives
    reductions: Literal["fp32", "bf16"] = named("fp32")  # sums of sharded gradients over ranks
    accumulate: Literal["fp32", "bf16"] = named("fp32")  # sums over micro-batches on a rank, with reduce_every=step


@dataclass(kw_only=True)
class PartConfig:
    """One part of the model."""

    freeze: bool = False  # leave the weights as they are, without gradients and moments
    lr: float | None = None  # the highest learning rate, as optim.lr; null: optim.lr
    weight_decay: float | None = None  # as optim.weight_decay; null: optim.weight_decay


@dataclass(kw_only=True)
class PartsConfig:
    """The parts of the model, each with its own settings."""

    text: PartConfig = field(default_factory=PartConfig)  # the text model, its routers left out
    router: PartConfig = field(default_factory=PartConfig)
    vision: PartConfig = field(default_factory=PartConfig)  # the vision tower, its merger left out
    merger: PartConfig = field(default_factory=PartConfig)  # the merger or projector behind the vision tower
    signals: PartConfig = field(default_factory=PartConfig)  # the tower for signals


@dataclass(kw_only=True)
class OptimConfig:
    name: Literal["adamw", "sgd", "muon"] = "adamw"  # the optimizer
    lr: float = 1e-3  # the highest learning rate, reached after the warm-up
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])  # adamw, muon: decay rates of AdamW's two moments
    eps: float = 1e-8  # adamw, muon: added to the square root of AdamW's second moment
    weight_decay: float = 0.1  # decoupled; multiplied by the learning rate; 0: off
    momentum: float = 0.9  # sgd, muon: momentum; 0: off
    adamw_lr_ratio: float = 1.0  # muon: learning rate of the weights that AdamW updates, as a multiple of lr
    # muon: factor on lr for a matrix; match_rms_adamw: 0.2 sqrt(longer side), which gives updates the size of AdamW's;
    # original: sqrt(rows/columns) if above 1
    adjust_lr: Literal["match_rms_adamw", "original"] = "match_rms_adamw"
    ns_steps: int = 5  # muon: Newton-Schulz iterations
    ns_dtype: Literal["fp32", "bf16"] = named("fp32")  # muon: dtype of the iterations; bf16 is for GPUs
    parts: PartsConfig = field(default_factory=PartsConfig)
    clip_norm: float = 1.0  # limit of the global gradient norm; 0: off
    # learning rate after the warm-up; wsd: constant, then a linear decay
    schedule: Literal["wsd", "cosine", "constant"] = "wsd"
    warmup_steps: int = 0  # steps in which lr rises linearly from 0
    decay_fraction: float = 0.2  # wsd: share of the steps, at the end, in which lr decays linearly to min_lr_ratio
    min_lr_ratio: float = 0.1  # learning rate at the end of the schedule, as a multiple of lr
    # implementation of the optimizer, which also determines the names of its state in checkpoints
    engine: Literal["native", "deepspeed"] = "native"
    zero_stage: int = free(2)  # deepspeed: 1 shards the state over all ranks, 2 the gradients too, 3 the weights too
    # cpu: moments are in host memory; deepspeed: fp32 weights and gradients too, and the update runs there
    # nvme: deepspeed, zero_stage=3: as cpu, with moments and fp32 weights in files below nvme_dir
    offload: Literal["none", "cpu", "nvme"] = free("none")
    nvme_dir: str | None = free(None)  # an existing directory on each machine's disk; what a run puts there it removes
    offload_params: Literal["none", "cpu"] = free("none")  # deepspeed, zero_stage=3: cpu holds the weights, too

    def decay_steps(self, steps: int) -> int:
        """Length of the final decay in a run of `steps` steps: rounded for wsd, 0 for the other schedules."""
        return round(self.decay_fraction * steps) if self.schedule == "wsd" else 0


@dataclass(kw_only=True)
class LoraConfig:
    """Adapters of low rank beside frozen matrices of the text model; see docs/lora.md."""

    # matrices with adapters, which alone are trained; all: those of attention and experts
    target: Literal["none", "attention", "experts", "all"] = "none"
    rank: int = 16  # inner size of each adapter
    alpha: float = 32.0  # adapters are multiplied by alpha / rank
    rslora: bool = False  # multiply by alpha / sqrt(rank) instead
    dropout: float = 0.0  # share of the inputs of attention's adapters that is set to zero in training
    # format of the frozen matrices; linears: the dtype of precision.linears; fp8: for attention's and experts', the
    # codes and scales of a checkpoint in FP8
    base: Literal["linears", "fp8"] = "linears"
    plus_ratio: float = 1.0  # LoRA+: learning rate of each B, which starts at zero, as a multiple of optim.lr

    @property
    def scale(self) -> float:
        """The factor of each adapter."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

    def shapes(self, model: ModelConfig) -> dict[str, Shape]:
        """The parameters of all adapters of `model`, by name; as `trainer.model.lora` makes them."""
        m, r, found = model, self.rank, dict[str, Shape]()
        q, kv = m.num_heads * m.head_dim, m.num_kv_heads * m.head_dim
        for layer in (f"layers.{number}." for number in range(m.num_layers)):
            if self.target in ("attention", "all"):
                for letter, rows in (("q", q), ("k", kv), ("v", kv)):
                    at = f"{layer}attention.into.adapters.{letter}."
                    found |= {f"{at}a": (r, m.hidden_size), f"{at}b": (rows, r)}
                at = f"{layer}attention.out_of.adapters.o."
                found |= {f"{at}a": (r, q), f"{at}b": (m.hidden_size, r)}
            if self.target in ("experts", "all"):
                widths = {"a13": m.hidden_size, "b13": 2 * m.expert_width, "a2": m.expert_width, "b2": m.hidden_size}
                at = f"{layer}moe.experts.backend."
                found |= {f"{at}{name}": (m.num_experts, r, width) for name, width in widths.items()}
        return found


@dataclass(kw_only=True)
class TrainConfig:
    steps: int = free(1000)  # optimizer updates of the whole run
    seed: int = 0  # seed of the random weights and of the order of the samples
    # what is minimised; contrastive: over halves of documents, image_text: over images and their captions, policy:
    # over rollouts of questions, for their reward
    objective: Literal["next_token", "contrastive", "image_text", "policy"] = "next_token"
    contrastive_temperature: float = 0.07  # contrastive: cosine similarities are divided by it
    pair_loss: Literal["softmax", "sigmoid"] = "softmax"  # image_text: the loss of CLIP, or that of SigLIP
    # of chats, the mean that is minimised; token: over all trained tokens of a step; sample: over chats, each the mean
    # of its tokens; square: in between, a chat weighs the square root of its tokens
    loss_reduction: Literal["token", "sample", "square"] = "token"
    resume: Literal["auto", "never"] = free("auto")  # never: start a new run in a directory beside the old one
    log_every: int = free(10)  # steps between log records, for which metrics are read from the device
    global_batch: int = 8  # sequences of one optimizer step, over all ranks
    micro_batch: int = free(8)  # sequences of one forward pass of one rank
    eval_every: int = free(0)  # steps between evaluations; 0: only at the end
    eval_batches: int = free(8)  # micro-batches of each source in an evaluation
    max_skipped: int = free(10)  # abort after this many skipped steps in a row
    # activations that backward recomputes; full: each decoder block; selective: all but the results of matmuls and
    # attention; attention, experts: that half of each block
    recompute: Literal["none", "selective", "attention", "experts", "full"] = free("none")
    offload_activations: bool = free(False)  # keep the activations of each block in host memory until backward
    compile: bool = free(False)  # torch.compile each decoder block
    kernels: Literal["torch", "triton"] = free("torch")  # triton: fused kernels for CUDA tensors where they exist
    loss_chunk: int = free(512)  # tokens whose logits are in memory at one time
    sample_tokens: int = free(0)  # length of the text generated at the end; 0: off
    device: Literal["auto", "cpu", "cuda"] = free("auto")  # auto: CUDA if there is any

    @property
    def trains_head(self) -> bool:
        """False where the objective leaves the LM head out."""
        return self.objective in ("next_token", "policy")


@dataclass(kw_only=True)
class CheckpointConfig:
    every: int = free(0)  # steps between checkpoints; 0: only at the end
    keep: int = free(2)  # number of checkpoints to keep, the newest ones
    # a Hugging Face directory with the initial weights, not needed once a step is saved; None: random weights
    init_from: str | None = None
    # accept an expansion whose copies of an expert are exact; training cannot make them differ
    allow_identical_copies: bool = free(False)


@dataclass(kw_only=True)
class LoggingConfig:
    wandb: Literal["off", "offline", "online"] = free("off")  # offline: written to wandb/, for `wandb sync`
    wandb_project: str = free("octavo")  # the project in wandb
    console: Literal["auto", "rich", "plain", "off"] = free("auto")  # rich: a progress bar; auto: rich on a terminal


@dataclass(kw_only=True)
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    precision: PrecisionConfig = field(default_factory=PrecisionConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    lora: LoraConfig = field(default_factory=LoraConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rl: RlConfig = field(default_factory=RlConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def _leaves(parts: PartsConfig) -> dict[str, Any]:
    return coerce.flatten(coerce.to_dict(parts), coerce.keys(PartsConfig))


# Keys that older runs lack -> the value that changes nothing: a run with it is the same run as one without the key.
BEFORE: dict[str, Any] = {
    "checkpoint.init_from": None,
    "model.vision": None,
    "model.image_token": None,
    "model.signals": None,
    "model.signal_token": None,
    "model.embedding": None,
    "data.sources": {},
    "data.phases": {},
    "data.prefixes": {},
    "data.pairs": {},
    "data.zero_shot": {},
    "data.tokenizer": None,
    "data.min_pixels": 65_536,
    "data.max_pixels": 16_777_216,
    "data.chats": {},
    "data.chat_template": None,
    "data.chat_values": {},
    "data.chat_date": None,
    "data.long_chats": "refuse",
    "data.pack_chats": "best_fit",
    "data.questions": {},
    "train.loss_reduction": "token",
    "precision.accumulate": "fp32",
    "precision.kept": "exact",
    "data.build": "none",
    "train.objective": "next_token",
    "train.contrastive_temperature": 0.07,
    "train.pair_loss": "softmax",
    "optim.adamw_lr_ratio": 1.0,
    "optim.adjust_lr": "match_rms_adamw",
    "optim.ns_steps": 5,
    "optim.ns_dtype": "fp32",
    "lora.target": "none",
    "lora.rank": 16,
    "lora.alpha": 32.0,
    "lora.rslora": False,
    "lora.dropout": 0.0,
    "lora.plus_ratio": 1.0,
    "lora.base": "linears",
    **{f"rl.{key}": value for key, value in vars(RlConfig()).items()},
    **{f"optim.parts.{key}": value for key, value in _leaves(PartsConfig()).items()},
}

# Keys that are gone -> the value that today's runs had for them, which the hash still covers: the same command finds
# the default directory of a run from when the key was there.
REMOVED: dict[str, Any] = {"data.weights": {}}


def is_as_before(key: str, value: Any) -> bool:
    """Return True if older runs lack the key and this value defines the same run as its absence."""
    return key in BEFORE and value == BEFORE[key]


def defining_values(cfg: Config) -> dict[str, Any]:
    """Dotted key -> value of everything that defines the result: all keys that are not marked free, except those for
    which `is_as_before` holds."""
    known, defining = coerce.keys(Config), coerce.keys(Config, resume=("fixed", "named"))
    flat = coerce.flatten(coerce.to_dict(cfg), known)
    return {
        key: value
        for key, value in flat.items()
        if coerce.leaf_of(key, known) in defining and not is_as_before(key, value)
    }


def config_hash(cfg: Config) -> str:
    """sha256 (hex) of `defining_values` and `REMOVED`: equal on all ranks of a run and in all its starts, except those
    that resume with another precision."""
    return coerce.digest({**defining_values(cfg), **REMOVED})
