"""Leaves by name: "layers/0/kernel", and patterns over such names."""

import fnmatch
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax

from . import _checks, _tree

PathPattern: TypeAlias = str | re.Pattern[str]
"""A glob over whole names, or a compiled regular expression that matches them whole."""


def path_names(tree: Any, is_leaf: Callable[[Any], bool] = _tree.is_none) -> list[str]:
    """The name of each leaf, None leaves included: its keys with slashes between them.

    Where every leaf is the `value` of a box, as the variables of Flax NNX are, that key is left
    out. The name of a tree that is one leaf is empty.

    >>> path_names({"embed": 1.0, "layers": [{"kernel": 2.0}]})
    ['embed', 'layers/0/kernel']
    """
    return list(_names(jax.tree.structure(tree, is_leaf=is_leaf)))


@functools.lru_cache(maxsize=256)
def _names(structure: Any, present: tuple[bool, ...] | None = None) -> tuple[str, ...]:
    """The names of a structure's leaves; those that are not `present` need not be in a box."""
    tree = structure.unflatten(range(structure.num_leaves))
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    in_box = [len(path) > 1 and path[-1] == _VALUE for path in paths]
    present = (True,) * len(paths) if present is None else present
    if all(boxed or not there for boxed, there in zip(in_box, present, strict=True)):
        paths = [path[:-1] if boxed else path for path, boxed in zip(paths, in_box, strict=True)]
    return tuple(jax.tree_util.keystr(path, simple=True, separator="/") for path in paths)


_VALUE = jax.tree_util.GetAttrKey("value")
_hidden: ContextVar[tuple[str, ...]] = ContextVar("hidden", default=())


@contextmanager
def hiding(names: Sequence[str]) -> Iterator[None]:
    """Leaves that an outer mask hides, each under one hole with others, count as holes inside."""
    token = _hidden.set((*_hidden.get(), *names))
    try:
        yield
    finally:
        _hidden.reset(token)


def _named_leaves(tree: Any, is_hole: Callable[[Any], bool]) -> list[tuple[str, Any]]:
    """The leaves with their names, and a hole for each leaf that is hidden."""
    leaves, structure = jax.tree.flatten(tree, is_leaf=is_hole)
    names = _names(structure, tuple(not is_hole(leaf) for leaf in leaves))
    pairs = list(zip(names, leaves, strict=True))
    hidden = [name for name in _hidden.get() if name not in names]
    if hidden:
        above = {name[:i] for name in hidden for i, c in enumerate(name) if c == "/"} | {""}
        pairs = [(name, x) for name, x in pairs if not (_tree.is_masked(x) and name in above)]
    return pairs + [(name, _tree.MaskedNode()) for name in hidden]


_DIGITS = "\ue000"  # in a glob on its way to a regular expression


@functools.lru_cache(maxsize=1024)
def _expression(pattern: PathPattern) -> tuple[re.Pattern[str], bool]:
    """A pattern as a regular expression, and whether what it matches is wanted."""
    if isinstance(pattern, re.Pattern):
        return pattern, True
    wanted = not pattern.startswith("!")
    choices = []
    for glob in pattern.removeprefix("!").split("|"):
        anywhere = glob.startswith("*/")
        body = fnmatch.translate(glob.removeprefix("*/").replace("{}", _DIGITS))
        body = body.replace(_DIGITS, r"(\d+)")
        choices.append(f"(?:(?s:.*)/)?{body}" if anywhere else body)
    return re.compile("|".join(f"(?:{choice})" for choice in choices)), wanted


def matches(pattern: PathPattern, name: str) -> bool:
    """Whether a pattern matches a leaf's name.

    In a glob, `*` stands for any characters, slashes too, `?` for one, `[ab]` for one of those,
    `{}` for a whole number; a leading `*/` also for nothing; `|` separates alternatives; a leading
    `!` inverts the whole.

    >>> [matches("*/bias|*/scale", name) for name in ("bias", "layers/0/bias", "layers/0/kernel")]
    [True, True, False]
    """
    expression, wanted = _expression(pattern)
    return bool(expression.fullmatch(name)) is wanted


def is_pattern(value: Any) -> bool:
    """Whether a value is a glob or a compiled regular expression of text."""
    return isinstance(value, str) or (
        isinstance(value, re.Pattern) and isinstance(value.pattern, str)
    )


def spelled(pattern: PathPattern) -> str:
    """The text of a pattern."""
    return pattern if isinstance(pattern, str) else pattern.pattern


class Assigned(NamedTuple):
    """A leaf, or what stands in its place, and the number of the pattern that it belongs to."""

    name: str
    leaf: Any
    index: int | None  # None for what needs no pattern


def assigned(
    where: str, patterns: Sequence[PathPattern], tree: Any, is_hole: Callable[[Any], bool]
) -> list[Assigned]:
    """The first pattern that matches each leaf, None leaves and masked ones included.

    Raises:
        ValueError: A leaf is matched by none, or a pattern is the first to match of no leaf. A
            pattern may be for leaves that an outer mask hides (`is_hole`).
    """
    pairs = _named_leaves(tree, is_hole)
    present = tuple(not is_hole(leaf) for _, leaf in pairs)
    found = _first_match(where, tuple(patterns), tuple(name for name, _ in pairs), present)
    return [Assigned(name, leaf, i) for (name, leaf), i in zip(pairs, found, strict=True)]


def first_match(
    where: str, patterns: Sequence[PathPattern], tree: Any, is_hole: Callable[[Any], bool]
) -> list[int | None]:
    """The numbers that `assigned` gives, of the leaves that are not masked out."""
    every = assigned(where, patterns, tree, is_hole)
    return [one.index for one in every if one.leaf is None or not is_hole(one.leaf)]


def number_in(pattern: PathPattern, name: str) -> int:
    """The number that `{}` in a glob stands for in a name that it matches."""
    match = _expression(pattern)[0].fullmatch(name)
    assert match is not None
    return int(next(group for group in match.groups() if group is not None))


@functools.lru_cache(maxsize=256)
def _first_match(
    where: str, patterns: tuple[PathPattern, ...], names: tuple[str, ...], present: tuple[bool, ...]
) -> Sequence[int | None]:
    texts = [spelled(p) for p in patterns]
    hits = [[i for i, p in enumerate(patterns) if matches(p, name)] for name in names]
    rows = list(zip(names, hits, present, strict=True))
    uncovered = [name for name, hit, there in rows if there and not hit]
    if uncovered:
        raise _checks.uncovered(where, texts, uncovered)
    if names:
        for i, text in enumerate(texts):
            if not any(hit[:1] == [i] for hit in hits):
                missed = {name: texts[hit[0]] for name, hit, _ in rows if i in hit}
                raise _checks.matches_nothing(where, text, names, missed)
    return tuple(hit[0] if hit else None for hit in hits)


def selected(where: str, pattern: PathPattern, tree: Any, is_hole: Any) -> list[bool]:
    """For each leaf, None leaves included, whether a pattern matches it.

    Raises:
        ValueError: The pattern (without its `!`) matches none of the leaves, nor of those that an
            outer mask hides.
    """
    pairs = _named_leaves(tree, is_hole)
    expression, _ = _expression(pattern)
    if pairs and not any(expression.fullmatch(name) for name, _ in pairs):
        raise _checks.matches_nothing(where, spelled(pattern), [name for name, _ in pairs])
    return [matches(pattern, name) for name, leaf in pairs if leaf is None or not is_hole(leaf)]


class ByPath:
    """A function of a tree that gives each leaf the value of the first pattern that matches it.

    It compares, hashes and prints by its rules.
    """

    __slots__ = ("rules",)

    def __init__(self, rules: tuple[tuple[PathPattern, Any], ...]):
        self.rules = rules

    def __call__(self, tree: Any) -> Any:
        patterns = [pattern for pattern, _ in self.rules]
        found = first_match("by_path", patterns, tree, _tree.is_hole)
        structure = jax.tree.structure(tree, is_leaf=_tree.is_none)
        return structure.unflatten(None if i is None else self.rules[i][1] for i in found)

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, ByPath) and self.rules == other.rules

    def __hash__(self) -> int:
        return hash(self.rules)

    def __reduce__(self) -> Any:
        return ByPath, (self.rules,)

    def __repr__(self) -> str:
        return "by_path({" + ", ".join(f"{p!r}: {v!r}" for p, v in self.rules) + "})"


def by_path(rules: Mapping[PathPattern, Any] | Sequence[tuple[PathPattern, Any]]) -> ByPath:
    """A function that maps a tree to a tree of values, by patterns over the names of its leaves.

    It goes wherever optax's names take a function of the parameters: as a mask (values True and
    False) or as labels for `partition`.

    Args:
        rules: Patterns and values, in order: a mapping or pairs; the first pattern that matches a
            leaf's name ("layers/0/kernel") wins. A pattern is a glob: `*` stands for any
            characters, slashes too, `?` for one, `[ab]` for one of those, `{}` for a whole
            number; a leading `*/` also for nothing; `|` separates alternatives; a leading `!`
            inverts the whole. Or it is a compiled regular expression that matches the whole name.

    Raises:
        TypeError: The rules are neither a mapping nor pairs, or a pattern is not one.
        ValueError: When called: a leaf that no pattern matches, or a pattern that gets no leaf.

    >>> import jax.numpy as jnp
    >>> decayed = by_path({"*/bias|*/scale": False, "*": True})
    >>> decayed({"bias": jnp.ones(2), "kernel": jnp.ones((2, 2))})
    {'bias': False, 'kernel': True}
    """
    pairs = pairs_of("by_path", "rules", rules)
    for _, value in pairs:
        try:
            hash(value)
        except TypeError:
            wanted = "patterns with hashable values"
            raise _checks.wrong_kind("by_path", "rules", wanted, value) from None
    return ByPath(pairs)


def pairs_of(function: str, name: str, rules: Any) -> tuple[tuple[PathPattern, Any], ...]:
    """Rules as pairs of a pattern and a value, checked."""
    wanted = "a mapping of path patterns, or pairs of a path pattern and a value"
    if isinstance(rules, Mapping):
        rules = list(rules.items())
    if not isinstance(rules, list | tuple) or not rules:
        raise _checks.wrong_kind(function, name, wanted, rules)
    for rule in rules:
        if not isinstance(rule, tuple) or len(rule) != 2 or not is_pattern(rule[0]):
            raise _checks.wrong_kind(function, name, wanted, rule)
    texts = [spelled(pattern) for pattern, _ in rules]
    if len(set(texts)) < len(texts):
        raise _checks.repeated_name(function, texts)
    return tuple((pattern, value) for pattern, value in rules)
