"""The leaves that torch has too, each with what its links are to torch."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..._core import _tree
from ._links import Link, links_of
from ._names import Matched, Names, rows_of
from ._reading import Reading, Unreadable, read


class Leaf(NamedTuple):
    """A leaf that torch has, too.

    Attributes:
        path: Its key path.
        row: Its name there, and its axes.
        links: The links that it goes through.
        reading: What they are to torch.
    """

    path: Any
    row: Matched
    links: tuple[Link, ...]
    reading: Reading

    @property
    def name(self) -> str:
        """Its name here, for errors."""
        return self.row.leaf or "the root"

    def unreadable(self, where: str, why: Unreadable) -> ValueError:
        """Torch has no optimizer that does this."""
        links = ", ".join(dict.fromkeys(link.name for link in self.links))
        return ValueError(
            f"{where}: no optimizer of torch does what tx does with {self.name}, which goes "
            f"through {links}: {why}."
        )


def leaves_of(where: str, tx: Any, state: Any, params: Any, names: Names) -> list[Leaf]:
    """The leaves with a row in `names`; the state has cells.

    Raises:
        ValueError: The links of one can't be read as torch's; or it is complex, and torch keeps
            something else for it.
    """
    rows = rows_of(where, params, names)
    links = links_of(where, tx, state, params)
    paths = jax.tree_util.tree_leaves_with_path(params, is_leaf=_tree.is_none)
    found: list[Leaf] = []
    known: dict[tuple[Link, ...], Reading] = {}
    for (path, x), row, through in zip(paths, rows, links, strict=True):
        if row is None:
            continue
        leaf = Leaf(path, row, through, _NOTHING)
        try:
            if through not in known:
                known[through] = read(through)
                known[through].check_slots()
        except Unreadable as why:
            raise leaf.unreadable(where, why) from None
        leaf = leaf._replace(reading=known[through])
        if jnp.iscomplexobj(x) and leaf.reading.core is not None:
            raise ValueError(
                f"{where}: {leaf.name} is complex. Torch keeps second moments of its real and "
                "imaginary parts, adaptax one of its modulus: there is no way between the two."
            )
        found.append(leaf)
    return found


_NOTHING = read(())
