"""Training in one process or several, for the tests: eight devices in all, killed or not.

Run as a program it reads runs as JSON, one a line, and forks their processes one run after the
other, so that jax is imported once. The answer is a line with the exit statuses.
"""

import json
import os
import signal
import socket
import sys
import traceback
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import adaptax
from adaptax import checkpoint, lowbit, sharding

DEVICES = 8
WIDTH, BATCH = 64, 16
EVERY = 2  # steps between checkpoints


class Run(NamedTuple):
    """A training run.

    Attributes:
        processes: How many.
        out: The file for the parameters at the end.
        steps: Steps of training.
        checkpoints: A directory to save to and to go on from, or "".
        killed: The process that kills itself after as many steps, or -1.
        after: How many.
    """

    processes: int
    out: str
    steps: int = 6
    checkpoints: str = ""
    killed: int = -1
    after: int = 0


def optimizer(params: Any, where: Any) -> tuple[Any, Any]:
    """What is trained with: encoded state, split twice; and the sharding of that state."""
    inner = lowbit.store(adaptax.adamw(1e-2), {"nu": lowbit.uint8()}, min_size=0)
    chained = adaptax.chain(adaptax.clip_by_global_norm(1.0), inner)
    tx = sharding.zero(chained, where, axis="data", min_size=0)
    return tx, sharding.state_sharding(tx, params, where)


def train(run: Run, process: int) -> dict[str, np.ndarray]:
    """The parameters at the end."""
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
    params: Any = {
        "w": np.linspace(-1, 1, WIDTH * WIDTH, dtype=np.float32).reshape(WIDTH, WIDTH),
        "b": np.zeros(WIDTH, np.float32),
    }
    where = sharding.split(params, P(), mesh, axis="fsdp", min_size=0)
    params = jax.device_put(params, where)
    tx, state_where = optimizer(params, where)
    state = jax.jit(tx.init, out_shardings=state_where)(params)
    split = NamedSharding(mesh, P(("data", "fsdp")))

    def loss(params: Any, x: Any) -> Any:
        return jnp.mean(jnp.square(jnp.tanh(x @ params["w"] + params["b"][None]) - 0.5))

    def step(params: Any, state: Any, x: Any) -> Any:
        updates, state = tx.update(jax.grad(loss)(params, x), state, params)
        return adaptax.apply_updates(params, updates), state

    step = jax.jit(step, out_shardings=(where, state_where), donate_argnums=(0, 1))
    saves = checkpoint.Checkpoints(run.checkpoints) if run.checkpoints else None
    start = 0
    if saves is not None and saves.latest is not None:
        like = {"params": params, "state": state}
        start, tree, _ = saves.restore(like)
        params, state = tree["params"], tree["state"]
    for k in range(start, run.steps):
        if process == run.killed and k == run.after:
            os.kill(os.getpid(), signal.SIGKILL)
        x = np.random.default_rng(k).normal(size=(BATCH, WIDTH)).astype(np.float32)
        params, state = step(
            params, state, jax.make_array_from_callback(x.shape, split, x.__getitem__)
        )
        if saves is not None and (k + 1) % EVERY == 0:
            saves.save(k + 1, {"params": params, "state": state})
    if saves is not None:
        saves.close()
    sharding.check_placement(state, state_where)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather((params, state), tiled=True)


def child(run: Run, process: int, port: int) -> None:
    """One process of a run."""
    os.environ["XLA_FLAGS"] = (
        f"--xla_force_host_platform_device_count={DEVICES // run.processes} "
        "--xla_backend_optimization_level=0"
    )
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", run.processes, process)
    result = train(run, process)
    if process == 0:
        leaves = {str(i): x for i, x in enumerate(jax.tree.leaves(result))}
        np.savez(run.out, **leaves)
    jax.distributed.shutdown()


def launch(run: Run) -> list[int]:
    """The exit statuses of a run's processes; when one dies, the others are ended."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    pids: list[int] = []
    for process in range(run.processes):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(run, process, port)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        pids.append(pid)
    statuses: dict[int, int] = {}
    while len(statuses) < len(pids):
        pid, status = os.wait()
        statuses[pid] = os.waitstatus_to_exitcode(status)
        if statuses[pid]:
            for other in pids:
                if other not in statuses:
                    os.kill(other, signal.SIGKILL)
    return [statuses[pid] for pid in pids]


if __name__ == "__main__":
    for line in sys.stdin:
        print("statuses", json.dumps(launch(Run(**json.loads(line)))), flush=True)
