"""Several processes over loopback: the run of one, also after a process was killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import Run

from adaptax.checkpoint import Checkpoints

WORKER = Path(__file__).parent / "processes.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A function that does a run and returns its exit statuses and what it ends with."""
    path = os.pathsep.join([str(WORKER.parent.parent), *os.environ.get("PYTHONPATH", "").split()])
    log = tmp_path_factory.mktemp("processes") / "stderr"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
        ) as worker,
    ):
        assert worker.stdin is not None and worker.stdout is not None
        # Gloo talks on stdout, too.
        answers = (line for line in worker.stdout if line.startswith("statuses "))

        def run(processes: int, **options):
            out = tmp_path_factory.mktemp("run") / "end.npz"
            job = Run(processes, str(out), **options)
            print(json.dumps(job._asdict()), file=worker.stdin, flush=True)
            statuses = json.loads(next(answers).removeprefix("statuses "))
            if any(status > 0 for status in statuses):
                pytest.fail(log.read_text()[-3000:])
            return statuses, dict(np.load(out)) if out.exists() else None

        yield run


@pytest.fixture(scope="module")
def alone(run):
    """The run in one process."""
    statuses, end = run(1)
    assert statuses == [0] and end is not None
    return end


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].tobytes() == other[name].tobytes(), name


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_do_what_one_does(run, alone, processes):
    statuses, end = run(processes)
    assert statuses == [0] * processes
    assert_same(end, alone)


def test_a_killed_process_and_a_restart_with_other_ones(run, alone, tmp_path):
    """What was saved in the background is the step before at least; four end as one without.

    They begin before the latest step, which is damaged.
    """
    directory = str(tmp_path / "checkpoints")
    statuses, end = run(2, checkpoints=directory, killed=1, after=5)
    assert statuses == [-signal.SIGKILL] * 2 and end is None
    latest = Checkpoints(directory).latest
    assert latest in (2, 4)
    damaged = max(Path(directory, str(latest)).rglob("*process_1/d/*"), key=os.path.getsize)
    damaged.write_bytes(damaged.read_bytes()[::-1])  # read by one of the four; all leave it out
    statuses, end = run(4, checkpoints=directory)
    assert statuses == [0] * 4
    assert_same(end, alone)
    assert Checkpoints(directory).steps == (2, 4, 6)
    assert not list(Path(directory).rglob("_CHECKSUMS.*"))
