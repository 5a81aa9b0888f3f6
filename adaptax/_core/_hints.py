"""What errors suggest: the name of an argument here, another function, another tree."""

import difflib
import sys
from collections.abc import Sequence
from typing import Any

import jax

# What torch and Keras call an argument, and what it may be called here.
_CALLED_HERE = {
    "lr": ("learning_rate",),
    **dict.fromkeys(("beta1", "beta_1"), ("b1", "betas")),
    **dict.fromkeys(("beta2", "beta_2"), ("b2", "betas")),
    "betas": ("b1 and b2",),
    "epsilon": ("eps",),
    "eps": ("epsilon",),
    "alpha": ("decay",),
    "rho": ("decay", "decay_rate"),
    "momentum": ("b1", "beta", "adam_b1", "decay"),
}
# What to do for what is not an argument here.
_INSTEAD = {
    "amsgrad": "amsgrad is an optimizer of its own",
    "centered": "rmsprop has it",
    "clipnorm": "put clip_by_block_rms, which clips leaf by leaf, before it in a chain",
    "clipvalue": "put clip before it in a chain",
    "global_clipnorm": "put clip_by_global_norm before it in a chain",
    "maximize": "put scale(-1.0) before it in a chain",
    "momentum": "put trace before it in a chain",
    "weight_decay": "adamw has it, and add_decayed_weights is for any chain",
    **dict.fromkeys(
        ("fused", "foreach", "capturable", "differentiable", "jit_compile"),
        "leave it out; it is about how torch and Keras compute",
    ),
}


def called_here(name: str, known: Sequence[str]) -> str:
    """What an argument of other libraries is called here, or what is spelled nearly the same."""
    for here in _CALLED_HERE.get(name, ()):
        if set(here.split(" and ")) <= set(known):
            return f"; here it is {here}"
    if name in _INSTEAD:
        return f"; {_INSTEAD[name]}"
    alike = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {alike[0]}" if alike else ""


def of_another(state: Any) -> str:
    """What to do with the state of another optimizer; nothing where there is no state at all."""
    if not isinstance(state, tuple) or not jax.tree.leaves(state):
        return ""
    return (
        " What a checkpoint of another optimizer's state has in common with this one's, "
        'adaptax.checkpoint.restore(path, tx.init(params), missing="keep", unused="drop") takes '
        "over."
    )


# Of a library its class of models, and how to get a model's parameters.
_MODELS = {
    "flax.nnx": ("Module", "nnx.state(model, nnx.Param)"),
    "equinox": ("Module", "eqx.filter(model, eqx.is_array)"),
}


def of_model(*trees: Any) -> str:
    """What to give instead of a model, if one of the trees is one or has one inside."""
    for library, (name, parameters) in _MODELS.items():
        cls = getattr(sys.modules.get(library), name, None)
        if cls is None:
            continue

        def is_model(x: Any, cls: type = cls) -> bool:
            return isinstance(x, cls)

        if any(map(is_model, jax.tree.leaves(trees, is_leaf=is_model))):
            return f" For a model of {library}, give init and update {parameters}."
    return ""
