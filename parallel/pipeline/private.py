"""A stage of torch's pipelines that keeps only what is in flight. Overrides private methods of torch 2.13's
`PipelineStage`; each has a canary in tests/parallel/pipeline/test_private.py, and a torch without them is refused.

torch's own stage allocates a buffer for every micro-batch of a step, forward and backward, before the first one runs:
at 768 micro-batches of 8,192 x 4,096 bf16 values 51 GB each way. It also keeps what it has received and sent until the
backward pass, which does not read it: 2.1 GB on the first of 32 stages. And it asks the other stages, through their
ranks, whether all know their shapes; here they always do.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import PipelineStage

from parallel.errors import Fault

Run = Callable[[int, Tensor | None], Tensor]

# The methods of torch's stage that are overridden below, with their arguments. 2.12.1 and 2.14.1 have the same ones as
# 2.13.0, with which the tests run; 2.11.0 lacks three.
OVERRIDDEN = {
    "forward_one_chunk": ("fwd_chunk_id", "args", "kwargs", "save_forward_output"),
    "forward_maybe_with_nosync": ("args", "kwargs"),
    "backward_one_chunk": ("bwd_chunk_id", "loss", "full_backward", "last_backward"),
    "_retrieve_recv_activations": ("fwd_chunk_id",),
    "get_fwd_recv_ops": ("fwd_chunk_id",),
    "get_fwd_send_ops": ("fwd_chunk_id",),
    "get_bwd_recv_ops": ("bwd_chunk_id",),
    "get_bwd_send_ops": ("bwd_chunk_id",),
    "backward_weight_one_chunk": ("bwd_chunk_id", "last_backward"),
    "_setup_forward_recv_info": ("num_microbatches", "has_backward"),
    "_create_grad_recv_info": ("act_send_info",),
    "_warmup_forward_vote": ("has_backward", "received_acc"),
    "_warmup_backward_result": ("received_result",),
    "_post_metadata_inference_cleanup": (),
    "backward_maybe_with_nosync": ("backward_type", "bwd_kwargs", "last_backward"),
}
WORKING = "2.12, 2.13 or 2.14"  # versions of torch


def unavailable(base: type = PipelineStage, version: str = torch.__version__) -> Fault | None:
    """The reason why pipelines cannot run with this torch; None where they can. An override that torch does not call
    changes nothing and raises nothing, so each method must be there with its arguments.

    base: torch's stage. version: of torch.
    """
    differ = []
    for name, arguments in OVERRIDDEN.items():
        method = getattr(base, name, None)
        if method is None:
            differ.append(f"{name} is missing")
        elif tuple(inspect.signature(method).parameters)[1:] != arguments:
            differ.append(f"{name} takes other arguments")
    if not differ:
        return None
    text = (
        f"parallel.pp above 1 builds on methods of torch's PipelineStage that differ in torch {version} "
        f"({', '.join(differ)}); use torch {WORKING}, or parallel.pp=1"
    )
    return Fault(text, "torch", version, WORKING)


class _StandIn(torch.autograd.Function):
    """A tensor of x's shape on a single element, whose gradient is x's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.new_empty_strided(x.shape, (0,) * x.ndim)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class _Received(torch.autograd.Function):
    """`values`, whose gradient is that of a leaf of the same shape."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, values: Tensor) -> Tensor:
        return values.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class Stage(PipelineStage):
    """A stage whose forward pass is `run(micro_batch, x)`: x is what the stage before returned, None on the first.

    module: holds the stage's parameters; FSDP's root if they are sharded. shape, dtype: of what travels between
    stages. The last stage returns its loss [1] instead, a tensor of its own and not a view. reduce_each: sum sharded
    gradients over the ranks in each micro-batch's backward pass, which must be a whole one, and not once at the end.
    """

    def __init__(
        self,
        module: nn.Module,
        index: int,
        stages: int,
        run: Run,
        *,
        group: dist.ProcessGroup,
        device: torch.device,
        shape: Sequence[int],
        dtype: torch.dtype,
        reduce_each: bool = False,
    ) -> None:
        travels = torch.empty(*shape, dtype=dtype, device="meta", requires_grad=True)
        loss = torch.empty(1, dtype=dtype, device="meta", requires_grad=True)
        last = index == stages - 1
        super().__init__(
            module,
            index,
            stages,
            device,
            input_args=(travels,) if index else (),
            output_args=(loss if last else travels,),
            group=group,
        )
        self.run, self.reduce_each = run, reduce_each
        self.running = 0  # the micro-batch whose forward pass it is
        self.around: Callable[[int], AbstractContextManager[None]] = lambda _: nullcontext()  # entered for each pass
        self.like = travels
        self._to_send: dict[int, Tensor] = {}  # micro-batch -> what it returned
        self._sent: list[dist.P2POp] = []
        self._received: Tensor | None = None  # for the pass that runs

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        self.running = fwd_chunk_id
        with self.around(fwd_chunk_id):
            output = super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)
        if self.is_last or not output.requires_grad:
            return output
        # The backward pass starts from a tensor that holds nothing, so that the values are free once they are sent.
        _, inputs = self.fwd_cache[fwd_chunk_id]
        stand_in = _StandIn.apply(output)
        self.fwd_cache[fwd_chunk_id] = (stand_in,), inputs
        if self.stage_index_to_group_rank[self.stage_index + 1] == self.group_rank:
            return output.detach()  # for the next stage
        self._to_send[fwd_chunk_id] = output.detach()
        return stand_in

    def forward_maybe_with_nosync(self, *args: Any, **_: Any) -> Tensor:
        values, self._received = self._received, None
        return self.run(self.running, None if values is None else _Received.apply(args[0], values))

    def _retrieve_recv_activations(self, fwd_chunk_id: int) -> tuple[Tensor, ...]:
        """A leaf that holds nothing, whose gradient is sent back. What the stage received is free as soon as autograd
        keeps it in another form, or not at all."""
        (received,) = super()._retrieve_recv_activations(fwd_chunk_id)
        _forget(self.args_recv_info[fwd_chunk_id])
        self._received = received.detach()
        leaf = received.new_empty_strided(received.shape, (0,) * received.ndim)
        return (leaf.requires_grad_(received.requires_grad),)

    def backward_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        self._sent.clear()  # Schedule1F1B has started these, but would hold them, and the values, until the next ones
        with self.around(bwd_chunk_id):
            super().backward_one_chunk(bwd_chunk_id, *args, **kwargs)
        _forget(self.grad_recv_info.get(bwd_chunk_id, ()))

    def backward_maybe_with_nosync(self, backward_type: Any, *args: Any, **kwargs: Any) -> Any:
        module = self.submod
        if not (self.reduce_each and isinstance(module, FSDPModule)):
            return super().backward_maybe_with_nosync(backward_type, *args, **kwargs)
        module.set_is_last_backward(False)
        module.set_reshard_after_backward(False)
        module.set_requires_gradient_sync(True)
        self.submod = nn.Identity()  # torch would turn the reduction off; it reads nothing else of it
        try:
            return super().backward_maybe_with_nosync(backward_type, *args, **kwargs)
        finally:
            self.submod = module

    def backward_weight_one_chunk(self, bwd_chunk_id: int, *args: Any, **kwargs: Any) -> None:
        with self.around(bwd_chunk_id):
            super().backward_weight_one_chunk(bwd_chunk_id, *args, **kwargs)

    # ---- buffers are made when they are about to be filled

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        self._allocate(self.args_recv_info[fwd_chunk_id], grad=self.has_backward)
        return super().get_fwd_recv_ops(fwd_chunk_id)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        kept = self.fwd_cache[fwd_chunk_id]
        if (values := self._to_send.pop(fwd_chunk_id, None)) is None:
            return super().get_fwd_send_ops(fwd_chunk_id)
        self.fwd_cache[fwd_chunk_id] = (values,), kept[1]
        self._sent = super().get_fwd_send_ops(fwd_chunk_id)
        self.fwd_cache[fwd_chunk_id] = kept
        return self._sent

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if self.has_backward and not self.is_last:
            self._allocate(self.grad_recv_info[bwd_chunk_id], grad=False)
        return super().get_bwd_recv_ops(bwd_chunk_id)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        if self.has_backward and not self.is_first:
            # Autograd may hand out an expanded gradient, which cannot be sent.
            grads = self.bwd_cache[bwd_chunk_id]
            self.bwd_cache[bwd_chunk_id] = tuple(grad if grad is None else grad.contiguous() for grad in grads)
        return super().get_bwd_send_ops(bwd_chunk_id)

    def _allocate(self, expected: Sequence[Any], *, grad: bool) -> None:
        for info in expected:
            if not info.is_root_arg and info.buffer is None:
                info.buffer = torch.empty(self.like.shape, dtype=self.like.dtype, device=self.device)
                info.buffer.requires_grad_(grad)

    def _setup_forward_recv_info(self, num_microbatches: int, has_backward: bool) -> None:
        self.args_recv_info.clear()  # of a schedule for another number of micro-batches
        super()._setup_forward_recv_info(1, has_backward)
        (first,) = self.args_recv_info.values()
        _forget(first)
        self.args_recv_info = {n: tuple(map(copy.copy, first)) for n in range(num_microbatches)}

    def _create_grad_recv_info(self, act_send_info: dict[int, Any]) -> tuple[Any, ...]:
        made = super()._create_grad_recv_info(act_send_info)
        _forget(made)
        return made

    # ---- all stages know their shapes

    def _warmup_forward_vote(self, has_backward: bool, received_acc: Tensor | None = None) -> Tensor:
        return _all_static()

    def _warmup_backward_result(self, received_result: Tensor | None = None) -> Tensor:
        return _all_static()

    def _post_metadata_inference_cleanup(self) -> None:
        """Nothing: no pass has run to find them. torch frees the gathered weights here, before the first step."""


def _all_static() -> Tensor:
    # From a number at each call: a simulated rank's tensors have values only if made so inside the simulation.
    return torch.tensor([1], dtype=torch.int32)


def _forget(expected: Sequence[Any]) -> None:
    for info in expected:
        if not info.is_root_arg:
            info.buffer = None
