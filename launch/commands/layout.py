"""`octavo layout`: what one rank of a run of any size holds and sends, found by building it here with nothing in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from trainer.config.compose import compose


def print_layout(overrides: Sequence[str], *, config_dirs: Sequence[str], world: int, rank: int) -> int:
    """The axes, bytes and collectives of `rank` of `world` ranks. Raises `ConfigError`."""
    cfg = compose(overrides, config_dirs=config_dirs, world_size=world)
    from trainer.run.simulate import simulate_rank  # imports torch: only now that the configuration holds

    report = simulate_rank(cfg, world, rank)
    print(f"rank {rank} of {world}\n\n{'axis':<14}{'ranks':>6}")
    for axis, ranks, what in report.layout.rows():
        print(f"{axis:<14}{ranks:>6}  {what}")

    held = report.held
    unit, size = ("GB", 1e9) if held.total >= 1e9 else ("MB", 1e6)
    print(f"\n{'held after backward':<20}{unit:>12}")
    for name, nbytes in (
        ("weights", held.weights),
        ("gradients", held.gradients),
        ("optimizer", held.optimizer),
        ("padding", held.padding),
        ("in all", held.total),
    ):
        print(f"{name:<20}{nbytes / size:>12,.3f}")
    print("activations, and weights while they are gathered, come on top")

    # Every collective of one kind, whatever its size, is one line.
    kinds = [replace(call, nbytes=0) for call in report.collectives]
    payload, sent = Counter[object](), Counter[object]()
    for kind, call in zip(kinds, report.collectives, strict=True):
        payload[kind] += call.nbytes
        sent[kind] += call.sent
    print(f"\n{'one step':<11}{'collective':<16}{'over':<26}{'ranks':>6}{'calls':>8}{unit:>12}{f'{unit} sent':>12}")
    for kind, calls in Counter(kinds).items():
        print(
            f"{kind.where:<11}{kind.op:<16}{kind.axis:<26}{kind.ranks:>6}{calls:>8}"
            f"{payload[kind] / size:>12,.3f}{sent[kind] / size:>12,.3f}"
        )
    total = sum(call.sent for call in report.collectives)
    print(f"{'in all':<59}{len(report.collectives):>8}{'':>12}{total / size:>12,.3f}")
    return 0
