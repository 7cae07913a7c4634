"""Adapters against the same products written out as dense matrices, in fp64."""

import pytest
import torch

from tests.trainer.model.lora.adapted import build_adapted, written_out
from tests.trainer.model.tiny import assert_close, next_tokens, random_ids, summed_loss
from trainer.config.keys import Config, LoraConfig
from trainer.model.decoder import Decoder
from trainer.model.lora.adapt import adapters, init_adapters, is_b
from trainer.model.lora.linear import Adapter
from trainer.model.ops import TORCH
from trainer.parallelize import parallelize


@pytest.mark.parametrize("target", ["attention", "experts", "all"])
@pytest.mark.parametrize("rslora", [False, True])
def test_gradients_of_every_adapter(target: str, rslora: bool) -> None:
    lora = LoraConfig(target=target, rank=3, alpha=6.0, rslora=rslora)
    model = build_adapted(lora)
    ids = random_ids(model.cfg, 3, 11)
    loss, _ = summed_loss(model, ids, next_tokens(ids))
    loss.backward()
    plain, leaves = written_out(model, 6 / 3**0.5 if rslora else 2.0)
    expected, _ = summed_loss(plain, ids, next_tokens(ids))
    expected.backward()
    assert abs(loss.item() - expected.item()) < 1e-12 * abs(expected.item())
    found = {name: weight.grad for name, weight in adapters(model).items()}
    assert_close(found, {name: leaf.grad for name, leaf in leaves.items()}, 1e-11)
    assert not [name for name, p in model.named_parameters() if p.grad is not None and name not in leaves]


@pytest.mark.slow
@pytest.mark.timeout(600)  # a C++ compiler runs a dozen times
def test_a_compiled_block_is_the_eager_one() -> None:
    lora = LoraConfig(target="all", rank=3, alpha=6.0)
    found = []
    for compiled in (False, True):
        model = build_adapted(lora, dtype=torch.float32, num_layers=1)
        cfg = Config(model=model.cfg, lora=lora)
        cfg.train.compile = compiled
        parallelize(model, None, cfg, "cpu")
        ids = random_ids(model.cfg, 3, 11)
        loss, _ = summed_loss(model, ids, next_tokens(ids))
        loss.backward()
        found.append({name: weight.grad for name, weight in adapters(model).items()} | {"loss": loss.detach()})
    assert_close(found[1], found[0], 1e-5)


def test_start_is_the_base() -> None:
    model = build_adapted(LoraConfig(target="all", rank=4))
    init_adapters(model, 7)
    plain = Decoder(model.cfg).double()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name in plain.state_dict()})
    ids = random_ids(model.cfg, 2, 9)
    assert_close({"hidden": model(ids).hidden}, {"hidden": plain(ids).hidden}, 1e-13)
    for name, weight in adapters(model).items():
        bound = weight.shape[-1] ** -0.5
        assert not weight.any() if is_b(name) else 0.8 * bound < weight.abs().max() <= bound


def test_dropout_is_of_the_adapters_inputs_and_of_training_alone() -> None:
    """With weights that pass inputs on, an output is an input that was dropped, or 1 / (1 - p) times that input."""
    adapter = Adapter(64, 64, 64, scale=1.0, dropout=0.25)
    x = torch.rand(200, 64, generator=torch.Generator().manual_seed(1)) + 1
    with torch.no_grad():
        adapter.a.copy_(torch.eye(64))
        adapter.b.copy_(torch.eye(64))
        assert torch.equal(adapter(TORCH, x), x)
    torch.manual_seed(2)
    found = adapter(TORCH, x).detach()
    dropped = found == 0
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.02)
    assert_close({"kept": found[~dropped]}, {"kept": (x / 0.75)[~dropped]}, 1e-6)
    model = build_adapted(LoraConfig(target="attention", rank=2, dropout=0.25))
    shares = [module.dropout for module in model.modules() if isinstance(module, Adapter)]
    assert shares == [0.25] * 4 * model.cfg.num_layers


@pytest.mark.gpu
def test_bf16_on_a_gpu_is_near_fp32() -> None:
    """Rows of rank 4 have 8 bytes in bf16: the grouped GEMM takes them padded."""
    losses, norms = [], []
    for device, dtype in (("cpu", torch.float32), ("cuda", torch.bfloat16)):
        model = build_adapted(LoraConfig(target="all", rank=4), dtype=dtype).to(device)
        ids = random_ids(model.cfg, 3, 11).to(device)
        loss, _ = summed_loss(model, ids, next_tokens(ids))
        loss.backward()
        grads = [weight.grad for weight in adapters(model).values() if weight.grad is not None]
        assert len(grads) == len(adapters(model))
        losses.append(loss.item())
        norms.append(sum(grad.double().square().sum().item() for grad in grads) ** 0.5)
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert norms[1] == pytest.approx(norms[0], rel=0.2)
