"""The public surface: what is exported, documented and imported."""

import ast
import doctest
import importlib
import importlib.metadata
import inspect
import itertools
import re
import subprocess
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from support import grads, optax_rules, params, trajectory

import adaptax
from adaptax import _absent
from adaptax.catalog import CATALOG

ROOT = Path(adaptax.__file__).parent
PUBLIC = {n: v for n, v in vars(adaptax).items() if not n.startswith("_")}
PUBLIC = {n: v for n, v in PUBLIC.items() if not isinstance(v, types.ModuleType)}


def is_factory(value: Any) -> bool:
    return hasattr(value, "signature")


FACTORIES = {n: v for n, v in PUBLIC.items() if is_factory(v)}
IN_OPTIMIZERS = {
    n: v for n, v in FACTORIES.items() if v.__module__.startswith("adaptax.optimizers")
}
OPTIMIZERS = {n: v for n, v in IN_OPTIMIZERS.items() if not n.startswith("scale_by_")}
CLASSES = {n: v for n, v in PUBLIC.items() if isinstance(v, type)}


def each(table: dict[str, Any]) -> Any:
    return pytest.mark.parametrize("name", table, ids=str)


def docstring(value: Any) -> str:
    return inspect.getdoc(value) or ""


def test_there_is_something_to_test():
    assert len(OPTIMIZERS) >= 15
    assert {"adam", "rmsprop", "muon"} <= set(OPTIMIZERS)
    assert {"scale_by_adam", "chain", "clip", "linear_schedule"} <= set(FACTORIES)


@each(FACTORIES)
def test_a_factory_documents_its_arguments(name):
    text, parameters = docstring(FACTORIES[name]), inspect.signature(FACTORIES[name]).parameters
    first = text.splitlines()[0]
    assert first.endswith((".", ":")), f"{name} begins with {first!r}"
    if parameters:
        assert "Args:" in text, f"{name} has no Args"
        section = text.split("Args:")[1]
        for parameter in parameters:
            assert f"\n    {parameter}: " in section or f"\n    *{parameter}: " in section, (
                f"{name} does not document {parameter}"
            )


@each(IN_OPTIMIZERS)
def test_an_algorithm_names_its_paper(name):
    assert "References:" in docstring(IN_OPTIMIZERS[name]), name


@each(OPTIMIZERS)
def test_the_first_argument_of_an_optimizer_is_the_learning_rate(name):
    assert next(iter(inspect.signature(OPTIMIZERS[name]).parameters)) == "learning_rate"


@each(CLASSES)
def test_a_class_is_documented(name):
    cls = CLASSES[name]
    assert docstring(cls), name
    assert docstring(cls) != f"{cls.__name__}({', '.join(getattr(cls, '_fields', ()))})"
    for field in getattr(cls, "_fields", ()) if name.endswith("State") else ():
        described = f"\n    {field}: " in docstring(cls) or len(cls._fields) == 1
        assert described, f"{name} does not document {field}"


def documented_beneath(path: Path) -> set[str]:
    """Names that are assigned at the top of a module and followed by a docstring."""
    body, found = ast.parse(path.read_text()).body, set()
    for one, after in itertools.pairwise(body):
        target = getattr(one, "target", None)
        text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(one, ast.AnnAssign) and isinstance(target, ast.Name) and text:
            found.add(target.id)
    return found


def test_every_public_name_is_documented():
    beneath = set().union(*(documented_beneath(path) for path in ROOT.rglob("*.py")))
    typed = {"Params", "OptState", "Updates", "ScalarOrSchedule"}  # aliases that say it
    for name, value in PUBLIC.items():
        own = inspect.isfunction(value) or isinstance(value, type)
        assert (own and docstring(value)) or name in beneath | typed, f"{name} has no docstring"


# The catalogue

entries = pytest.mark.parametrize("entry", CATALOG, ids=lambda e: e.name)


def test_the_catalog_lists_every_optimizer_once():
    names = [e.name for e in CATALOG]
    assert len(set(names)) == len(names)
    assert set(names) == set(OPTIMIZERS)
    transforms = {e.transform.__name__ for e in CATALOG if e.transform}
    assert transforms <= set(PUBLIC)


@entries
def test_an_entry_of_the_catalog_is_exported(entry):
    assert PUBLIC[entry.name] is entry.factory
    assert entry.transform is None or PUBLIC[entry.transform.__name__] is entry.transform
    assert entry.paper


@entries
def test_an_entry_states_the_size_of_the_state(entry):
    leaf = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    state = jax.eval_shape(entry.factory(0.1).init, {"w": leaf})
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    assert entry.bytes_per_parameter == round(size / leaf.size, 2)


@entries
def test_an_entry_states_whether_params_are_needed(entry):
    p = {"w": jnp.ones((4, 4))}
    tx = entry.factory(0.1)
    state = tx.init(p)
    if "params" in entry.needs:
        with pytest.raises(ValueError, match="needs params"):
            jax.eval_shape(tx.update, p, state)
    else:
        jax.eval_shape(tx.update, p, state)


# Modules


def modules() -> list[str]:
    files = [path.relative_to(ROOT.parent).with_suffix("") for path in ROOT.rglob("*.py")]
    names = sorted(".".join(path.parts).removesuffix(".__init__") for path in files)
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings_run(name):
    module = importlib.import_module(name)
    # Wrapped by the import hook, objects hide from doctest's finder; their text does not.
    globs = dict(vars(module))
    finder, runner = doctest.DocTestParser(), doctest.DocTestRunner(verbose=False)
    output: list[str] = []
    for qualified, text in docstrings(Path(str(module.__file__))):
        if find_spec("torch") is None and re.search(r">>> import .*torch", text):
            continue
        test = finder.get_doctest(text, globs, f"{name}.{qualified}", module.__file__, 0)
        if test.examples:
            runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)


def docstrings(path: Path) -> list[tuple[str, str]]:
    kinds = (ast.Module, ast.FunctionDef, ast.ClassDef)
    nodes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, kinds)]
    texts = [(getattr(n, "name", "module"), ast.get_docstring(n)) for n in nodes]
    return [(name, text) for name, text in texts if text]


def test_there_are_examples_in_docstrings():
    texts = [text for path in ROOT.rglob("*.py") for _, text in docstrings(path)]
    assert sum(">>>" in text for text in texts) >= 5


@pytest.mark.parametrize("name", modules())
def test_a_module_says_what_it_is(name):
    assert importlib.import_module(name).__doc__


HEAVY = ("optax", "torch", "matplotlib", "flax", "sklearn", "chex", "beartype", "pandas", "rich")


def test_import_brings_no_other_library():
    code = f"""
import importlib, sys
for name in ("adaptax", "adaptax.catalog", "adaptax.interop", "adaptax.extend"):
    importlib.import_module(name)
    for heavy in {HEAVY}:
        if heavy in sys.modules:
            print(f"import {{name}} imports {{heavy}}")
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


# Names that are not there at import


ON_DEMAND = [path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()]
ON_DEMAND = [name for name in ON_DEMAND if not name.startswith("_")] + ["catalog", "extend"]


def test_public_modules_are_attributes_of_the_package():
    code = f"""
import adaptax, sys
for name in {ON_DEMAND}:
    assert name in dir(adaptax), name
    assert getattr(adaptax, name) is sys.modules["adaptax." + name]
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parent)


def test_type_checkers_see_the_modules():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname for node in imports if node.module is None for alias in node.names}
    loaded = {"optimizers", "transforms", "wrappers"}  # by what is imported from them
    assert set(ON_DEMAND) - loaded <= seen


def public_names(module: Any) -> set[str]:
    return {name for name in dir(module) if not name.startswith("_")}


def test_what_optax_has_and_we_have_not_is_listed():
    here = set(PUBLIC) | {name for name in dir(adaptax) if not name.startswith("_")}
    main, contrib = (public_names(module) - here for module in (optax, optax.contrib))
    assert main == _absent.TRANSFORMATIONS | _absent.SCHEDULES | _absent.OTHERS
    assert contrib - main == _absent.CONTRIB_TRANSFORMATIONS | _absent.CONTRIB_OTHERS
    functions = {getattr(optax, name) for name in _absent.TRANSFORMATIONS | _absent.SCHEDULES}
    functions |= {getattr(optax.contrib, name) for name in _absent.CONTRIB_TRANSFORMATIONS}
    assert all(map(inspect.isfunction, functions))


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "adabelief",
            r"has no adabelief; optax has: optax\.adabelief\(\.\.\.\) goes into adaptax\.",
        ),
        ("sophia", r"optax\.contrib\.sophia\(\.\.\.\) goes into adaptax\.chain and all"),
        ("sgdr_schedule", r"optax\.sgdr_schedule\(\.\.\.\) goes wherever adaptax takes a schedule"),
        ("l2_loss", r"optax\.l2_loss works beside adaptax\.$"),
        ("contrib", r"what adaptax has of optax\.contrib is at its top level"),
        ("adm", r"^module 'adaptax' has no attribute 'adm'$"),
    ],
)
def test_a_missing_name_says_where_it_is(name, text):
    with pytest.raises(AttributeError, match=text) as caught:
        getattr(adaptax, name)
    assert (caught.value.name, caught.value.obj) == (name, adaptax)
    assert not hasattr(adaptax, name)


def test_what_the_error_says_of_transformations_and_schedules_is_so():
    schedule = optax.warmup_constant_schedule(0.0, 1.0, 2)
    with optax_rules():
        for theirs in (optax.rprop(0.1), optax.contrib.ademamix(0.1), optax.zero_nans()):
            tx = adaptax.chain(adaptax.clip(1.0), theirs, adaptax.sgd(schedule))
            trajectory(tx, params(), [grads()])


def test_the_version_is_that_of_the_package():
    assert adaptax.__version__ == importlib.metadata.version("adaptax")
