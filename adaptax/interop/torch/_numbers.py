"""Torch's numbers as a transformation, and a transformation's numbers as torch's."""

import re
from collections.abc import Mapping
from typing import Any

from ..._core import GradientTransformation, by_path, chain, partition
from ...optimizers._adam import adam, adamw
from ...optimizers._amsgrad import amsgrad, scale_by_amsgrad
from ...optimizers._rms import rmsprop, scale_by_rms, scale_by_stddev
from ...optimizers._sgd import sgd
from ...transforms import add_decayed_weights, scale, scale_by_learning_rate, trace
from ._groups import Group, damaged, groups_of
from ._names import Names
from ._reading import Reading, Unreadable
from ._tensors import number


def optimizer(
    state_dict: Mapping[str, Any],
    names: Names | None = None,
    *,
    decoupled_weight_decay: bool | None = None,
) -> GradientTransformation:
    """The transformation that does what torch's optimizer does.

    `Adam`, `AdamW` (both with `amsgrad` too), `RMSprop` and `SGD` of `torch.optim`, all of their
    options included. Learning rates are those of the moment: a scheduler of torch's has a state of
    its own.

    Args:
        state_dict: The optimizer's `state_dict()`.
        names: What `match` returned. Needed for several param groups, which become an
            `adaptax.partition`; parameters in no group are frozen then.
        decoupled_weight_decay: Whether an Adam whose state does not say so is `AdamW`; states of
            older versions of PyTorch don't.

    Raises:
        TypeError: `state_dict` is something else.
        ValueError: It is of another optimizer; it is damaged: an option is missing, or not what it
            must be (the message lists all of it); it has several groups and there are no names; or
            there is a weight decay of which it isn't known whether it is decoupled.

    >>> import torch
    >>> from adaptax import interop
    >>> w = torch.nn.Parameter(torch.ones(3))
    >>> adam = torch.optim.Adam([w], lr=0.1, weight_decay=0.5)
    >>> interop.torch.optimizer(adam.state_dict())
    chain(add_decayed_weights(weight_decay=0.5), adam(learning_rate=0.1))
    >>> interop.torch.optimizer(torch.optim.RMSprop([w], alpha=0.9).state_dict())
    rmsprop(learning_rate=0.01, eps_in_sqrt=False)
    """
    where = "optimizer"
    groups = groups_of(where, "state_dict", state_dict, names)
    made = [_transformation(where, group, decoupled_weight_decay) for group in groups]
    if names is None:
        if len(made) != 1:
            raise ValueError(
                f"{where}: state_dict has {len(made)} param groups; give names=match(...), so that "
                "they become groups of leaves."
            )
        return made[0]
    labels = {m.leaf: str(group.number) for group in groups for m in group.members if m.leaf}
    every = [row.leaf for row in names.matched]
    if len(made) == 1 and all(leaf in labels for leaf in every):
        return made[0]
    chosen: dict[str, list[str]] = {str(group.number): [] for group in groups}
    for leaf in (*every, *names.others):
        chosen.setdefault(labels.get(leaf, "frozen"), []).append(leaf)
    rules = [(re.compile("|".join(map(re.escape, m))), label) for label, m in chosen.items() if m]
    return partition(
        {label: None if label == "frozen" else made[int(label)] for _, label in rules},
        by_path(rules),
    )


def _transformation(where: str, group: Group, decoupled: bool | None) -> GradientTransformation:
    make = {"adam": _adam, "rmsprop": _rmsprop, "sgd": _sgd}[group.kind]
    decay = group.option("weight_decay")
    apart = group.kind == "adam" and decay != 0 and group.decoupled(where, decoupled)
    links = [scale(-1.0)] if group.flag("maximize") else []
    try:
        links += [add_decayed_weights(decay)] if decay and not apart else []
        links.append(make(group, decay if apart else 0.0))
    except ValueError as why:  # a number that is out of range
        text = f"in param group {group.number}, {str(why).rstrip('.')}"
        raise damaged(where, "state_dict", [text]) from None
    return links[0] if len(links) == 1 else chain(*links)


def _adam(group: Group, decay: float) -> GradientTransformation:
    rate, eps = group.option("lr"), group.option("eps")
    b1, b2 = map(number, group.options["betas"])
    if not group.flag("amsgrad"):
        return adamw(rate, b1, b2, eps, weight_decay=decay) if decay else adam(rate, b1, b2, eps)
    if not decay:
        return amsgrad(rate, b1, b2, eps, correct_after_max=True)
    return chain(
        scale_by_amsgrad(b1, b2, eps, correct_after_max=True),
        add_decayed_weights(decay),
        scale_by_learning_rate(rate),
    )


def _rmsprop(group: Group, _: float) -> GradientTransformation:
    rate, alpha, eps = map(group.option, ("lr", "alpha", "eps"))
    centered, momentum = group.flag("centered"), group.option("momentum")
    if not momentum:
        return rmsprop(rate, alpha, eps, eps_in_sqrt=False, centered=centered)
    scaled = scale_by_stddev if centered else scale_by_rms
    # Torch's order: under a changing rate it is not that of `rmsprop`.
    return chain(
        scaled(alpha, eps, eps_in_sqrt=False), trace(momentum), scale_by_learning_rate(rate)
    )


def _sgd(group: Group, _: float) -> GradientTransformation:
    rate, momentum, dampening = map(group.option, ("lr", "momentum", "dampening"))
    if not momentum:
        return sgd(rate)
    plain = sgd(rate, momentum, group.flag("nesterov"))
    return chain(scale(1.0 - dampening), plain) if dampening else plain


def options_of(reading: Reading) -> dict[str, Any]:
    """The options of a group of torch's, of a parameter that is not frozen.

    Raises:
        Unreadable: Torch's optimizer can't do it.
    """
    options = {"adam": _adam_options, "rmsprop": _rmsprop_options, "sgd": _sgd_options}
    own = options[reading.kind](reading)
    if abs(reading.front) != 1:
        raise Unreadable(f"gradients are multiplied by {reading.front}, and torch's only by -1")
    rate = -reading.after * (reading.between if reading.kind == "rmsprop" else 1.0)
    if not rate >= 0:
        raise Unreadable("the last factor is positive, so that they ascend")
    if reading.decay and reading.decoupled:
        raise Unreadable("weights decay in two places, and torch's in one")
    decay = reading.decoupled or reading.decay
    return {"lr": rate + 0.0, "weight_decay": decay, "maximize": reading.front < 0, **own}


def _adam_options(reading: Reading) -> dict[str, Any]:
    core = reading.core
    assert core is not None
    if core.arguments.get("nesterov", False):
        raise Unreadable("torch's Adam has no Nesterov momentum")
    if core.number("eps_root") != 0:
        raise Unreadable("torch's Adam has no eps_root")
    amsgrads = core.factory is scale_by_amsgrad
    if amsgrads and not all(core.arguments[f"bias_correction_{m}"] for m in ("mu", "nu")):
        raise Unreadable("torch's amsgrad corrects both moments")
    return {
        "betas": (core.number("b1"), core.number("b2")),
        "eps": core.number("eps"),
        "amsgrad": amsgrads,
        "decoupled_weight_decay": bool(reading.decoupled),
    }


def _rmsprop_options(reading: Reading) -> dict[str, Any]:
    core, momentum = reading.core, reading.momentum
    assert core is not None
    if core.arguments["eps_in_sqrt"] and core.number("eps") != 0:
        raise Unreadable("torch's RMSprop has eps outside the root: eps_in_sqrt=False")
    if core.arguments["bias_correction"]:
        raise Unreadable("torch's RMSprop has no bias correction")
    if momentum is not None and momentum.arguments["nesterov"]:
        raise Unreadable("torch's RMSprop has no Nesterov momentum")
    return {
        "alpha": core.number("decay"),
        "eps": core.number("eps"),
        "centered": core.factory is scale_by_stddev,
        "momentum": 0.0 if momentum is None else momentum.number("decay"),
    }


def _sgd_options(reading: Reading) -> dict[str, Any]:
    momentum = reading.momentum
    if momentum is None:
        return {"momentum": 0.0, "dampening": 0.0, "nesterov": False}
    nesterov, dampening = momentum.arguments["nesterov"], 1.0 - reading.between
    if nesterov and dampening:
        raise Unreadable("torch's Nesterov momentum has no dampening")
    return {
        "momentum": momentum.number("decay"),
        "dampening": dampening,
        "nesterov": nesterov,
    }
