"""Runs with workers on a Ray cluster of two nodes, which are processes of this machine. Prints JSON.

python ray_run.py FOLDER    Ray's folder and this checkout are on PYTHONPATH; FOLDER has runs `NAME/run` without Ray
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from tests.trainer.rl.kills.places import Place, act_at
from tests.trainer.rl.toy import run_toy

BODY, HOLDER = "ray::Body", "ray::_Holder"  # Ray's titles of the processes of actors


def actors(title: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().startswith(title.encode()) and owner(path.parent) in NODES:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return sorted(found)


def owner(process: Path) -> int:
    """The raylet that started it."""
    return int((process / "stat").read_text().rpartition(")")[2].split()[1])


NODES: dict[int, str] = {}


def main(folder: Path) -> None:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = cluster.add_node(num_cpus=1)
    for name, node in (("head", cluster.head_node), ("other", other)):
        (raylet,) = node.all_processes["raylet"]
        NODES[raylet.process.pid] = name
    found: dict[str, Any] = {}
    on_ray = (f"rl.ray_address={cluster.address}", "rl.ray_cpus=1")
    environments = (*on_ray, "rl.environment_workers=2", "rl.placement=ray")
    rollouts = (*on_ray, "rl.engine=ray", "rl.rollout_workers=2")

    def note_places() -> None:
        found["nodes"] = sorted(NODES[owner(Path(f"/proc/{pid}"))] for pid in actors(BODY))

    act_at(Place("trainer.rl.workers.placed:PlacedSession.step", 5), note_places)
    act_at(Place("trainer.rl.workers.placed:PlacedSession.step", 20), lambda: os.kill(actors(BODY)[0], signal.SIGKILL))
    died = "reward/workers/died", "reward/workers/asked_again"
    lines = run_toy(folder / "killed environment" / "run", *environments, recipe="rl_tools_toy")
    found["environment"] = [sum(line[name] for line in lines) for name in died]

    act_at(
        Place("trainer.rl.servers.ray_workers:RayWorkers._ask", 2), lambda: os.kill(actors(HOLDER)[0], signal.SIGKILL)
    )
    died = "rollout_workers/died", "rollout_workers/asked_again"
    lines = run_toy(folder / "killed engine" / "run", *rollouts)
    found["engine"] = [sum(line[name] for line in lines) for name in died]

    act_at(
        Place("trainer.rl.workers.placed:PlacedSession.step", 20),
        lambda: cluster.remove_node(other, allow_graceful=False),
    )
    lines = run_toy(folder / "dead node" / "run", *environments, recipe="rl_tools_toy")
    found["node"] = sum(line["reward/workers/died"] for line in lines)
    print(json.dumps(found), flush=True)
    ray.shutdown()
    cluster.shutdown()
    os._exit(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
