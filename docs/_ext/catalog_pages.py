"""Write one page per entry of `adaptax.catalog.CATALOG`, and their index, before a build."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

FOLDER = "optimizers"


def _text(text: str) -> str:
    """Escape Markdown, and link arXiv identifiers."""
    text = re.sub(r"([\\`*_{}\[\]<>|$])", r"\\\1", text)
    return re.sub(r"arXiv:(\d{4}\.\d{4,5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _codes(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in sorted(words)) or "—"


def _autofunction(path: str, documented: set[str]) -> str:
    """An autodoc directive; only a function's first appearance goes into the index."""
    option = "   :no-index:\n" if path in documented else ""
    documented.add(path)
    return f"```{{eval-rst}}\n.. autofunction:: {path}\n{option}```\n"


def _page(entry: Any, documented: set[str]) -> str:
    parts = [
        f"# {_text(entry.name)}\n",
        "| | |\n"
        "|:--|:--|\n"
        f"| Paper | {_text(entry.paper)} |\n"
        f"| State bytes per parameter | {entry.bytes_per_parameter:g} |\n"
        f"| Needs | {_codes(entry.needs)} |\n"
        f"| Tags | {_codes(entry.tags)} |\n",
        _autofunction(f"adaptax.{entry.name}", documented),
    ]
    transform = getattr(entry, "transform", None)
    if transform is not None:
        parts.append("## Transform\n")
        parts.append(_autofunction(f"adaptax.{transform.__name__}", documented))
    return "\n".join(parts)


def _index(entries: Iterable[Any]) -> str:
    entries = list(entries)
    rows = "".join(
        f"| [{_text(entry.name)}]({entry.name}.md) | {_text(entry.paper)} "
        f"| {entry.bytes_per_parameter:g} | {_codes(entry.needs)} | {_codes(entry.tags)} |\n"
        for entry in entries
    )
    names = "".join(f"{entry.name}\n" for entry in entries)
    return (
        "# Optimizers\n\n"
        "| Name | Paper | State bytes per parameter | Needs | Tags |\n"
        "|:--|:--|--:|:--|:--|\n"
        f"{rows}\n"
        f"```{{toctree}}\n:hidden:\n\n{names}```\n"
    )


def write_pages(app: Sphinx) -> None:
    """Bring the generated folder in line with the catalogue, touching only what changed."""
    from adaptax.catalog import CATALOG

    documented: set[str] = set()
    pages = {f"{entry.name}.md": _page(entry, documented) for entry in CATALOG}
    pages["index.md"] = _index(CATALOG)

    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    for stale in folder.glob("*.md"):
        if stale.name not in pages:
            stale.unlink()
    for name, content in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the generator."""
    app.connect("builder-inited", write_pages)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
