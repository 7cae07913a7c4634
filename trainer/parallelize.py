"""Spread a plain model over the ranks of a run."""

from __future__ import annotations

import logging
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from parallel.blocks import checkpoint_activations, compile_blocks
from parallel.context.base import AttentionCore
from parallel.context.ring import RingAttention
from parallel.context.share import Share
from parallel.context.ulysses import UlyssesAttention
from parallel.dispatch.all_gather import AllGatherDispatch
from parallel.dispatch.all_to_all import AllToAllDispatch
from parallel.dispatch.base import Dispatcher
from parallel.dispatch.local import LocalDispatch
from parallel.dispatch.payload import Cast, Payload
from parallel.errors import Fault
from parallel.memory.kept import KeptActivations
from parallel.mesh import Meshes
from parallel.sharding.fsdp import Policy, place_experts, shard_parameters
from trainer.config.keys import Config
from trainer.config.ranks import DispatchName, RankMap, map_ranks
from trainer.kernels.choose import make_ops
from trainer.model.attention import document_attention
from trainer.model.decoder import Decoder
from trainer.model.frozen.hold import place_scales
from trainer.model.multimodal import Multimodal
from trainer.model.router import Selection
from trainer.model.towers.run_images import SpreadImages
from trainer.precision import DTYPES

log = logging.getLogger(__name__)

# train.recompute -> the method of a block that it recomputes, of those that recompute half a block
PARTS = {"attention": "attend", "experts": "mix"}


def build_meshes(cfg: Config, device_type: str) -> Meshes | None:
    """The meshes of this run; None for a process on its own. Collective over all ranks."""
    if not dist.is_initialized():
        return None
    chosen = _plan(cfg)
    towers = cfg.parallel.balance_towers and cfg.model.vision is not None
    return Meshes.build(chosen.layout, chosen.placement, device_type, towers=towers)


def unavailable(cfg: Config, device: torch.device) -> Fault | None:
    """The reason why ranks on this device cannot share sequences as `cfg` says; None where they can."""
    if cfg.parallel.cp == 1 or cfg.parallel.cp_kind == "ulysses" or device.type == "cpu":
        return None
    if cfg.precision.linears == "bf16":
        return None
    text = (
        f"parallel.cp_kind=ring computes in bf16 on a GPU, and precision.linears={cfg.precision.linears}; use "
        "parallel.cp_kind=ulysses, or a precision with linears in bf16"
    )
    return Fault(text, where="parallel.cp_kind", value="ring", allowed=("ulysses",))


def share_of(meshes: Meshes | None, cfg: Config) -> Share:
    """The part of each sequence that this rank holds."""
    return Share.of_group(cfg.parallel.cp_kind, meshes.cp_group if meshes else None)


def parallelize(model: Decoder, meshes: Meshes | None, cfg: Config, device_type: str) -> Decoder:
    """Spread a plain model on the meta device over the meshes, in place, and log each step with its mesh.

    The order of the steps matters. `meshes` None leaves the model whole. Materialise it afterwards with `to_empty` and
    `init_weights`.
    """
    experts = [layer.moe.experts for layer in model.blocks]
    if meshes is not None:
        place_experts(experts, meshes)
        dispatch = _plan(cfg).dispatch
        for layer in model.blocks:
            layer.moe.dispatcher = _dispatcher(dispatch, meshes, cfg)
        log.info("place experts on the mesh %s; dispatch: %s", _axes(meshes.experts), dispatch)
    place_scales(model)
    if meshes is not None and meshes.cp_group is not None:
        core = _attention_core(meshes.cp_group, cfg)
        for layer in model.blocks:
            layer.attention.core = core
        log.info("share each sequence over cp=%d: %s", core.ranks, cfg.parallel.cp_kind)
    if cfg.train.compile:
        _keep_eager(model, cfg, device_type)
        compile_blocks(model.blocks)
        log.info("compile each of %d blocks", len(model.blocks))
    if cfg.train.recompute != "none":
        part = PARTS.get(cfg.train.recompute)
        kind, method, random = "full" if part else cfg.train.recompute, part or "forward", cfg.lora.dropout > 0
        checkpoint_activations(model.blocks, kind, method, random=random)
        log.info("recompute activations: %s", cfg.train.recompute)
    if isinstance(model, Multimodal) and cfg.train.recompute != "none":
        # Never compiled: whole layers would be again for every size of an image, and halves that take any size gain too
        # little (docs/benchmarks.md).
        checkpoint_activations(model.tower_blocks, "selective" if cfg.train.recompute == "selective" else "full")
    if cfg.train.offload_activations or cfg.precision.kept == "fp8":
        _keep_activations(model, cfg)
    if isinstance(model, Multimodal) and meshes is not None and meshes.tower_group is not None:
        assert cfg.model.vision is not None
        model.run_images = SpreadImages(meshes.tower_group, cfg.model.vision)
        log.info("spread images over %d ranks", meshes.tower_group.size())
    if meshes is not None and meshes.layout.shard > 1:
        linears = [layer.attention for layer in model.blocks]
        units = [*model.blocks, *(model.tower_units if isinstance(model, Multimodal) else ())]
        shard_parameters(model, units, linears, experts, meshes, _policy(cfg))
        log.info("shard dense weights over %s, experts over %s", _axes(meshes.dense), _axes(meshes.expert_dp))
    return model


def _axes(mesh: DeviceMesh) -> str:
    """Such as "dp_replicate=2 dp_shard=4"."""
    return " ".join(f"{name}={size}" for name, size in zip(mesh.mesh_dim_names or (), mesh.shape, strict=True))


def _plan(cfg: Config) -> RankMap:
    return map_ranks(cfg.parallel, cfg.model, dist.get_world_size())


def _dispatcher(name: DispatchName, meshes: Meshes, cfg: Config) -> Dispatcher:
    if meshes.ep_group is None:
        return LocalDispatch()
    if name == "all_to_all":
        return AllToAllDispatch(meshes.ep_group)
    return AllGatherDispatch(
        meshes.ep_group,
        meshes.placement,
        combine=cfg.parallel.combine,
        regather=cfg.parallel.regather,
        overlap=cfg.parallel.overlap,
        payload=_payload(cfg),
    )


def _attention_core(group: dist.ProcessGroup, cfg: Config) -> AttentionCore:
    """One object for all layers: a ring's plan is the same for all of them."""
    return RingAttention(group) if cfg.parallel.cp_kind == "ring" else UlyssesAttention(group, document_attention)


def _payload(cfg: Config) -> Payload:
    precision = cfg.precision
    if precision.payload == "fp8":
        return make_ops(cfg.train.kernels).fp8_payload()
    return Cast(None if precision.payload == precision.linears else DTYPES[precision.payload])


def _keep_selection(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """The inputs of a block, with a `Selection` that the passes that recompute it get too."""
    *rest, expert_ids = inputs
    return (*rest, Selection()) if expert_ids is None and torch.is_grad_enabled() else inputs


def _keep_activations(model: Decoder, cfg: Config) -> None:
    """Keep activations as `train.offload_activations` and `precision.kept` say, the latter those of the text model."""
    offload, inputs = cfg.train.offload_activations, cfg.train.recompute == "full"
    payload = make_ops(cfg.train.kernels).fp8_payload() if cfg.precision.kept == "fp8" else None
    kept = KeptActivations(payload=payload, offload=offload, inputs=inputs)
    if offload and isinstance(model, Multimodal):
        exact = kept if payload is None else KeptActivations(payload=None, offload=True, inputs=inputs)
        for layers in model.tower_layers:
            exact.wrap(layers)
    kept.wrap(model.blocks)
    if payload is not None:
        for layer in model.blocks:
            layer.register_forward_pre_hook(_keep_selection)
    log.info(
        "keep activations %s, precision.kept=%s", "on the host" if offload else "on the device", cfg.precision.kept
    )


def _policy(cfg: Config) -> Policy:
    compute, masters = DTYPES[cfg.precision.linears], torch.float32
    reduce = DTYPES[cfg.precision.reductions]
    accumulate = DTYPES[cfg.precision.accumulate]
    return Policy(
        compute=None if compute == masters else compute,
        reduce=None if compute == masters and reduce == masters else reduce,
        accumulate=None if accumulate == reduce else accumulate,
        # A pipeline's micro-batches overlap: its stages stay gathered for the step.
        reshard_dense=cfg.parallel.reshard_dense and cfg.parallel.pp == 1,
        reshard_experts=cfg.parallel.reshard_experts and cfg.parallel.pp == 1,
    )


def _keep_eager(model: Decoder, cfg: Config, device_type: str) -> None:
    """Keep the compiler out of what it cannot trace: experts on a CPU, which loop over row counts, and frozen ones,
    which choose their products by them; experts in fp32 on CUDA, since the grouped GEMM can be traced in bf16 only;
    dispatchers, whose collectives start in one place and finish in another."""
    for layer in model.blocks:
        moe = layer.moe
        if device_type == "cpu" or cfg.precision.experts != "bf16" or cfg.lora.target != "none":
            moe.experts.forward = torch.compiler.disable(moe.experts.forward)  # type: ignore[method-assign]
        if not isinstance(moe.dispatcher, LocalDispatch):
            moe.dispatcher = torch.compiler.disable(moe.dispatcher)
