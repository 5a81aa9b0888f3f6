"""The Python in the documentation runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "docs/dev/new_algorithm.md",
]


def blocks(page: Path) -> str:
    """All Python of a page, as one program: later blocks use the names of earlier ones."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.S | re.M))


EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("page", [*PAGES, *EXAMPLES], ids=lambda p: p.name)
def test_what_a_page_shows_is_public(page):
    program = page.read_text("utf-8") if page.suffix == ".py" else blocks(page)
    private = [line for line in program.splitlines() if re.search(r"\badaptax\S*\._[a-z]", line)]
    private += re.findall(r"^from adaptax\S* import .*\b_[a-z]\w*", program, re.MULTILINE)
    assert not private


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_of_the_page_runs(page):
    names: dict[str, object] = {}
    exec(compile(blocks(page), str(page), "exec"), names)
    assert "adaptax" in names


def test_the_skeleton_of_a_new_algorithm_is_a_value_that_trains():
    import jax.numpy as jnp

    names: dict = {}
    exec(blocks(ROOT / "docs/dev/new_algorithm.md"), names)
    tx = names["laprop"](0.1)
    assert tx == names["laprop"](0.1)
    step, _ = tx.update(jnp.array([3.0, -5.0]), tx.init(jnp.zeros(2)))
    assert jnp.allclose(step, jnp.array([-0.1, 0.1]))
