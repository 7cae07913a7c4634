"""Peak bytes of a rank for routers that spread tokens evenly, unevenly, or send all to the same experts.

    python -m tests.bench.peaks          (make bench-peaks)

Eight gloo ranks each with two of 16 experts; 64 tokens a rank, 8 experts a token. Grouped routing sends every token to
each rank once, by an all-gather; plain top-k sends rows where the router wants them, by an all-to-all. Each line has
the bytes that `octavo layout` predicts for ranks 0 and 7, and those of a real step, counted alike.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from tests.distributed.pool import on_ranks
from tests.trainer.live_run import live_step
from tests.trainer.tiny_run import tiny_config
from trainer.config.keys import Config, ParallelConfig
from trainer.config.memory import ROUTERS
from trainer.run.simulate import simulate_rank

RANKS = 8


def routed(groups: int, tokens: int = 64) -> Config:
    model = {
        "vocab_size": 96, "hidden_size": 32, "num_layers": 2, "num_experts": 16, "experts_per_token": 8,
        "router_groups": groups, "expert_width": 8,
    }  # fmt: skip
    cfg = tiny_config("unused", model=model, micro_batch=1, global_batch=RANKS, loss_chunk=32)
    parallel = ParallelConfig(dp_replicate=1, dp_shard=RANKS, ep=RANKS)
    return replace(cfg, parallel=parallel, data=replace(cfg.data, seq_len=tokens))


def real(cfg: Config, router: str) -> int:
    return live_step(cfg, router)[0].total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=64, help="of each rank (default: 64)")
    tokens = parser.parse_args().tokens
    print("| routing | router | layout, rank 0 | real, rank 0 | layout, rank 7 | real, rank 7 |")
    print("|---|---|---|---|---|---|")
    for groups, name in ((8, "8 groups, all_gather"), (1, "plain top-k, all_to_all")):
        cfg = routed(groups, tokens)
        for router in ROUTERS:
            found = on_ranks(RANKS, real, cfg, router, timeout_s=300.0)
            cells = []
            for rank in (0, RANKS - 1):
                cells += [simulate_rank(cfg, RANKS, rank, router).peak.total, found[rank]]
            print(f"| {name} | {router} | " + " | ".join(f"{cell:,}" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
