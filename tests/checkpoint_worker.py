"""Processes that the tests of checkpoints kill: savers and a training run.

Run as a program it imports once and then forks a process for each line that it reads; so a test
can start a dozen of them in the time of one import. A line is the name of a job and its arguments
as JSON; the answer is the process' number. An empty line waits for it, and the answer is its exit
status. What a job prints goes to a file.
"""

import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = (512, 1024)  # 2 MB in float32
EVERY = 4  # steps of training between saves
TMP = "orbax-checkpoint-tmp"


def content(step: int) -> dict[str, Any]:
    """What is saved at a step: no two are alike."""
    rng = np.random.default_rng(step)
    return {
        "step": step,
        "w": rng.standard_normal(SHAPE, np.float32),
        "codes": rng.integers(0, 256, SHAPE, np.uint8),
        "many": [rng.standard_normal(3, np.float32) for _ in range(20)],
    }


def blank() -> dict[str, Any]:
    """The structure of `content`."""
    return {
        "step": 0,
        "w": np.zeros(SHAPE, np.float32),
        "codes": np.zeros(SHAPE, np.uint8),
        "many": [np.zeros(3, np.float32)] * 20,
    }


# --- Jobs


def saver(directory: str, background: bool, die: str = "") -> None:
    """Save two hundred steps, and report each that is known to be there.

    Args:
        directory: Where.
        background: Whether saves go on in the background.
        die: Where this process kills itself, from the second save on: before the "commit" of a
            step, before the "retiring" of an old one, amid the "removal" of its files; or
            nowhere.
    """
    from adaptax.checkpoint import Checkpoints

    with Checkpoints(directory, keep=2, background=background) as saves:
        first = 0 if saves.latest is None else saves.latest + 1
        for step in range(first, first + 200):
            saves.save(step, content(step))
            saved = range(first, step + 1)
            _report(saved[:-1] if background else saved)
            if step == first and die:
                _die_at(die)


def _report(saved: Sequence[int]) -> None:
    """Print the last step that is known to be there; a save waits for the one before."""
    if saved:
        print("saved", saved[-1], flush=True)


def _die_at(point: str) -> None:
    removing = False

    def hook(event: str, args: Any) -> None:
        nonlocal removing
        rmtree = event == "shutil.rmtree" and str(args[0]).endswith(".deleted")
        removing = removing or (rmtree and os.path.exists(args[0]))
        moved = [str(path) for path in args[:2]] if event == "os.rename" else ["", ""]
        reached = {
            "commit": TMP in moved[0] and moved[1].split("/")[-1].isdigit(),
            "retiring": "/.deleted/" in moved[1],
            "removal": removing and event == "os.remove",
        }
        if reached[point]:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def trainer(directory: str, cache: str, steps: int, pause: float, background: bool) -> None:
    """Train from the latest checkpoint on, with 8-bit state and bfloat16 parameters.

    The numbers of the last step are written beside the directory.

    Args:
        directory: Of the checkpoints.
        cache: Where compiled programs are kept.
        steps: The last step.
        pause: Seconds between steps.
        background: Whether saves go on in the background.
    """
    import jax
    import jax.numpy as jnp

    import adaptax
    from adaptax import lowbit
    from adaptax.checkpoint import Checkpoints

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    schedule = adaptax.cosine_decay_schedule(1e-2, steps)
    inner = adaptax.chain(adaptax.clip_by_global_norm(1.0), adaptax.adamw(schedule))
    slots = {"mu": lowbit.int8("nu"), "nu": lowbit.uint8()}
    stored = lowbit.store(inner, slots, min_size=1, seed=3)
    tx = adaptax.chain(stored, lowbit.stochastic_rounding(seed=4))

    def init() -> Any:
        shape = jax.random.normal(jax.random.key(0), (8, 16))
        params = {"w": shape.astype(jnp.bfloat16), "v": jnp.ones((16, 1), jnp.bfloat16)}
        return {"params": params, "state": tx.init(params), "key": jax.random.key(9)}

    @jax.jit
    def loss(params: Any, x: Any) -> Any:
        wide = jax.tree.map(lambda p: p.astype(jnp.float32), params)
        return jnp.mean((jnp.tanh(x @ wide["w"]) @ wide["v"] - jnp.sin(x[:, :1])) ** 2)

    def train(tree: Any, step: Any) -> Any:
        key, draw = jax.random.split(tree["key"])
        x = jax.random.normal(jax.random.fold_in(draw, step), (32, 8))
        grads = jax.grad(loss)(tree["params"], x)
        updates, state = tx.update(grads, tree["state"], tree["params"])
        params = adaptax.apply_updates(tree["params"], updates)
        return {"params": params, "state": state, "key": key}

    one = jax.jit(train, donate_argnums=0)
    with Checkpoints(directory, background=background) as saves:
        if saves.latest is None:
            step, tree = 0, jax.jit(init)()
        else:
            step, tree, report = saves.restore(jax.eval_shape(init))
            assert report.exact, report
        print("at", step, flush=True)
        saved: list[int] = []
        while step < steps:
            tree = one(tree, step)
            step += 1
            if step % EVERY == 0:
                saves.save(step, tree)
                saved.append(step)
                _report(saved[:-1] if background else saved)
            time.sleep(pause)
    tree["key"] = jax.random.key_data(tree["key"])
    arrays = [np.asarray(x) for x in jax.tree.leaves(tree)]
    digest = [(x.dtype.name, x.shape, x.tobytes().hex()) for x in arrays]
    Path(directory + ".json").write_text(json.dumps(digest))


def small(step: int) -> dict[str, Any]:
    """What is soon saved: no two steps are alike."""
    return {"step": step, "w": np.full((256, 256), step, np.float32), "b": np.ones(3)}


def rewriter(directory: str, keep: int, seconds: float) -> None:
    """Save as fast as possible."""
    from adaptax.checkpoint import Checkpoints

    with Checkpoints(directory, keep=keep) as saves:
        saves.save(0, small(0))
        saves.wait()
        print("saved 0", flush=True)
        end, step = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            step += 1
            saves.save(step, small(step))
    print("ended", flush=True)


def failing(directory: str, how: str) -> None:
    """Save until four saves have failed in the background; then save once more.

    Args:
        directory: Where.
        how: Whether the directory is "removed" in which a step is written, or the disk is "full":
            no file may be longer than some bytes, other ones at each attempt.
    """
    from adaptax.checkpoint import Checkpoints

    saves, errors = Checkpoints(directory), []
    saves.save(0, small(0))
    saves.wait()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for step in range(1, 30):
        try:
            if how == "full":
                length = (0, 60, 150, 300)[len(errors)]
                resource.setrlimit(resource.RLIMIT_FSIZE, (length, resource.RLIM_INFINITY))
            saves.save(step, small(step))
            for name in os.listdir(directory) if how == "removed" else ():
                if TMP in name:
                    shutil.rmtree(f"{directory}/{name}", ignore_errors=True)
            saves.wait()
        except Exception as error:
            errors.append(type(error).__name__)
        if len(errors) == 4:
            break
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    saves.save(90, small(90))
    saves.close()
    print("\nsaved 90 after", *errors, flush=True)


JOBS = {"saver": saver, "trainer": trainer, "rewriter": rewriter, "failing": failing}


def serve() -> None:
    """Fork a process for each job, and say when it has ended."""
    import jax  # noqa: F401

    from adaptax import checkpoint

    assert checkpoint
    assert "orbax" not in sys.modules, "orbax is imported before it is needed"
    import orbax.checkpoint  # noqa: F401

    assert threading.active_count() == 1
    print("ready", flush=True)
    child = 0
    for line in sys.stdin:
        if not line.strip():
            _, status = os.waitpid(child, 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        job, log, *arguments = json.loads(line)
        child = os.fork()
        if child == 0:
            signal.alarm(60)  # nothing waits for ever
            file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            code = 1
            try:
                JOBS[job](*arguments)
                threading._shutdown()  # type: ignore[attr-defined]  # wait, as at a program's end
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(child, flush=True)


if __name__ == "__main__":
    serve()
