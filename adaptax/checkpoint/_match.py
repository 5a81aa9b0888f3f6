"""Which leaf of a checkpoint belongs to which leaf of a tree, where the optimizer has changed.

A link more in a chain shifts the numbers of the others; a wrapper, or a group of `partition`, puts
names before them. What stays is the state that a leaf is a field of, and its path from there:
"mu/layers/0/w". So states are recognized by their leaves, all of them, and only where a state has
changed itself leaf by leaf.
"""

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ._names import Names, in_order

Shape = tuple[int, ...]


class Spot(NamedTuple):
    """A leaf, as far as it matters here.

    Attributes:
        names: Its path.
        owner: How many of the names lead to the state that it is a field of, or None.
        shape: Its shape.
        rounding: Whether it is the count that `lowbit.store` rounds by.
    """

    names: Names
    owner: int | None
    shape: Shape
    rounding: bool

    @property
    def state(self) -> Names:
        """The path of the state."""
        return self.names[: self.owner]

    @property
    def tail(self) -> Names:
        """The path from there: the field, and the parameter's path."""
        return self.names[self.owner :]

    @property
    def kind(self) -> Hashable:
        """What two leaves must have in common to be the same one."""
        return self.tail, self.shape, self.rounding

    @property
    def is_number(self) -> bool:
        """Whether it is a number of the whole state, such as a count."""
        return len(self.tail) == 1 and self.shape == ()


def match(
    wanted: Sequence[Spot], there: Mapping[Names, tuple[Shape, bool]]
) -> dict[Names, tuple[Names, ...]]:
    """For each wanted leaf that is there its path; several, if one of some equal ones will do.

    Args:
        wanted: The leaves of the tree.
        there: Those of the checkpoint by path: shape, and whether it is a count for rounding.
    """
    found: dict[Names, Names] = {}
    loose = [spot for spot in wanted if spot.owner is None]
    for spot in loose:  # parameters and the like: by path, or not at all
        if spot.names in there and there[spot.names][0] == spot.shape:
            found[spot.names] = spot.names
    owned = [spot for spot in wanted if spot.owner is not None]
    owned.sort(key=lambda spot: in_order(spot.names))
    taken = {spot.names for spot in loose}
    saved = _with_owners(owned, {k: v for k, v in there.items() if k not in taken})
    _pair_states(owned, saved, found)
    _pair_leaves(owned, saved, found)
    one = {names: (source,) for names, source in found.items()}
    return {**one, **_numbers(owned, saved, found)}


def _with_owners(wanted: Iterable[Spot], there: Mapping[Names, tuple[Shape, bool]]) -> list[Spot]:
    """The leaves of the checkpoint, with the states that their paths suggest."""
    tails = {spot.tail for spot in wanted}
    owners: dict[Names, int | None] = {}
    for names in there:
        cuts = range(len(names))
        owners[names] = next((i for i in cuts if names[i:] in tails), None)
    states = {names[:cut] for names, cut in owners.items() if cut is not None}
    for names, cut in owners.items():
        if cut is None:  # a field that no wanted state has
            longer = (i for i in range(len(names) - 1, -1, -1) if names[:i] in states)
            owners[names] = next(longer, None)
    spots = (Spot(names, owners[names], *there[names]) for names in there)
    return sorted(spots, key=lambda spot: in_order(spot.names))


def _pair_states(wanted: list[Spot], saved: list[Spot], found: dict[Names, Names]) -> None:
    """Pair states that have the same leaves."""
    mine, theirs = _states(wanted), _states(saved)
    for kind in dict.fromkeys(kind for kind in mine.values()):
        here = [path for path in mine if mine[path] == kind]
        there = [path for path in theirs if theirs[path] == kind]
        pairs = dict(_pairs(_by_frame(here, here), _by_frame(there, there)))
        for spot in wanted:
            if spot.state in pairs:
                found[spot.names] = pairs[spot.state] + spot.tail


def _states(spots: Iterable[Spot]) -> dict[Names, Hashable]:
    """What tells each state from others, by path."""
    kinds: dict[Names, set[Hashable]] = defaultdict(set)
    for spot in spots:
        if spot.owner is not None:
            kinds[spot.state].add(spot.kind)
    return {path: frozenset(of) for path, of in kinds.items()}


def _pair_leaves(wanted: list[Spot], saved: list[Spot], found: dict[Names, Names]) -> None:
    """Pair what is left leaf by leaf, but for the numbers of a whole state.

    A count belongs to the averages beside it; alone it says nothing (see `_numbers`).
    """
    arrays = {spot.state for spot in wanted if not spot.is_number}
    sources = set(found.values())
    mine, theirs = defaultdict(list), defaultdict(list)
    for spot in wanted:
        if spot.names not in found and not (spot.is_number and spot.state in arrays):
            mine[spot.kind].append(spot)
    for spot in saved:
        if spot.owner is not None and spot.names not in sources:
            theirs[spot.kind].append(spot)
    for kind, spots in mine.items():
        here, there = (
            _by_frame([s.names for s in side], [s.state for s in side])
            for side in (spots, theirs[kind])
        )
        found.update(_pairs(here, there))


Frames = dict[Names, list[Names]]
"""Paths by what remains of those of their states without the numbers of links."""


def _by_frame(paths: Iterable[Names], states: Iterable[Names]) -> Frames:
    frames: Frames = defaultdict(list)
    for path, state in zip(paths, states, strict=True):
        frames[tuple(n for n in state if not n.isdecimal())].append(path)
    return frames


def _pairs(mine: Frames, theirs: Frames) -> Iterator[tuple[Names, Names]]:
    """Pairs of paths to things that look alike.

    Those that differ in the numbers of links alone go in their order, if there are as many here
    as there, and else those with the same path. Then those where names were put between those of
    the other, if it is clear which. Then what is left, if it is one here and one there.
    """
    mine, theirs = dict(mine), dict(theirs)
    for frame in mine.keys() & theirs.keys():
        here, there = mine.pop(frame), theirs.pop(frame)
        if len(here) == len(there):  # both in the order of their paths
            yield from zip(here, there, strict=True)
        else:
            yield from ((path, path) for path in here if path in there)
    near = {a: [b for b in theirs if _within(a, b) or _within(b, a)] for a in mine}
    for a, others in near.items():
        if len(others) == 1 and sum(others[0] in of for of in near.values()) == 1:
            here, there = mine[a], theirs[others[0]]
            if len(here) == len(there):
                yield from zip(mine.pop(a), theirs.pop(others[0]), strict=True)
    rest, others = (list(itertools.chain(*side.values())) for side in (mine, theirs))
    if len(rest) == len(others) == 1:
        yield rest[0], others[0]


def _within(a: Names, b: Names) -> bool:
    """Whether a is b with names left out."""
    names = iter(b)
    return all(n in names for n in a)


def _numbers(
    wanted: list[Spot], saved: list[Spot], found: Mapping[Names, Names]
) -> dict[Names, tuple[Names, ...]]:
    """The numbers of whole states, such as counts: from the states that their arrays are from.

    A state may be split (then both parts have its count), or merged (then the counts of all will
    do, if they are equal). A count for rounding that is new is the first one inside.
    """
    shapes = {spot.names: spot.shape for spot in saved}
    origins = {
        spot: found[spot.names][: len(found[spot.names]) - len(spot.tail)]
        for spot in wanted
        if spot.names in found
    }
    result = {}
    for spot in wanted:
        if spot.names in found or not spot.is_number:
            continue
        depth = len(spot.state)
        near = (
            origin + spot.tail
            for other, origin in origins.items()
            if other.state == spot.state or (spot.rounding and other.names[:depth] == spot.state)
        )
        sources = dict.fromkeys(source for source in near if shapes.get(source) == spot.shape)
        if sources:
            result[spot.names] = tuple(sources)[: 1 if spot.rounding else None]
    return result
