"""The links of a parameter, read as one of torch's optimizers: where its slots are, its numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ..._core import identity, set_to_zero
from ...optimizers._adam import scale_by_adam
from ...optimizers._amsgrad import scale_by_amsgrad
from ...optimizers._rms import scale_by_rms, scale_by_stddev
from ...transforms import (
    add_decayed_weights,
    scale,
    scale_by_learning_rate,
    scale_by_schedule,
    trace,
)
from ._links import Link

# Fields of a state by the names that torch has for them.
SLOTS: dict[Any, dict[str, str]] = {
    scale_by_adam: {"exp_avg": "mu", "exp_avg_sq": "nu"},
    scale_by_amsgrad: {"exp_avg": "mu", "exp_avg_sq": "nu", "max_exp_avg_sq": "nu_max"},
    scale_by_rms: {"square_avg": "nu"},
    scale_by_stddev: {"square_avg": "nu", "grad_avg": "mu"},
    trace: {"momentum_buffer": "trace"},
}
SQUARES = ("exp_avg_sq", "max_exp_avg_sq", "square_avg")
"""Those that are averages of squares, which are not negative."""
ADAM, RMS = (scale_by_adam, scale_by_amsgrad), (scale_by_rms, scale_by_stddev)
FACTORS = {
    scale: "step_size",
    scale_by_schedule: "step_size_fn",
    scale_by_learning_rate: "learning_rate",
}
KNOWN = {*SLOTS, *FACTORS, add_decayed_weights, identity, set_to_zero}


class Unreadable(Exception):
    """Why the links are not one of torch's optimizers."""


class Slot(NamedTuple):
    """Where an array of torch's is: that of a link's field is so many times as large."""

    link: Link
    field: str
    times: float = 1.0


@dataclass(frozen=True)
class Reading:
    """What torch's optimizer of a parameter would be.

    The update u begins as ``front * g + decay * p``, is divided by what ``core`` keeps, multiplied
    by ``between``, summed up by ``momentum``; then ``decoupled * p`` is added, and at last it is
    multiplied by ``after``.
    """

    kind: str  # "adam", "rmsprop", "sgd"
    core: Link | None
    momentum: Link | None
    front: float
    decay: float
    between: float
    decoupled: float
    after: float
    changing: bool  # whether `between` follows a schedule
    frozen: bool

    @property
    def slots(self) -> dict[str, Slot]:
        """Where torch's arrays are, by torch's names for them."""
        slots: dict[str, Slot] = {}
        if self.core is not None:
            fields = SLOTS[self.core.factory]
            slots = {name: Slot(self.core, field) for name, field in fields.items()}
        if self.momentum is not None:
            times = self.between if self.kind == "rmsprop" else 1.0
            slots["momentum_buffer"] = Slot(self.momentum, "trace", times)
        return slots

    def check_slots(self) -> None:
        """Refuse slots that mean something else than torch's.

        Raises:
            Unreadable: They do.
        """
        core = self.core
        if core is not None and core.factory is scale_by_amsgrad:
            corrects = core.arguments["bias_correction_nu"]
            if corrects and not core.arguments["correct_after_max"]:
                raise Unreadable("torch's amsgrad is correct_after_max=True")
        of_steps = self.kind == "rmsprop" and self.momentum is not None
        if of_steps and (self.changing or self.between == 0):
            raise Unreadable(
                "the momentum of RMSprop is one of steps, at a rate that follows a schedule or is "
                "0; put trace(...) before scale_by_learning_rate(...), as torch does"
            )


def read(links: Sequence[Link]) -> Reading:
    """Read the links of a parameter; what torch has no name for is passed over.

    Raises:
        Unreadable: They are several of torch's optimizers, or in another order.
    """
    known = [link for link in links if not link.wraps]
    rest = _folded(known)

    def take(*factories: Any) -> Link | None:
        return rest.pop(0).link if rest and rest[0].link and rest[0].factory in factories else None

    def factor() -> _Item:
        return rest.pop(0) if rest and rest[0].link is None else _Item()

    first = factor()
    decay = take(add_decayed_weights)
    core = take(*ADAM, *RMS)
    kind = "sgd" if core is None else "adam" if core.factory in ADAM else "rmsprop"
    decoupled = take(add_decayed_weights) if kind == "adam" else None
    second = factor() if kind != "adam" else _Item()
    momentum = take(trace) if kind != "adam" else None
    if momentum is not None and momentum.number("decay") == 0:
        momentum = None
    last = factor()
    if rest:
        raise Unreadable("they are several of torch's optimizers, or in another order")
    front, between, after = first.times, second.times, last.times
    if kind == "sgd" and decay is None:  # nothing parts the sign of g from what follows
        if momentum is not None:
            front, between = math.copysign(1.0, front), abs(front)
        else:
            total = front * between * after
            front, between, after = -math.copysign(1.0, total), 1.0, -abs(total)
    elif kind == "sgd" and momentum is None:
        between, after = 1.0, between * after
    return Reading(
        kind=kind,
        core=core,
        momentum=momentum,
        front=front,
        decay=_decay(decay),
        between=between,
        decoupled=_decay(decoupled),
        after=after,
        changing=second.changing,
        frozen=any(link.factory is set_to_zero for link in known),
    )


class _Item(NamedTuple):
    """A link that torch knows, or the product of factors that follow one another."""

    link: Link | None = None
    factory: Any = None
    times: float = 1.0
    changing: bool = False


def _folded(links: Sequence[Link]) -> list[_Item]:
    items: list[_Item] = []
    for link in links:
        if link.factory in SLOTS or link.factory is add_decayed_weights:
            items.append(_Item(link, link.factory))
        elif link.factory in FACTORS:
            times, changing = _factor(link)
            if items and items[-1].link is None:
                last = items.pop()
                times, changing = times * last.times, changing or last.changing
            items.append(_Item(None, None, times, changing))
    return items


def _factor(link: Link) -> tuple[float, bool]:
    """What a link multiplies by, and whether that follows a schedule."""
    argument = FACTORS[link.factory]
    sign = -1.0 if link.arguments.get("flip_sign", False) else 1.0
    if link.arguments[argument] is None:
        return sign, False
    return sign * link.number(argument), link.follows_schedule(argument)


def _decay(link: Link | None) -> float:
    return 0.0 if link is None else link.number("weight_decay")
