"""`octavo layout`: simulates one rank of a run, or one rank of each pipeline stage, and prints its memory and
collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from launch.arithmetic import arithmetic
from launch.configurations import compose_on
from launch.stages import print_fit, print_stages, refuse_too_large
from trainer.config.command_line import Parser, whole_number
from trainer.config.errors import CommandError
from trainer.config.keys import Config
from trainer.config.memory import ROUTERS


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError` and `ConfigError`."""
    parser.add_overrides(words)
    parser.add_argument("--world", type=whole_number(1), required=True, metavar="N", help="number of ranks in the run")
    parser.add_argument("--rank", type=whole_number(0), metavar="R", help="the rank to simulate (default: 0)")
    parser.add_argument(
        "--stages",
        choices=("some", "all"),
        help="with a pipeline: a table of the first, middle and last stage, or of all (default: some, without --rank)",
    )
    parser.add_argument(
        "--gpu-gb",
        type=whole_number(1),
        metavar="GB",
        help="refuse a layout that does not fit into GPUs of this size with a tenth to spare",
    )
    parser.add_argument(
        "--router",
        choices=tuple(ROUTERS),
        default="uniform",
        help="how unevenly experts are selected; matters with parallel.dispatch=all_to_all (default: uniform)",
    )
    options = parser.read(words)
    if options.rank is not None and options.rank >= options.world:
        allowed = f"0 to {options.world - 1}"
        text = f"--rank={options.rank} is not a rank of --world={options.world}; use {allowed}"
        raise CommandError(text, where="--rank", value=options.rank, allowed=allowed)
    cfg = compose_on(options.world, "--world", options.overrides, options.config_dir)
    if options.gpu_gb is not None:
        refuse_too_large(cfg, options.world, options.gpu_gb)
    if cfg.parallel.pp > 1 and options.rank is None:
        every = options.stages == "all"
        return partial(print_stages, cfg, options.world, options.router, every=every, gpu_gb=options.gpu_gb)
    if options.stages is not None:
        remedy = "drop --rank" if cfg.parallel.pp > 1 else "use parallel.pp=2 or more"
        text = f"--stages is for the table of a pipeline's stages; {remedy}, or drop --stages"
        raise CommandError(text, where="--stages", value=options.stages, allowed=remedy)
    return partial(_print_layout, cfg, options.world, options.rank or 0, options.router, gpu_gb=options.gpu_gb)


def _print_layout(cfg: Config, world: int, rank: int, router: str, *, gpu_gb: int | None) -> int:
    """Print the axes, bytes and collectives of `rank` of `world` ranks. gpu_gb: as for `print_stages`."""
    # These import torch: only now that the configuration is checked.
    from parallel.memory.live import LABELS
    from trainer.run.simulate import simulate_rank

    simulated = simulate_rank(cfg, world, rank, router)
    print(f"rank {rank} of {world}\n\n{'axis':<14}{'ranks':>6}")
    for axis, ranks, what in simulated.layout.rows():
        print(f"{axis:<14}{ranks:>6}  {what}")

    memory, peak = simulated.memory, simulated.peak
    unit, size = ("GB", 1e9) if memory.total >= 1e9 else ("MB", 1e6)
    print(f"\n{'held after backward':<20}{unit:>12}")
    for name, nbytes in (
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("padding", memory.padding),
        ("total", memory.total),
    ):
        print(f"{name:<20}{nbytes / size:>12,.3f}")
    print(f"\n{f'peak, in {peak.where}':<20}{unit:>12}")
    for name in (*LABELS, "total"):
        print(f"{name:<20}{getattr(peak, name) / size:>12,.3f}")
    if peak.host:
        print(f"{'on the host':<20}{peak.host / size:>12,.3f}")
    print(f"\narithmetic of all ranks: {arithmetic(cfg)}")

    if simulated.ran < simulated.micro_batches:
        rest = "whose collectives follow" if cfg.parallel.pp > 1 else "the others are like the second"
        print(f"simulated {simulated.ran} of the step's {simulated.micro_batches} micro-batches; {rest}")
    # Every collective of one kind, whatever its size, is one line.
    kinds = [replace(call, nbytes=0, micro_batch=None) for call in simulated.collectives]
    payload, sent = Counter[object](), Counter[object]()
    for kind, call in zip(kinds, simulated.collectives, strict=True):
        payload[kind] += call.nbytes
        sent[kind] += call.sent
    print(f"\n{'one step':<11}{'collective':<16}{'over':<26}{'ranks':>6}{'calls':>8}{unit:>12}{f'{unit} sent':>12}")
    for kind, calls in Counter(kinds).items():
        print(
            f"{kind.where:<11}{kind.op:<16}{kind.axis:<26}{kind.ranks:>6}{calls:>8}"
            f"{payload[kind] / size:>12,.3f}{sent[kind] / size:>12,.3f}"
        )
    total = sum(call.sent for call in simulated.collectives)
    print(f"{'in all':<59}{len(simulated.collectives):>8}{'':>12}{total / size:>12,.3f}")
    if gpu_gb is not None:
        print_fit(cfg, world, rank, peak.total, gpu_gb)
    return 0
