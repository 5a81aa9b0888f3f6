"""The benchmark suite runs, measures what it says, and writes what it promises.

No test here looks at how fast anything is.
"""

import json
import math
import sys
from importlib.util import find_spec

import jax
import numpy as np
import pytest

from adaptax import bench
from adaptax.bench import __main__ as command
from adaptax.bench import _accuracy, _probe, _problems, _report, _suite, _sweep, _timing

TINY = bench.Settings(repeats=1, quick=True)
BOTH = {"adaptax", "optax"}
WITH_TORCH = find_spec("torch") is not None


@pytest.fixture(autouse=True)
def _leave_jax_alone(monkeypatch):
    monkeypatch.setattr(jax, "clear_caches", lambda: None)  # the other tests' are kept
    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        yield
    jax.config.update("jax_enable_compilation_cache", True)


def check(rows, libraries=BOTH):
    for row in rows:
        assert set(row.samples) >= libraries, row.name
        assert all(math.isfinite(x) and x >= 0 for s in row.samples.values() for x in s)
        assert len({len(s) for s in row.samples.values()}) == 1
    written = json.loads(json.dumps(_report.as_dict(rows, TINY), allow_nan=False))
    assert written["format"] == 1
    assert {"python", "versions", "cpu_count", "backend"} <= set(written["environment"])
    assert [r["quantity"] for r in written["rows"]] == [r.quantity for r in rows]
    for r in written["rows"]:
        assert set(r["medians"]) == set(r["samples"])
    assert _report.table(rows).row_count == len(rows)
    return {row.quantity: row for row in rows}


def test_trace():
    rows = check(_suite.trace(TINY, leaves=20))
    assert list(rows) == ["trace + lower", "trace + lower, cleared", "module text"]


def test_eager():
    (row,) = check(_suite.eager(TINY, leaves=20)).values()
    assert (row.name, row.unit) == ("eager adamw, 2 leaves", "ms")


@pytest.mark.parametrize(("optimizer", "floor"), [("adamw", 28), ("rmsprop", 20)])
def test_step(optimizer, floor):
    rows = check(_suite.step(TINY, optimizer=optimizer, tree="16M"))
    assert f"floor {floor} B / time" in rows
    assert len(rows["time"].samples["adaptax"]) == TINY.many
    assert rows["bytes accessed"].medians["adaptax"] >= floor
    assert ("torch" in rows["time"].samples) == (optimizer == "adamw" and WITH_TORCH)


@pytest.mark.parametrize("tree", _suite.STEP_TREES)
def test_trees_of_the_step(tree):
    full, quick = (make() for make in _suite.STEP_TREES[tree])
    assert _problems.count(full) > 1_000_000 > 100_000 > _problems.count(quick)
    assert jax.tree.structure(full).num_leaves == {"16M": 1, "gpt2": 148, "small": 800}[tree]


def test_without_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    rows = check(_suite.triad(TINY), {"jax", "numpy"})
    assert "torch" not in rows["12 B / time"].samples
    (row, *_) = _accuracy.ulp(TINY, optimizer="rmsprop", b2=0.9)
    assert row.note == "torch is not installed"


def test_triad():
    check(_suite.triad(TINY), {"jax", "numpy", *["torch"] * WITH_TORCH})


def test_imports():
    check(_suite.imports(TINY))


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop"])
def test_ulp(optimizer):
    rows = check(_accuracy.ulp(TINY, optimizer=optimizer, b2=0.999))
    assert list(rows) == [f"error at step {t}" for t in (1, 2, 10, 100)]
    assert all(row.p99[k] >= row.medians[k] for row in rows.values() for k in row.samples)
    assert all(row.medians["adaptax"] <= 3 for row in rows.values())


def test_ulps_counts_units_in_the_last_place():
    exact = np.array([1.0, -2.0, 0.75])
    updates = np.array([1.0 + 2**-23, -2.0, 0.75 - 2**-23], np.float32)
    np.testing.assert_array_equal(_accuracy.ulps(updates, exact), [1, 0, 2])


def test_probe():
    (row,) = check(_probe.probe(TINY)).values()
    assert set(row.samples) == {"adaptax", "optax"}
    assert "of the time without the probe" in row.note


def test_sweep():
    rows = check(_sweep.digits_sweep(TINY))
    assert list(rows) == [
        "sweep, compiled / scans, compiled",
        "sweep, compiled / loops, compiled",
        "sweep, compiled / scans, built",
        "sweep, anew / scans, built",
    ]
    assert "from 4 runs" in rows["sweep, compiled / loops, compiled"].note


def test_gpt2_is_gpt2():
    tree = _problems.gpt2()
    assert len(jax.tree.leaves(tree)) == 148
    assert _problems.count(tree) == 124_439_808


def test_interleaving_takes_turns():
    taken = []
    measurements = {name: lambda name=name: taken.append(name) or 2.0 for name in "ab"}
    samples = _timing.interleave(measurements, 2, warmup=1)
    assert samples == {"a": [2000.0, 2000.0], "b": [2000.0, 2000.0]}
    assert taken == list("ab" + "ba" + "ab")


def test_ratio_is_the_median_of_pairs():
    row = bench.Row("x", "time", "ms", {"adaptax": [1.0, 4.0, 9.0], "optax": [1.0, 2.0, 3.0]})
    assert row.ratio() == 2.0
    assert row.ratio("torch") is None


def test_command(tmp_path, capsys):
    path = tmp_path / "rows.json"
    arguments = ["--only", "triad", "trace-50", "--quick", "--repeats", "1", "--json", str(path)]
    assert command.main(arguments) == 0
    assert "trace adamw, 5 leaves" in capsys.readouterr().out
    written = json.loads(path.read_text())
    assert {r["name"].split()[0] for r in written["rows"]} == {"trace", "triad,"}
    assert written["settings"] == {"repeats": 1, "quick": True}


def test_command_names_the_benchmarks(capsys):
    with pytest.raises(SystemExit):
        command.main(["--only", "nothing"])
    assert "trace-50" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["optax", "rich.progress"])
def test_command_names_the_extra(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert command.main(["--only", "trace-50", "--quick"]) == 1
    assert "pip install 'adaptax[bench]'" in capsys.readouterr().err
