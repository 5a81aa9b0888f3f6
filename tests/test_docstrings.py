"""Docstrings are reStructuredText: what Sphinx would swallow stands in backticks."""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator

import adaptax

NOT_PROSE = (
    r"(?m)^\s*>>> .*(\n(?!\s*\n).*)*",  # doctests
    r"(\.\. math|::)[^\n]*\n(\s*\n)+([ ]+.*\n|\s*\n)*",  # mathematics and literal blocks
    r"(?s)``.+?``|:\w+:`[^`]*`|`[^`]*`",
    r"\*\*[^*\n]+\*\*",  # strong
    r"(?m)^\s*\*{1,2}\w+:",  # the names of arguments, which napoleon escapes
)


def documented() -> Iterator[tuple[str, str]]:
    """The docstrings of all public functions, classes and methods."""
    for module in pkgutil.walk_packages(adaptax.__path__, "adaptax."):
        if module.name.endswith("__main__"):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if name.startswith("_") or getattr(value, "__module__", "") != module.name:
                continue
            inside = vars(value).items() if inspect.isclass(value) else ()
            for inner, member in [("", value), *inside]:
                public = not inner.startswith("_") and (
                    callable(member) or inspect.isroutine(member)
                )
                if public and (text := inspect.getdoc(member)):
                    yield f"{module.name}.{name}.{inner}".rstrip("."), text


def test_no_asterisk_is_taken_for_emphasis():
    found = {}
    for name, text in documented():
        for pattern in NOT_PROSE:
            text = re.sub(pattern, "", text + "\n")
        if "*" in text:
            found[name] = [line for line in text.splitlines() if "*" in line]
    assert not found
