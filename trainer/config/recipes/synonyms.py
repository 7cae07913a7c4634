"""Names that other training programs use, and the keys and values that they are here."""

from __future__ import annotations

# Key or value -> its names in Megatron-LM, torchtitan, DeepSpeed, transformers and torch, in lower case.
_NAMES = {
    "parallel.pp": """pipeline_model_parallel_size pipeline_parallel_size pipeline_parallel_degree pipeline_parallel
        pipeline pp_size pp_degree num_pipeline_stages""",
    "parallel.cp": """context_parallel_size context_parallel_degree context_parallel cp_size cp_degree
        sequence_parallel_size ulysses_size sp_size""",
    "parallel.ep": """expert_model_parallel_size expert_parallel_size expert_parallel_degree expert_parallel ep_size
        ep_degree""",
    "parallel.dp_shard": "data_parallel_shard_degree fsdp_size fsdp_degree dp_shard_degree",
    "parallel.dp_replicate": "data_parallel_replicate_degree hsdp_size dp_replicate_degree",
    "parallel.stages_per_rank": """virtual_pipeline_model_parallel_size virtual_pipeline_parallel_size
        num_virtual_stages_per_pipeline_rank num_virtual_stages virtual_stages virtual_pp vpp vpp_size""",
    "parallel.schedule": "pipeline_parallel_schedule pipeline_schedule pp_schedule",
    "parallel.cp_kind": "cp_comm_type cp_type context_parallel_type context_parallel_kind",
    "data.seq_len": "seq_length max_seq_len max_seq_length sequence_length sequence_len",
    "train.steps": "train_iters max_steps num_steps training_steps",
    "train.global_batch": "global_batch_size train_batch_size gbs",
    "train.micro_batch": """micro_batch_size local_batch_size per_device_train_batch_size train_micro_batch_size_per_gpu
        mbs""",
    "train.recompute": """recompute_granularity activation_checkpoint activation_checkpointing gradient_checkpointing
        recompute_activations""",
    "train.offload_activations": "activation_offload activation_offloading offload_activation activations_offload",
    "optim.lr": "learning_rate",
    "optim.clip_norm": "clip_grad grad_clip gradient_clipping max_grad_norm max_norm",
    "optim.warmup_steps": "lr_warmup_iters lr_warmup_steps num_warmup_steps",
    "optim.schedule": "lr_scheduler_type lr_decay_style lr_schedule",
    "optim.offload": "offload_optimizer optimizer_offload optimizer_cpu_offload cpu_offload",
    "optim.offload_params": "offload_param param_offload offload_parameters",
    "optim.nvme_dir": "nvme_path nvme_directory",
    "optim.ns_steps": "muon_num_ns_steps newton_schulz_steps",
    "checkpoint.every": "save_interval save_steps save_every checkpoint_interval",
    "checkpoint.init_from": "pretrained_checkpoint pretrained_model_name_or_path load_from",
    "zbv": "zbvzerobubble schedulezbvzerobubble zb_v",
    "interleaved_zero_bubble": "interleavedzerobubble scheduleinterleavedzerobubble zero_bubble zb zb1p zb_h1",
    "bf16": "bfloat16",
    "fp32": "float32 float",
    "nvme": "disk ssd",
}
_MEANT = {name: meant for meant, names in _NAMES.items() for name in names.split()}
_TENSOR_PARALLEL = """tp tp_size tp_degree tensor_parallel tensor_parallel_size tensor_parallel_degree
    tensor_model_parallel_size sp sequence_parallel expert_tensor_parallel_size etp"""


def meant_by(word: str) -> str | None:
    """The key or value that another program's `word`, with or without a section, means; None for other words."""
    return _MEANT.get(_last(word))


def absent(word: str) -> tuple[str, tuple[str, ...]] | None:
    """(what Octavo lacks and what to use, the keys of that) for another program's key that nothing here means."""
    if _last(word) not in _TENSOR_PARALLEL.split():
        return None
    keys = ("parallel.ep", "parallel.dp_shard", "parallel.cp", "parallel.pp")
    return "there is no tensor parallelism; use parallel.ep, parallel.dp_shard, parallel.cp or parallel.pp", keys


def _last(word: str) -> str:
    return word.rpartition(".")[2].lower().replace("-", "_")
