"""The examples run as scripts, draw what they say they draw, and stay short."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

# Arguments that make it short, whether it takes --out, and the least number of figures.
SCRIPTS = {
    "quickstart.py": ([], False, 0),
    "lecture.py": (["--quick"], True, 1),
    "architectures.py": (["--quick"], True, 1),
    "flax_nnx.py": (["--epochs", "1"], False, 0),
    "train_state.py": ([], False, 0),
    "sweep.py": (["--quick"], True, 1),
    "diagnose.py": (["--quick"], True, 5),
    "low_precision.py": (["--quick"], True, 1),
    "distributed.py": (["--quick", "--fresh"], True, 1),
}
LONGEST = {"quickstart.py": 40}


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_example_runs(name, tmp_path):
    import numpy as np
    from matplotlib import image

    arguments, draws, figures = SCRIPTS[name]
    out = ["--out", str(tmp_path)] if draws else []
    flags = [f for f in os.environ["XLA_FLAGS"].split() if "device_count" not in f]
    flags.append("--xla_backend_optimization_level=0")  # compiles fast
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments, *out],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        timeout=300,
        env=os.environ
        | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(EXAMPLES.parent), "MPLBACKEND": "agg"},
    )
    assert result.returncode == 0, f"{name} failed:\n{result.stdout}\n{result.stderr}"
    assert result.stdout.strip(), f"{name} says nothing"
    drawn = sorted(tmp_path.rglob("*.png"))
    assert len(drawn) >= figures, f"{name} drew {drawn}"
    for path in drawn:
        pixels = np.asarray(image.imread(path))[..., :3]
        assert min(pixels.shape[:2]) >= 100, f"{path.name} is {pixels.shape}"
        assert pixels.std() > 0.01, f"{path.name} is blank"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_an_example_is_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= LONGEST.get(path.name, 199), f"{path.name} has {lines} lines"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.name)
def test_an_example_says_what_it_is(path):
    assert path.read_text().lstrip().startswith(('"""', "#!")), path.name


def test_every_script_is_run():
    scripts = {p.name for p in EXAMPLES.glob("*.py") if "__main__" in p.read_text()}
    assert scripts <= set(SCRIPTS), f"not run: {scripts - set(SCRIPTS)}"
