"""A model over eight devices, in one process or several; killed, and gone on with.

A character transformer of 1.1 M parameters. Its parameters are split over a mesh axis of two
(FSDP), its optimizer's state over the other axis of four as well (ZeRO), the batch over both. Every
ten steps all of it is saved; a run goes on from the last save that is whole, with as many
processes as there are then, to the same parameters bit for bit. The devices are this machine's
CPU, eight times; on a cluster, the scheduler starts the processes instead of this script.

    python examples/distributed.py --fresh                      # eight devices of one process
    python examples/distributed.py --fresh --processes 4        # four processes with two each
    python examples/distributed.py --fresh --processes 4 --kill-at 25   # one of them is killed
    python examples/distributed.py --processes 2                # what is left goes on, in two
"""

import argparse
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

DEVICES = 8
STEPS, EVERY = 60, 10


def launch(options: argparse.Namespace) -> int:
    """Start the processes and wait for them, as a scheduler does: if one dies, end all."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={DEVICES // options.processes}"
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    command = [sys.executable, *sys.argv, "--address", address]
    workers = [
        subprocess.Popen([*command, "--process", str(i)], env=environment, stdout=subprocess.PIPE)
        for i in range(options.processes)
    ]
    for worker in workers:
        threading.Thread(target=pass_on, args=(worker,), daemon=True).start()
    pid, status = os.wait()
    for worker in workers:
        if status:
            worker.kill() if worker.pid != pid else None
        elif worker.pid != pid:
            status = worker.wait()
    if status:
        print("A process died. The same command without --fresh and --kill-at goes on.")
    return int(status != 0)


def pass_on(worker: Any) -> None:
    """Print what a process prints, but for what its connections say of themselves."""
    for line in worker.stdout:
        if not re.search(rb"Gloo|peer ranks|^\d*\s*$", line):
            print(line.decode(), end="", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2, 4, 8))
    parser.add_argument("--kill-at", type=int, metavar="STEP", help="kill the last process there")
    parser.add_argument("--fresh", action="store_true", help="forget what was saved")
    parser.add_argument("--quick", action="store_true", help="a small model, few steps")
    parser.add_argument("--out", type=Path, default=Path("results/distributed"))
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--process", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.process is not None:
        train(options)
        return 0
    if options.fresh:
        shutil.rmtree(options.out / "checkpoints", ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    return launch(options)


def train(options: argparse.Namespace) -> None:
    """What each process does; all of them do the same, but for printing."""
    import jax
    import numpy as np
    from jax.sharding import AxisType, NamedSharding
    from jax.sharding import PartitionSpec as P
    from rich.console import Console
    from rich.progress import track

    import adaptax
    from adaptax import checkpoint, sharding
    from adaptax.bench.quality import char

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(options.address, options.processes, options.process)
    first = options.process == 0
    steps, every = (12, 4) if options.quick else (STEPS, EVERY)
    width, depth, context, size = (32, 1, 16, 8) if options.quick else (208, 2, 64, 16)

    # Where things lie: parameters over "fsdp", their state over "data" as well.
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), (AxisType.Auto,) * 2)
    shapes = jax.eval_shape(lambda: char.init(jax.random.key(0), width, depth, context))
    places = sharding.split(shapes, P(), mesh, axis="fsdp", min_size=1024)
    alpha = adaptax.warmup_cosine_decay_schedule(0.0, 2e-3, 5, steps)
    inner = adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adamw(alpha))
    tx = sharding.zero(inner, places, axis="data", min_size=1024)
    state_places = sharding.state_sharding(tx, shapes, places)

    def begin() -> Any:
        params = char.init(jax.random.key(0), width, depth, context)
        return params, tx.init(params)

    params, state = jax.jit(begin, out_shardings=(places, state_places))()
    split, whole = (NamedSharding(mesh, spec) for spec in (P(("data", "fsdp")), P()))

    def loss_of(params: Any, windows: Any) -> Any:
        """Each device gathers the parameters for its windows; it keeps a part of them."""
        return char.loss(jax.lax.with_sharding_constraint(params, whole), windows)

    def step(params: Any, state: Any, windows: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_of)(params, windows)
        updates, state = tx.update(grads, state, params)
        return adaptax.apply_updates(params, updates), state, loss

    step = jax.jit(step, donate_argnums=(0, 1), out_shardings=(places, state_places, whole))
    text, _ = char.text()

    def batch(k: int) -> Any:
        """The windows of step k, however often the run is begun; each process makes its own."""
        starts = np.random.default_rng(k).integers(0, len(text) - context - 1, size)
        windows = text[starts[:, None] + np.arange(context + 1)]
        return jax.make_array_from_callback(windows.shape, split, windows.__getitem__)

    if first:
        print("Parameters:", str(sharding.placement(params)).splitlines()[-1])
        head, *rows, total = str(sharding.placement(state)).splitlines()
        print("State, its largest arrays:", head, *rows[:6], f"In all {total}", sep="\n")
    losses = np.full(steps, np.nan, np.float32)
    with checkpoint.Checkpoints(options.out / "checkpoints") as saves:
        begin_at = saves.latest or 0
        if begin_at:
            like = {"params": params, "state": state, "losses": losses}
            _, tree, report = saves.restore(like)
            params, state, losses = tree["params"], tree["state"], np.array(tree["losses"])
            if first:
                print(f"Going on from step {begin_at}: {report}")
        sharding.check_placement(state, state_places)
        show = track if first else lambda x, **_: x
        console = Console(stderr=True)
        for k in show(range(begin_at, steps), description="steps", console=console):
            if k == options.kill_at and options.process == options.processes - 1:
                os.kill(os.getpid(), signal.SIGKILL)
            params, state, loss = step(params, state, batch(k))
            losses[k] = float(loss)
            if (k + 1) % every == 0 or k + 1 == steps:
                saves.save(k + 1, {"params": params, "state": state, "losses": losses})

    from jax.experimental import multihost_utils

    end = jax.tree.leaves(multihost_utils.process_allgather(params, tiled=True))
    if first:
        print(f"Loss {losses[0]:.3f} at the first step, {losses[-3:].mean():.3f} at the last.")
        digest = hashlib.sha256(b"".join(x.tobytes() for x in end)).hexdigest()[:16]
        print(f"Digest of the parameters: {digest}, however many processes and restarts.")
        print("Figure:", draw(losses, options.out / "loss.png"))
    jax.distributed.shutdown()


def draw(losses: Any, path: Path) -> Path:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
    ax.plot(range(1, len(losses) + 1), losses, color="#0072B2")
    ax.set(xlabel="step", ylabel="cross-entropy of a character")
    ax.grid(color="0.92")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


if __name__ == "__main__":
    sys.exit(main())
