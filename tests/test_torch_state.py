"""States and parameters of PyTorch: what goes over goes on as it would have there, both ways."""

# pyright: reportArgumentType=false

import copy
import functools
import inspect
import io
import os
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support import assert_same_bits, optax_rules
from trees import BFLOAT16

import adaptax
from adaptax import lowbit
from adaptax.interop import convert_state
from adaptax.interop import torch as interop
from adaptax.interop.torch import _names, _tensors

torch: Any = pytest.importorskip("torch", reason="torch is what this is about; it is in 'test'")

NAMES = ("dense.weight", "dense.bias")


def unchecked(function: Any) -> Any:
    """A function without the checks of annotations that the tests put around it."""
    return inspect.unwrap(function)


def tensors(seed: int = 0, dtype: Any = None) -> dict[str, Any]:
    """A linear layer's parameters, of torch."""
    rng = np.random.default_rng(seed)
    shapes = {"dense.weight": (3, 4), "dense.bias": (3,)}
    return {
        name: torch.nn.Parameter(torch.tensor(rng.normal(size=shape), dtype=dtype or torch.float64))
        for name, shape in shapes.items()
    }


def as_params(theirs: Any) -> Any:
    """The same as adaptax's users have them: the kernel is the weight turned over."""
    weight, bias = (theirs[name].detach().numpy() for name in NAMES)
    return {"dense": {"bias": jnp.array(bias), "kernel": jnp.array(weight.T)}}


def gradients(steps: int, seed: int = 1) -> list[dict[str, np.ndarray]]:
    """Gradients of some steps, by torch's names."""
    rng = np.random.default_rng(seed)
    return [
        {"dense.weight": rng.normal(size=(3, 4)), "dense.bias": rng.normal(size=3)}
        for _ in range(steps)
    ]


def train_theirs(optimizer: Any, theirs: Any, grads: Any) -> None:
    for g in grads:
        for name, p in theirs.items():
            p.grad = torch.tensor(g[name], dtype=p.dtype)
        optimizer.step()


def train_ours(tx: Any, params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    for g in grads:
        weight, bias = (jnp.array(g[name], params["dense"]["bias"].dtype) for name in NAMES)
        updates, state = tx.update({"dense": {"bias": bias, "kernel": weight.T}}, state, params)
        params = adaptax.apply_updates(params, updates)
    return params, state


def assert_equal(params: Any, theirs: Any, rtol: float) -> None:
    wanted = as_params(theirs)
    for one, other in zip(jax.tree.leaves(params), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol, rtol * 1e-2)


# Torch's optimizers, with options that are not the defaults, and what does the same.

chain, decayed, scale = adaptax.chain, adaptax.add_decayed_weights, adaptax.scale
_ADAM = {"lr": 0.02, "betas": (0.8, 0.97), "eps": 1e-4}
_OURS = (0.02, 0.8, 0.97, 1e-4)
_RMS = {"lr": 0.02, "alpha": 0.8, "eps": 1e-4}
_SGD = {"lr": 0.1, "momentum": 0.7}

ROWS: dict[str, tuple[str, dict[str, Any], Any]] = {
    "sgd": ("SGD", {"lr": 0.1}, adaptax.sgd(0.1)),
    "sgd_decay": (
        "SGD",
        {"lr": 0.1, "weight_decay": 0.05, "maximize": True},
        chain(scale(-1.0), decayed(0.05), adaptax.sgd(0.1)),
    ),
    "sgd_maximize": ("SGD", {"lr": 0.1, "maximize": True}, chain(scale(-1.0), adaptax.sgd(0.1))),
    "sgd_momentum": ("SGD", _SGD, adaptax.sgd(0.1, 0.7)),
    "sgd_nesterov": (
        "SGD",
        {**_SGD, "nesterov": True, "weight_decay": 0.05},
        chain(decayed(0.05), adaptax.sgd(0.1, 0.7, nesterov=True)),
    ),
    "sgd_dampening": (
        "SGD",
        {**_SGD, "dampening": 0.25},
        chain(scale(0.75), adaptax.sgd(0.1, 0.7)),
    ),
    "sgd_everything": (
        "SGD",
        {**_SGD, "dampening": 0.25, "weight_decay": 0.05, "maximize": True},
        chain(scale(-1.0), decayed(0.05), chain(scale(0.75), adaptax.sgd(0.1, 0.7))),
    ),
    "adam": ("Adam", _ADAM, adaptax.adam(*_OURS)),
    "adam_decay": (
        "Adam",
        {**_ADAM, "weight_decay": 0.05},
        chain(decayed(0.05), adaptax.adam(*_OURS)),
    ),
    "adam_everything": (
        "Adam",
        {**_ADAM, "weight_decay": 0.05, "maximize": True, "amsgrad": True},
        chain(scale(-1.0), decayed(0.05), adaptax.amsgrad(*_OURS, correct_after_max=True)),
    ),
    "adam_decoupled": (
        "Adam",
        {**_ADAM, "weight_decay": 0.05, "decoupled_weight_decay": True},
        adaptax.adamw(*_OURS, weight_decay=0.05),
    ),
    "adamw": (
        "AdamW",
        {**_ADAM, "weight_decay": 0.05},
        adaptax.adamw(*_OURS, weight_decay=0.05),
    ),
    "adamw_without_decay": ("AdamW", {**_ADAM, "weight_decay": 0.0}, adaptax.adam(*_OURS)),
    "adamw_everything": (
        "AdamW",
        {**_ADAM, "weight_decay": 0.05, "maximize": True, "amsgrad": True},
        chain(
            scale(-1.0),
            chain(
                adaptax.scale_by_amsgrad(*_OURS[1:], correct_after_max=True),
                decayed(0.05),
                adaptax.scale_by_learning_rate(0.02),
            ),
        ),
    ),
    "rmsprop": ("RMSprop", _RMS, adaptax.rmsprop(0.02, 0.8, 1e-4, eps_in_sqrt=False)),
    "rmsprop_centered": (
        "RMSprop",
        {**_RMS, "centered": True},
        adaptax.rmsprop(0.02, 0.8, 1e-4, eps_in_sqrt=False, centered=True),
    ),
    "rmsprop_momentum": (
        "RMSprop",
        {**_RMS, "momentum": 0.7},
        chain(
            adaptax.scale_by_rms(0.8, 1e-4, eps_in_sqrt=False),
            adaptax.trace(0.7),
            adaptax.scale_by_learning_rate(0.02),
        ),
    ),
    "rmsprop_everything": (
        "RMSprop",
        {**_RMS, "momentum": 0.7, "centered": True, "weight_decay": 0.05, "maximize": True},
        chain(
            scale(-1.0),
            decayed(0.05),
            chain(
                adaptax.scale_by_stddev(0.8, 1e-4, eps_in_sqrt=False),
                adaptax.trace(0.7),
                adaptax.scale_by_learning_rate(0.02),
            ),
        ),
    ),
}
rows = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())


def steady(value: float) -> Callable[[Any], Any]:
    return lambda count: value


class Halving:
    """A schedule with a state: 0.02, by way of a number that could change."""

    def init(self) -> Any:
        return {"rate": jnp.array(0.04, jnp.result_type(float))}

    def update(self, state: Any, **extra_args: Any) -> Any:
        return state

    def __call__(self, state: Any, **extra_args: Any) -> Any:
        return state["rate"] / 2


# Others that do what a row does: its name, the transformation, what is left out for torch.
OTHERS: dict[str, tuple[str, Any, Sequence[str]]] = {
    "momentum of steps": (
        "rmsprop_momentum",
        adaptax.rmsprop(0.02, 0.8, 1e-4, eps_in_sqrt=False, momentum=0.7),
        (),
    ),
    "momentum of 0": ("sgd", adaptax.sgd(0.1, momentum=0.0), ()),
    "momentum of 0 steps": (
        "rmsprop",
        adaptax.rmsprop(0.02, 0.8, 1e-4, eps_in_sqrt=False, momentum=0.0),
        (),
    ),
    "two factors": (
        "rmsprop_momentum",
        chain(adaptax.rmsprop(0.01, 0.8, 1e-4, eps_in_sqrt=False, momentum=0.7), scale(2.0)),
        (),
    ),
    "the idiom of scales": (
        "adam",
        chain(
            adaptax.scale_by_adam(*_OURS[1:]), adaptax.scale_by_schedule(steady(0.02)), scale(-1.0)
        ),
        (),
    ),
    "dampening before no decay": (
        "sgd_everything",
        chain(scale(-1.0), decayed(0.05), scale(0.75), adaptax.trace(0.7), scale(-0.1)),
        (),
    ),
    "named": (
        "adamw",
        adaptax.named_chain(("all", adaptax.adamw(*_OURS, weight_decay=0.05))),
        (),
    ),
    "adjustable": ("adamw", adaptax.adjustable(adaptax.adamw(*_OURS, weight_decay=0.05)), ()),
    "adjustable with a schedule": (
        "adam",
        adaptax.adjustable(adaptax.adam(steady(0.02), *_OURS[1:])),
        (),
    ),
    "injected": ("adam", adaptax.inject_hyperparams(adaptax.adam)(*_OURS), ()),
    "masked": ("adam", adaptax.masked(adaptax.adam(*_OURS), "*"), ()),
    "partition": (
        "adam",
        adaptax.partition({"*/bias": adaptax.adam(*_OURS), "*": adaptax.adam(*_OURS)}),
        (),
    ),
    "adjustable with a schedule of its own": (
        "adam",
        adaptax.adjustable(adaptax.adam(Halving(), *_OURS[1:])),
        (),
    ),
    "another name": (
        "adam",
        chain(adaptax.with_extra_args_support(adaptax.scale_by_adam(*_OURS[1:])), scale(-0.02)),
        (),
    ),
    "clipped": (
        "adam_decay",
        chain(adaptax.clip_by_global_norm(1e9), ROWS["adam_decay"][2]),
        ("clip_by_global_norm",),
    ),
    "wrapped": (
        "sgd_momentum",
        adaptax.guard(adaptax.apply_if_finite(adaptax.adjustable(adaptax.sgd(0.1, 0.7)), 3)),
        ("guard", "apply_if_finite"),
    ),
    "averaged": (
        "rmsprop",
        adaptax.ema_params(ROWS["rmsprop"][2], 0.9),
        ("ema_params",),
    ),
}


def there_and_back(row: Any, tx: Any, outside: Any, rtol: float, dtype: Any) -> None:
    """Torch, then adaptax, then a new optimizer of torch's; each beside the other."""
    name, options, _ = row
    make = getattr(torch.optim, name)
    theirs = tensors(dtype=dtype)
    optimizer = make(theirs.values(), **options)
    first, second, third = (gradients(3, seed) for seed in (1, 2, 3))
    train_theirs(optimizer, theirs, first)

    params = as_params(theirs)
    names = interop.match(params, theirs)
    saved = optimizer.state_dict()
    state = interop.load_state(tx, params, saved, names)
    train_theirs(optimizer, theirs, second)
    params, state = train_ours(tx, params, state, second)
    assert_equal(params, theirs, rtol)

    again = tensors(dtype=dtype)
    decoupled = {k: v for k, v in options.items() if k == "decoupled_weight_decay"}
    new = make(again.values(), lr=9.0, **decoupled)
    with torch.no_grad():
        for key, value in interop.dump_params(params, names, again).items():
            again[key].copy_(value)
    dumped = interop.dump_state(tx, params, state, names, new.state_dict(), outside=outside)
    new.load_state_dict(dumped)
    train_theirs(new, again, third)
    params, _ = train_ours(tx, params, state, third)
    assert_equal(params, again, rtol)
    assert_same_options(new, optimizer)


def assert_same_options(one: Any, other: Any) -> None:
    for got, wanted in zip(one.param_groups, other.param_groups, strict=True):
        for key in wanted.keys() - {"params"}:
            if wanted[key] is None or isinstance(wanted[key], bool):
                assert got[key] == wanted[key], key
            else:
                np.testing.assert_allclose(got[key], wanted[key], 1e-15, err_msg=key)


@rows
def test_the_transformation_of_an_optimizer(row):
    name, options, tx = row
    optimizer = getattr(torch.optim, name)(tensors().values(), **options)
    assert interop.optimizer(optimizer.state_dict()) == tx


@rows
def test_training_goes_on_there_and_back(row, x64):
    there_and_back(row, row[2], (), 1e-12, torch.float64)


@pytest.mark.parametrize("name", ["sgd_nesterov", "adam_everything", "adamw", "rmsprop_everything"])
def test_training_goes_on_in_float32(name):
    there_and_back(ROWS[name], ROWS[name][2], (), 2e-6, torch.float32)


@pytest.mark.parametrize("name, tx, outside", OTHERS.values(), ids=OTHERS.keys())
def test_training_goes_on_with_what_does_the_same(name, tx, outside, x64):
    there_and_back(ROWS[name], tx, outside, 1e-12, torch.float64)


# Groups


def two_groups(named: bool = False, dtype: Any = None) -> tuple[Any, Any]:
    """AdamW without decay for the bias, and as torch's habit is, with it first in order."""
    theirs = tensors(dtype=dtype)
    bias, weight = ([(name, theirs[name])] if named else [theirs[name]] for name in reversed(NAMES))
    groups = [
        {"params": bias, "weight_decay": 0.0, "lr": 0.1},
        {"params": weight, "weight_decay": 0.05, "lr": 0.02},
    ]
    return theirs, torch.optim.AdamW(groups, betas=(0.8, 0.97))


GROUPED = adaptax.partition(
    {
        "*/bias": adaptax.adam(0.1, 0.8, 0.97),
        "*/kernel": adaptax.adamw(0.02, 0.8, 0.97, weight_decay=0.05),
    }
)


@pytest.mark.parametrize("how", ["names in the state", "order", "names for keys"])
@pytest.mark.parametrize("tx", [None, GROUPED], ids=["its own", "by pattern"])
def test_groups_become_groups(how, tx, x64):
    theirs, optimizer = two_groups(named=how == "names in the state")
    train_theirs(optimizer, theirs, gradients(3))
    params, saved = as_params(theirs), optimizer.state_dict()
    order = NAMES[::-1] if how == "order" else None
    if how == "names for keys":  # as torch.distributed.checkpoint has it
        saved["state"] = {NAMES[1 - key]: entry for key, entry in saved["state"].items()}
        for group, name in zip(saved["param_groups"], reversed(NAMES), strict=True):
            group["params"] = [name]
    names = interop.match(params, theirs, order=order)
    made = interop.optimizer(saved, names)
    assert made == interop.optimizer(saved, names)
    tx = tx or made
    state = interop.load_state(tx, params, saved, names)
    train_theirs(optimizer, theirs, gradients(3, 2))
    params, state = train_ours(tx, params, state, gradients(3, 2))
    assert_equal(params, theirs, 1e-12)
    dumped = interop.dump_state(tx, params, state, names, saved)
    assert [g["lr"] for g in dumped["param_groups"]] == [0.1, 0.02]
    assert [g["weight_decay"] for g in dumped["param_groups"]] == [0.0, 0.05]
    assert dumped["state"].keys() == saved["state"].keys()
    for key, entry in dumped["state"].items():
        name = NAMES[1 - key] if isinstance(key, int) else key
        wanted = optimizer.state[theirs[name]]
        for slot in wanted:
            torch.testing.assert_close(entry[slot], wanted[slot], rtol=1e-12, atol=1e-15)


def test_a_mask_of_weight_decay_is_two_groups(x64):
    theirs, optimizer = two_groups(named=True)
    train_theirs(optimizer, theirs, gradients(3))
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    params = as_params(theirs)
    names = interop.match(params, theirs)
    tx = adaptax.adamw(0.05, 0.8, 0.97, weight_decay=0.05, mask="*/kernel")
    saved = optimizer.state_dict()
    state = interop.load_state(tx, params, saved, names)
    params, state = train_ours(tx, params, state, gradients(2, 2))
    train_theirs(optimizer, theirs, gradients(2, 2))
    assert_equal(params, theirs, 1e-12)
    dumped = interop.dump_state(tx, params, state, names, saved)
    assert [g["weight_decay"] for g in dumped["param_groups"]] == [0.0, 0.05]


def test_what_torch_does_not_optimize_is_frozen():
    theirs = tensors()
    optimizer = torch.optim.Adam([theirs["dense.weight"]], lr=0.1)
    theirs["dense.weight"].grad = torch.ones(3, 4).double()
    optimizer.step()
    params = as_params(theirs) | {"steps": jnp.zeros((), jnp.int32)}
    names = interop.match(params, theirs, order=NAMES[:1])
    tx = interop.optimizer(optimizer.state_dict(), names)
    described = {leaf.name: leaf.gets for leaf in adaptax.describe(tx, params).leaves}
    assert described["dense/kernel"] == "adam(learning_rate=0.1)"
    assert described["dense/bias"] == described["steps"] == "set_to_zero()"
    saved = optimizer.state_dict()
    state = interop.load_state(tx, params, saved, names)
    dumped = interop.dump_state(tx, params, state, names, saved)
    torch.testing.assert_close(dumped["state"], saved["state"], check_dtype=False)


def test_what_tx_freezes_needs_no_state_and_gets_none():
    theirs = tensors()
    optimizer = torch.optim.Adam(theirs.values(), lr=0.1)
    theirs["dense.weight"].grad = torch.ones(3, 4).double()
    optimizer.step()
    params = as_params(theirs)
    names = interop.match(params, theirs)
    adam = adaptax.adam(0.1)
    saved = optimizer.state_dict()
    frozen = (
        adaptax.partition({"*/bias": None, "*": adam}),
        chain(adam, adaptax.freeze("*/bias")),
    )
    for tx in frozen:
        state = interop.load_state(tx, params, saved, names)
        assert [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [1]
        dumped = interop.dump_state(tx, params, state, names, saved)
        torch.testing.assert_close(dumped["state"], saved["state"], check_dtype=False)
    train_theirs(optimizer, theirs, gradients(1))  # a state for the bias, at another step
    for tx in frozen:
        state = interop.load_state(tx, params, optimizer.state_dict(), names)
        assert [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32] == [2]


# Numbers and counts


def trained(
    name: str = "Adam", steps: int = 3, dtype: Any = None, **options: Any
) -> tuple[Any, Any, Any, Any]:
    """Torch's parameters and optimizer, the same parameters here, names."""
    theirs = tensors(dtype=dtype)
    optimizer = getattr(torch.optim, name)(theirs.values(), **{"lr": 0.1, **options})
    train_theirs(optimizer, theirs, gradients(steps))
    params = as_params(theirs)
    return theirs, optimizer, params, interop.match(params, theirs)


def test_schedules_stand_at_the_step_and_their_values_go_back():
    _, optimizer, params, names = trained(steps=3)
    saved = optimizer.state_dict()
    rate, decay = adaptax.linear_schedule(1.0, 0.0, 10), adaptax.linear_schedule(0.0, 1.0, 10)
    tx = adaptax.MultiSteps(
        adaptax.adjustable(adaptax.chain(decayed(decay), adaptax.adam(rate))), every_k_schedule=2
    )
    state = interop.load_state(tx, params, saved, names)
    now = {name: float(value) for name, value in adaptax.hyperparams(tx, state).items()}
    assert now["1/learning_rate"] == np.float32(0.7)
    assert now["0/weight_decay"] == np.float32(0.3)
    assert int(state.gradient_step) == 3
    assert int(state.inner_opt_state.count) == 3
    inner = adaptax.chain(decayed(decay), adaptax.adam(rate))
    state = interop.load_state(inner, params, saved, names)
    group = interop.dump_state(inner, params, state, names, saved)["param_groups"][0]
    assert (group["lr"], group["weight_decay"]) == pytest.approx((0.7, 0.3))
    with pytest.raises(ValueError, match=r"^load_state: step is for a state without one, such as"):
        interop.load_state(inner, params, saved, names, step=5)


def test_the_step_of_sgd_must_be_given_where_a_schedule_needs_it():
    _, optimizer, params, names = trained("SGD", momentum=0.7)
    saved = optimizer.state_dict()
    tx = adaptax.sgd(adaptax.linear_schedule(1.0, 0.0, 10), 0.7)
    match = r"^load_state: scale_by_learning_rate follows a schedule, and torch's state has no step"
    with pytest.raises(ValueError, match=match):
        interop.load_state(tx, params, saved, names)
    with pytest.raises(ValueError, match=r"^load_state: adjustable follows a schedule, and torch"):
        interop.load_state(adaptax.adjustable(tx), params, saved, names)
    for one in (tx, adaptax.adjustable(tx)):
        state = interop.load_state(one, params, saved, names, step=4)
        assert float(adaptax.learning_rate(one, state)) == np.float32(0.6)
        group = interop.dump_state(one, params, state, names, saved)["param_groups"][0]
        assert group["lr"] == pytest.approx(0.6)


def test_numbers_that_were_changed_go_back_and_others_keep_their_digits():
    _, optimizer, params, names = trained()
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved)
    tx = adaptax.adjustable(interop.optimizer(saved))
    state = interop.load_state(tx, params, saved, names)
    state = adaptax.set_hyperparams(tx, state, learning_rate=0.25)
    group = interop.dump_state(tx, params, state, names, saved)["param_groups"][0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.25, (0.9, 0.999), 1e-8)
    assert saved["param_groups"] == before["param_groups"]
    torch.testing.assert_close(saved["state"], before["state"])


def test_numbers_that_are_tensors_stay_tensors():
    rate = torch.tensor(0.125, dtype=torch.float64)
    _, optimizer, params, names = trained(lr=rate, capturable=False)
    saved = optimizer.state_dict()
    tx = interop.optimizer(saved)
    assert tx == adaptax.adam(0.125)
    state = interop.load_state(adaptax.adam(0.5), params, saved, names)
    group = interop.dump_state(adaptax.adam(0.5), params, state, names, saved)["param_groups"][0]
    torch.testing.assert_close(group["lr"], torch.tensor(0.5, dtype=torch.float64))
    assert rate == 0.125


def test_steps_of_rmsprop_are_those_that_are_known():
    _, optimizer, params, names = trained("RMSprop", steps=3)
    saved = optimizer.state_dict()
    tx = interop.optimizer(saved)
    state = interop.load_state(tx, params, saved, names)
    new = torch.optim.RMSprop(tensors().values()).state_dict()
    for like, steps in ((saved, 3.0), (new, 0.0)):
        dumped = interop.dump_state(tx, params, state, names, like)
        assert dumped["state"][0]["step"].item() == steps
    tx = adaptax.rmsprop(lambda count: 0.1, 0.99, eps_in_sqrt=False)
    state = interop.load_state(tx, params, saved, names)
    dumped = interop.dump_state(tx, params, state, names, new)
    assert dumped["state"][0]["step"].item() == 3.0


def test_a_step_beyond_int32_is_the_largest():
    _, optimizer, params, names = trained()
    saved = optimizer.state_dict()
    for entry in saved["state"].values():
        entry["step"] = torch.tensor(2.0**33)
    state = interop.load_state(adaptax.adam(0.1), params, saved, names)
    assert int(state[0].count) == 2**31 - 1


def test_states_of_older_versions():
    _, optimizer, params, names = trained(weight_decay=0.5)
    saved = optimizer.state_dict()
    wanted = interop.load_state(adaptax.adam(0.1), params, saved, names)
    del saved["param_groups"][0]["decoupled_weight_decay"]
    for entry in saved["state"].values():
        entry["step"] = 3  # was a Python number once
    assert_same_bits(interop.load_state(adaptax.adam(0.1), params, saved, names), wanted)
    with pytest.raises(ValueError, match=r"^optimizer: param group 0, of an older PyTorch, does n"):
        interop.optimizer(saved)
    adam, adamw = (interop.optimizer(saved, decoupled_weight_decay=b) for b in (False, True))
    assert adam == chain(decayed(0.5), adaptax.adam(0.1))
    assert adamw == adaptax.adamw(0.1, weight_decay=0.5)
    for tx, decoupled in ((adam, False), (adamw, True)):
        state = interop.load_state(tx, params, saved, names)
        with pytest.raises(ValueError, match=r"^dump_state: param group 0, of an older PyTorch, d"):
            interop.dump_state(tx, params, state, names, saved)
        group = interop.dump_state(
            tx, params, state, names, saved, decoupled_weight_decay=decoupled
        )["param_groups"][0]
        assert group["weight_decay"] == 0.5
        assert "decoupled_weight_decay" not in group
    old = {"state": {0: {"momentum_buffer": None}}, "param_groups": [
        {"params": [0, 1], "lr": 0.1, "momentum": 0, "dampening": 0, "weight_decay": 0,
         "nesterov": False}]}  # fmt: skip
    tx = interop.optimizer(old)
    assert tx == adaptax.sgd(0.1)
    assert_same_bits(interop.load_state(tx, params, old, names), tx.init(params))


# Names and axes


def network() -> Any:
    """A convolution, a norm, an embedding tied to the head, a square and a tall matrix."""
    nn = torch.nn
    layers = {
        "conv": nn.Conv2d(3, 5, (2, 4)),
        "norm": nn.BatchNorm1d(5),
        "embed": nn.Embedding(7, 4),
        "square": nn.Linear(4, 4),
        "tall": nn.Linear(4, 6, bias=False),
        "head": nn.Linear(4, 7, bias=False),
    }
    model = nn.ModuleDict(layers)
    model["head"].weight = model["embed"].weight
    return model


def network_params() -> Any:
    return {
        "conv": {"bias": jnp.zeros(5), "kernel": jnp.zeros((2, 4, 3, 5))},
        "norm": {"bias": jnp.zeros(5), "scale": jnp.zeros(5)},
        "embed": {"embedding": jnp.zeros((7, 4))},
        "square": {"bias": jnp.zeros(4), "kernel": jnp.zeros((4, 4))},
        "tall": {"kernel": jnp.zeros((4, 6))},
        "nothing": None,
        "steps": jnp.zeros((), jnp.int32),
    }


AXES = {"square/kernel": (1, 0)}


def test_names_and_axes_are_found_and_shown():
    model = network()
    names = interop.match(
        network_params(),
        model.state_dict(),
        lambda name: {"head.weight": "embed/embedding"}.get(name, _names._guess(name, LEAVES)),
        axes=AXES,
    )
    assert str(names).splitlines() == [
        "conv.weight                 (5, 3, 2, 4)  ->  conv/kernel      (2, 4, 3, 5)"
        "  axes (2, 3, 1, 0)",
        "conv.bias                   (5,)          ->  conv/bias        (5,)",
        "norm.weight                 (5,)          ->  norm/scale       (5,)",
        "norm.bias                   (5,)          ->  norm/bias        (5,)",
        "embed.weight = head.weight  (7, 4)        ->  embed/embedding  (7, 4)",
        "square.weight               (4, 4)        ->  square/kernel    (4, 4)        axes (1, 0)",
        "square.bias                 (4,)          ->  square/bias      (4,)",
        "tall.weight                 (6, 4)        ->  tall/kernel      (4, 6)        axes (1, 0)",
        "without a leaf: norm.running_mean, norm.running_var, norm.num_batches_tracked",
    ]
    assert names.others == ("steps",)
    loaded = interop.load_params(network_params(), model.state_dict(), names)
    weight = model["conv"].weight.detach().numpy()
    np.testing.assert_array_equal(loaded["conv"]["kernel"], weight.transpose(2, 3, 1, 0))
    np.testing.assert_array_equal(
        loaded["square"]["kernel"], model["square"].weight.detach().numpy().T
    )
    assert loaded["nothing"] is None
    other = network()
    dumped: Any = interop.dump_params(loaded, names, other.state_dict())
    assert dumped._metadata == other.state_dict()._metadata
    other.load_state_dict(dumped)
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q), name


LEAVES = dict(
    zip(
        adaptax.path_names(network_params()),
        jax.tree.leaves(network_params(), is_leaf=lambda x: x is None),
        strict=True,
    )
)


def test_a_tied_parameter_counts_once_in_the_order():
    model, params = network(), network_params()
    given = {name: _names._guess(name, LEAVES) for name in model.state_dict()}
    given["head.weight"] = "embed/embedding"
    names = interop.match(params, model.state_dict(), given, axes=AXES)
    optimizer = torch.optim.Adam(model.parameters())
    for p in model.parameters():
        p.grad = torch.randn(p.shape)
    optimizer.step()
    state = interop.load_state(adaptax.adam(1e-3), params, optimizer.state_dict(), names)
    wanted = optimizer.state[model["tall"].weight]["exp_avg"].numpy().T
    np.testing.assert_array_equal(state[0].mu["tall"]["kernel"], wanted)


@pytest.mark.parametrize(
    "names",
    [
        None,
        {"dense.weight": "dense/kernel", "dense.bias": "dense/bias"},
        ["dense/kernel", "dense/bias"],
        lambda name: name.replace(".", "/").replace("weight", "kernel"),
    ],
    ids=["guess", "mapping", "list", "function"],
)
def test_names_are_given_in_several_ways(names):
    theirs = tensors()
    got = interop.match(as_params(theirs), theirs, names)
    assert got == interop.match(as_params(theirs), theirs)
    assert [row.leaf for row in got.matched] == ["dense/kernel", "dense/bias"]
    assert [row.torch_shape for row in got.matched] == [(3, 4), (3,)]


def one(shape: Any, there: Any, **options: Any) -> Any:
    spec = {"x": jax.ShapeDtypeStruct(there, jnp.float32)}
    return interop.match({"x": jax.ShapeDtypeStruct(shape, jnp.float32)}, spec, **options)


@pytest.mark.parametrize(
    "shape, there, axes",
    [
        ((), (), ()),
        ((3,), (3,), (0,)),
        ((1, 1), (1, 1), (0, 1)),
        ((1, 3), (3, 1), (1, 0)),
        ((3, 1, 1), (3, 1, 1), (0, 1, 2)),
        ((0, 0), (0, 0), (0, 1)),
        ((2, 3, 4), (4, 3, 2), (2, 1, 0)),
    ],
)
def test_the_only_axes_that_fit(shape, there, axes):
    (row,) = one(shape, there).matched
    assert row.axes == axes
    x = np.arange(np.prod(there)).reshape(there)
    assert row.to_leaf(x).shape == shape
    np.testing.assert_array_equal(row.to_torch(row.to_leaf(x)), x)


def test_axes_are_not_guessed():
    with pytest.raises(
        adaptax.TreeMismatchError,
        match=r"x has shape \(4, 4\), and x \(4, 4\): give axes, \(0, 1\) or \(1, 0\)",
    ):
        one((4, 4), (4, 4))
    match = r"give axes, \(2, 0, 1, 3\) or \(2, 3, 1, 0\)\.$"
    with pytest.raises(adaptax.TreeMismatchError, match=match):
        one((2, 5, 3, 5), (5, 3, 2, 5))
    assert one((4, 4), (4, 4), axes={"*": (0, 1)}).matched[0].axes == (0, 1)
    assert one((4, 4), (4, 4), axes=[("y|x", (1, 0)), ("*", (0, 1))]).matched[0].axes == (1, 0)


def test_a_function_may_name_a_leaf_that_is_none():
    params = {"a": jnp.ones(3), "b": None}
    names = interop.match(params, {"a": torch.ones(3), "b": torch.ones(3)}, lambda name: name)
    assert names.left_over == ("b",)


def test_a_parameter_may_be_the_root():
    params = jnp.ones(3)
    names = interop.match(params, {"w": torch.ones(3)}, {"w": ""})
    assert str(names) == "w  (3,)  ->  the root  (3,)"
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([w])
    w.grad = torch.ones(3)
    optimizer.step()
    state = interop.load_state(adaptax.adam(1e-3), params, optimizer.state_dict(), names)
    np.testing.assert_array_equal(state[0].mu, optimizer.state[w]["exp_avg"].numpy())
    dumped = interop.dump_state(adaptax.adam(1e-3), params, state, names, optimizer.state_dict())
    torch.testing.assert_close(dumped["state"], optimizer.state_dict()["state"])


# Tensors


def test_a_checkpoint_goes_through_a_file_into_a_model_that_trains_alike(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, (3, 2)), torch.nn.Tanh(), torch.nn.Flatten(), torch.nn.Linear(18, 1)
    )
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=0.05)
    x = torch.randn(6, 2, 4, 4)
    y = torch.randn(6, 1)

    def steps(n: int) -> float:
        loss = torch.zeros(())
        for _ in range(n):
            optimizer.zero_grad()
            loss = ((model(x) - y) ** 2).mean()
            loss.backward()
            optimizer.step()
        return loss.item()

    steps(3)
    path = tmp_path / "run.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)

    def forward(params: Any, x: Any) -> Any:
        x = jax.lax.conv_general_dilated(
            x, params["conv"]["kernel"], (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(x + params["conv"]["bias"][None, None, None])
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # flat as in torch
        return x @ params["out"]["kernel"] + params["out"]["bias"][None]

    checkpoint = interop.load(path)
    params = {
        "conv": {"bias": jnp.zeros(3), "kernel": jnp.zeros((3, 2, 2, 3))},
        "out": {"bias": jnp.zeros(1), "kernel": jnp.zeros((18, 1))},
    }
    layers = {"0.weight": "conv/kernel", "0.bias": "conv/bias"}
    layers |= {"3.weight": "out/kernel", "3.bias": "out/bias"}
    axes = {"conv/kernel": (2, 3, 1, 0)}
    names = interop.match(params, checkpoint["model"], layers, axes=axes)
    params = interop.load_params(params, checkpoint["model"], names)
    tx = interop.optimizer(checkpoint["optimizer"], names)
    state = interop.load_state(tx, params, checkpoint["optimizer"], names)
    images, targets = jnp.array(x.numpy().transpose(0, 2, 3, 1)), jnp.array(y.numpy())

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        loss, grads = jax.value_and_grad(lambda p: jnp.mean((forward(p, images) - targets) ** 2))(
            params
        )
        updates, state = tx.update(grads, state, params)
        return adaptax.apply_updates(params, updates), state, loss

    loss = jnp.zeros(())
    for _ in range(5):
        params, state, loss = step(params, state)
    assert float(loss) == pytest.approx(steps(5), rel=1e-5)
    wanted = model.state_dict()
    for name, tensor in interop.dump_params(params, names, wanted).items():
        torch.testing.assert_close(tensor, wanted[name], rtol=1e-4, atol=1e-5)


class Attack:
    """Makes a file when it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


def test_no_code_of_a_file_is_run(tmp_path):
    target = tmp_path / "made"
    file = tmp_path / "attack.pt"
    torch.save({"model": {}, "more": Attack(str(target))}, file)
    with pytest.raises(
        ValueError, match=r"^load: .*attack.pt.* can't be read: it holds .*mkdir, an"
    ):
        interop.load(file)
    assert not target.exists()
    pickle.loads(pickle.dumps(Attack(str(target))))
    assert target.exists()  # so it would have


def written(crc32: bool = True, **options: Any) -> tuple[Any, bytes]:
    """A small state, and a file of it."""
    _, optimizer, _, _ = trained(steps=1)
    before, file = torch.serialization.get_crc32_options(), io.BytesIO()
    torch.serialization.set_crc32_options(crc32)
    torch.save(optimizer.state_dict(), file, **options)
    torch.serialization.set_crc32_options(before)
    return optimizer.state_dict(), file.getvalue()


_, WHOLE = written()
DAMAGED_FILES = {
    "empty": b"",
    "text": b"not a checkpoint",
    "text in UTF-16": "not a checkpoint".encode("utf-16"),
    "zeros": bytes(len(WHOLE)),
    "a zip file": b"PK\x05\x06" + bytes(18),
    **{f"cut at {i}": WHOLE[:i] for i in range(1, len(WHOLE), len(WHOLE) // 9)},
    **{f"old, cut at {i}": written(_use_new_zipfile_serialization=False)[1][:i]
       for i in range(1, 900, 100)},
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED_FILES.values(), ids=DAMAGED_FILES.keys())
def test_damaged_files_are_refused(content, tmp_path):
    why = "can't be read: it (is damaged, or|holds)"  # what holds half a name, holds another
    with pytest.raises(ValueError, match=rf"^load: <_io.BytesIO .* {why}"):
        interop.load(io.BytesIO(content))
    path = tmp_path / "run.pt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^load: {re.escape(repr(str(path)))} {why}"):
        interop.load(str(path))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bit_that_flips_anywhere_is_noticed():
    saved, whole = written()
    refused = 0
    places = range(0, len(whole), 11)
    for i in places:
        data = bytearray(whole)
        data[i] ^= 1 << (i % 8)
        try:
            found = interop.load(io.BytesIO(data))
        except ValueError as error:
            assert str(error).startswith("load: <_io.BytesIO")
            refused += 1
        else:  # what fills the gaps of a zip file
            torch.testing.assert_close(found, saved, rtol=0, atol=0)
    assert refused > len(places) / 5


@pytest.mark.parametrize(
    "options", [{"crc32": False}, {"_use_new_zipfile_serialization": False}], ids=["zip", "old"]
)
def test_files_without_checksums_are_read(options):
    saved, data = written(**options)
    torch.testing.assert_close(interop.load(io.BytesIO(data)), saved)
    file = io.BytesIO(b"before" + written()[1])
    file.seek(6)
    torch.testing.assert_close(interop.load(file), saved)


@pytest.mark.parametrize(
    "make, error",
    [(lambda path: None, FileNotFoundError), (os.mkdir, IsADirectoryError)],
    ids=["missing", "a folder"],
)
def test_files_that_are_not_there_are_told_by_python(make, error, tmp_path):
    make(tmp_path / "run.pt")
    with pytest.raises(error, match=r"run\.pt"):
        interop.load(tmp_path / "run.pt")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"])
@pytest.mark.parametrize("shape", [(), (0, 3), (4, 3)])
def test_narrow_tensors_keep_their_bits(dtype, shape):
    x = torch.randn(shape).to(getattr(torch, dtype)).transpose(0, -1) if shape else torch.tensor(
        1.7).to(getattr(torch, dtype))  # fmt: skip
    array = _tensors.as_numpy("f", "x", x)
    assert array.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(array.astype(np.float32), x.float().numpy())
    back = _tensors.as_tensor("f", array)
    assert back.dtype == x.dtype
    assert torch.equal(back.float(), x.float())
    assert back.is_contiguous()


def test_16_bit_parameters_have_wide_moments_here(x64):
    theirs = tensors(dtype=torch.bfloat16)
    optimizer = torch.optim.Adam(theirs.values(), lr=0.1)
    train_theirs(optimizer, theirs, gradients(2))
    shapes = {"dense": {"bias": jax.ShapeDtypeStruct((3,), BFLOAT16),
                        "kernel": jax.ShapeDtypeStruct((4, 3), BFLOAT16)}}  # fmt: skip
    names = interop.match(shapes, theirs)
    params = interop.load_params(shapes, theirs, names)
    assert params["dense"]["bias"].dtype == BFLOAT16
    state = interop.load_state(adaptax.adam(0.1), params, optimizer.state_dict(), names)
    mu = state[0].mu["dense"]["kernel"]
    wanted = optimizer.state[theirs["dense.weight"]]["exp_avg"]
    assert mu.dtype == jnp.float32
    np.testing.assert_array_equal(mu, wanted.float().numpy().T)
    new = torch.optim.Adam(theirs.values())
    new.load_state_dict(
        interop.dump_state(adaptax.adam(0.1), params, state, names, new.state_dict())
    )
    assert torch.equal(new.state[theirs["dense.weight"]]["exp_avg"], wanted)
    for own in (params, jax.tree.map(lambda x: x.astype(jnp.float32), params)):
        dumped = interop.dump_params(own, names, theirs)
        assert all(torch.equal(dumped[name], theirs[name]) for name in theirs)
        assert all(x.dtype == torch.bfloat16 for x in dumped.values())


@pytest.mark.parametrize("device", [None, 0], ids=["anywhere", "on a device"])
def test_nothing_is_shared_with_torch(device):
    theirs, optimizer, params, names = trained(dtype=torch.float32)
    if device is not None:  # jax puts arrays there without a copy
        params = jax.device_put(params, jax.devices()[device])
    saved = optimizer.state_dict()
    state = interop.load_state(adaptax.adam(0.1), params, saved, names)
    loaded = interop.load_params(params, theirs, names)
    before = jax.tree.map(np.array, (state, loaded))
    dumped = interop.dump_state(adaptax.adam(0.1), params, state, names, saved)
    written = interop.dump_params(loaded, names, theirs)
    with torch.no_grad():
        for entry in (*saved["state"].values(), *dumped["state"].values(), theirs, written):
            for x in entry.values():
                x.fill_(7.0)
    assert_same_bits(jax.tree.map(np.array, (state, loaded)), before)


def test_arrays_in_the_place_of_tensors_do_too():
    _, optimizer, params, names = trained()
    saved = optimizer.state_dict()
    wanted = interop.load_state(adaptax.adam(0.1), params, saved, names)
    saved["state"] = {
        key: {name: np.asarray(x.numpy()) for name, x in entry.items()}
        for key, entry in saved["state"].items()
    }
    assert_same_bits(interop.load_state(adaptax.adam(0.1), params, saved, names), wanted)


def test_nan_and_inf_go_over():
    _, optimizer, params, names = trained()
    saved = optimizer.state_dict()
    saved["state"][1]["exp_avg"][:] = torch.tensor([np.nan, np.inf, -np.inf])
    state = interop.load_state(adaptax.adam(0.1), params, saved, names)
    np.testing.assert_array_equal(state[0].mu["dense"]["bias"], [np.nan, np.inf, -np.inf])


def test_arrays_lie_where_the_parameters_do():
    theirs, optimizer, params, names = trained()
    mesh = jax.make_mesh((4,), ("x",), devices=jax.devices()[:4])
    spec = {"bias": jax.sharding.PartitionSpec(), "kernel": jax.sharding.PartitionSpec("x")}
    sharding = {"dense": {k: jax.sharding.NamedSharding(mesh, s) for k, s in spec.items()}}
    params = jax.device_put(params, sharding)
    state = interop.load_state(adaptax.adam(0.1), params, optimizer.state_dict(), names)
    loaded = interop.load_params(params, theirs, names)
    for tree in (state[0].mu, state[0].nu, loaded):
        for key, s in sharding["dense"].items():
            assert tree["dense"][key].sharding.is_equivalent_to(s, tree["dense"][key].ndim), key
    dumped = interop.dump_state(adaptax.adam(0.1), params, state, names, optimizer.state_dict())
    torch.testing.assert_close(
        dumped["state"], optimizer.state_dict()["state"], check_dtype=False, rtol=1e-6, atol=0
    )


# Beside the rest of the library


def test_states_in_few_bits():
    theirs = {"dense.weight": torch.nn.Parameter(torch.randn(64, 65))}
    optimizer = torch.optim.Adam(theirs.values(), lr=0.1)
    theirs["dense.weight"].grad = torch.randn(64, 65)
    optimizer.step()
    params = {"dense": {"kernel": jnp.array(theirs["dense.weight"].detach().numpy().T)}}
    names = interop.match(params, theirs)
    saved = optimizer.state_dict()
    tx = interop.optimizer(saved)
    wide = interop.load_state(tx, params, saved, names)
    small = lowbit.encode_state(lowbit.adam8bit(0.1), wide, params)
    assert small.inner_state[0].mu["dense"]["kernel"].codes.dtype == jnp.int8
    assert int(small.inner_state[0].count) == 1
    dumped = interop.dump_state(tx, params, lowbit.decode_state(small), names, saved)
    torch.testing.assert_close(
        dumped["state"][0]["exp_avg_sq"], saved["state"][0]["exp_avg_sq"], rtol=0.3, atol=0
    )
    match = (
        r"^load_state: the state is kept in few bits\. Take the transformation that is stored so"
    )
    with pytest.raises(TypeError, match=match):
        interop.load_state(lowbit.adam8bit(0.1), params, saved, names)
    with pytest.raises(TypeError, match=r"^dump_state: the state is kept in few bits"):
        interop.dump_state(lowbit.adam8bit(0.1), params, small, names, saved)


def test_to_optax_by_way_of_adaptax():
    theirs, optimizer, params, names = trained()
    saved = optimizer.state_dict()
    tx = optax.adam(0.1)
    state = interop.load_state(adaptax.adam(0.1), params, saved, names)
    state = convert_state(state, tx.init(params))
    with optax_rules():
        params, state = train_ours(tx, params, state, gradients(2, 2))
    train_theirs(optimizer, theirs, gradients(2, 2))
    assert_equal(params, theirs, 1e-4)
    ours = convert_state(state, adaptax.adam(0.1).init(params))
    dumped = interop.dump_state(adaptax.adam(0.1), params, ours, names, saved)
    torch.testing.assert_close(
        dumped["state"], optimizer.state_dict()["state"], check_dtype=False, rtol=1e-4, atol=1e-6
    )


def test_what_torch_does_not_have_begins_as_init_makes_it():
    _, optimizer, params, names = trained()
    tx = adaptax.ema_params(adaptax.adam(0.1), 0.9)
    state = interop.load_state(tx, params, optimizer.state_dict(), names)
    begun = tx.init(params)
    assert_same_bits(state._replace(inner_state=()), begun._replace(inner_state=()))
    assert int(state.inner_state[0].count) == 3


def test_complex_momentum(x64):
    w = torch.nn.Parameter(torch.tensor([1.0 + 2.0j, -1.0j]))
    optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.7)
    w.grad = torch.tensor([0.5 - 1.0j, 2.0 + 0.0j])
    optimizer.step()
    params = {"w": jnp.array(w.detach().numpy())}
    names = interop.match(params, {"w": w})
    tx = adaptax.sgd(0.1, 0.7)
    state = interop.load_state(tx, params, optimizer.state_dict(), names)
    np.testing.assert_array_equal(state[0].trace["w"], w.grad.numpy())
    saved = optimizer.state_dict()
    saved["state"][0]["momentum_buffer"] = w.grad.conj()
    turned = interop.load_state(tx, params, saved, names)
    np.testing.assert_array_equal(turned[0].trace["w"], w.grad.numpy().conj())
    dumped = interop.dump_state(tx, params, state, names, optimizer.state_dict())
    assert torch.equal(dumped["state"][0]["momentum_buffer"], w.grad)


# What is refused


def spec(**shapes: Any) -> dict[str, Any]:
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


MISMATCH = adaptax.TreeMismatchError
OTHER = ("Adamax", "NAdam", "RAdam", "Adagrad", "Adadelta", "ASGD", "Rprop")


def row(name: str, *values: Any) -> Any:
    return pytest.param(*values, id=name)


def grouped(order: Any = None) -> Any:
    theirs, optimizer = two_groups()
    return optimizer.state_dict(), interop.match(as_params(theirs), theirs, order=order)


def sorted_tensors() -> Any:
    theirs, optimizer, params, _ = trained()
    arrays = jax.tree.map(lambda x: x.detach().numpy(), theirs)  # a tree of jax sorts its keys
    interop.optimizer(optimizer.state_dict(), interop.match(params, arrays, order=NAMES))
    return interop.optimizer(optimizer.state_dict(), interop.match(params, arrays))


def state_of(name: str) -> Any:
    return getattr(torch.optim, name)(tensors().values()).state_dict()


def x_to_x(**options: Any) -> Any:
    return one((3,), (3,), **options)


# fmt: off
REFUSED = [
    row("leaves and tensors",
        lambda: interop.match(spec(a=(3,), b=(2, 3), c=()), spec(b=(4, 2), d=(), e=())), MISMATCH,
        r"^match: 3 of 3 leaves don't fit the tensors: a has no tensor; c has no tensor; b has "
        r"shape \(2, 3\) against \(4, 2\) of b\. Tensors without a leaf: d; e\.$"),
    row("not tied",
        lambda: interop.match(
            spec(a=(3,)), {"a": torch.ones(3), "b": torch.zeros(3)}, {"a": "a", "b": "a"}),
        MISMATCH, r"^match: 1 of 1 leaves .*: a has a and b, which differ, so they are not tied\."),
    row("axes that don't fit", lambda: one((4, 3), (3, 4), axes={"x": (0, 1)}), MISMATCH,
        r"x has shape \(4, 3\), and x \(3, 4\), which axes \(0, 1\) don't fit"),
    row("a pattern for nothing", lambda: one((4, 3), (3, 4), axes={"y": (0, 1)}), ValueError,
        r"^match: the pattern 'y' matches no leaf; the names are x\.$"),
    row("no permutation", lambda: one((4, 3), (3, 4), axes={"x": (0, 2)}), TypeError,
        r"^match: axes\['x'\] must be a permutation of axes, such as \(1, 0\), got \(0, 2\)"),
    row("no such tensor", lambda: x_to_x(names={"y": "x"}), ValueError,
        r"^match: names has 'y', and there is no such tensor; there are 'x'\.$"),
    row("no such leaf", lambda: x_to_x(names={"x": "y"}), ValueError,
        r"^match: names has 'y', and there is no such leaf; there are 'x'\.$"),
    row("too many names", lambda: x_to_x(names=["x", "y"]), ValueError,
        r"^match: the number of names must be 1, got 2\.$"),
    row("names of no kind", lambda: _names._by_leaf(3, {}, {}), TypeError,
        r"^match: names must be a mapping, a sequence, a function of a name, or None, got 3 \(i"),
    row("tensors without names", lambda: interop.match(spec(a=()), {0: torch.ones(())}), TypeError,
        r"^match: tensors must be a mapping of names to tensors, such as model.state_dict\(\), g"),
    row("an unknown name in order", lambda: x_to_x(order=["y"]), ValueError,
        r"^match: order has 'y', and there is no such tensor; there are 'x'\.$"),
    row("a name twice in order", lambda: x_to_x(order=["x", "x"]), ValueError,
        r"^match: names must be unique, got 'x' more than once"),
    row("text for order", lambda: x_to_x(order="x"), TypeError,
        r"^match: order must be a sequence of names, got 'x' \(str\)"),
    row("another result", lambda: _names.rows_of("load_params", spec(a=()), {}), TypeError,
        r"^load_params: names must be what match\(params, tensors\) returns, got {} \(dict\)"),
    row("names of other parameters",
        lambda: interop.load_params(spec(y=(3,), x=(2,)), {}, x_to_x()), ValueError,
        r"^load_params: names are of other parameters: x has shape \(2,\) against \(3,\); y is not "
        r"in names\. Make them with match\(params, \.\.\.\)\.$"),
    row("names of parameters that are gone",
        lambda: interop.load_params(spec(), {}, x_to_x()), ValueError,
        r"^load_params: names are of other parameters: x is not in params\. Make"),
    row("tensors missing", lambda: interop.load_params(spec(x=(3,)), {}, x_to_x()), MISMATCH,
        r"^load_params: state_dict does not fit names at 1 of 1 leaves: x is not in state_dict\.$"),
    row("tensors of other shapes",
        lambda: interop.load_params(spec(x=(3,)), {"x": torch.ones(2)}, x_to_x()), MISMATCH,
        r": x has shape \(2,\) against \(3,\)\.$"),
    row("complex for real",
        lambda: interop.load_params(spec(x=(3,)), {"x": 1j * torch.ones(3)}, x_to_x()), MISMATCH,
        r": x is complex, and x is not\.$"),
    row("nowhere to write",
        lambda: interop.dump_params({"x": jnp.ones(3)}, x_to_x(), {}), MISMATCH,
        r"^dump_params: like does not fit names at 1 of 1 leaves: x is not in like\.$"),
    row("another shape there",
        lambda: interop.dump_params({"x": jnp.ones(3)}, x_to_x(), {"x": torch.ones(2)}), MISMATCH,
        r": x has shape \(2,\) against \(3,\)\.$"),
    row("no tensor", lambda: _tensors.as_numpy("f", "x", "text"), TypeError,
        r"^f: x must be a tensor or an array, got str\.$"),
    row("a sparse tensor", lambda: _tensors.as_numpy("f", "x", torch.eye(2).to_sparse()), TypeError,
        r"^f: x must be dense, got a tensor of layout torch.sparse_coo\.$"),
    row("a whole checkpoint", lambda: interop.optimizer({"model": {}, "optimizer": {}}), TypeError,
        r"^optimizer: state_dict must be an optimizer's state_dict\(\), with 'state' and "
        r"'param_groups', got a mapping of \['model', 'optimizer'\]\.$"),
    row("groups without names", lambda: interop.optimizer(grouped()[0]), ValueError,
        r"^optimizer: state_dict has 2 param groups; give names=match\(\.\.\.\), so that they "),
    row("groups without names of parameters", lambda: interop.optimizer(*grouped()), ValueError,
        r"^optimizer: state_dict has 2 param groups without the names of their parameters; give "),
    row("too few names", lambda: interop.optimizer(*grouped(order=NAMES[:1])), ValueError,
        r"^optimizer: state_dict has 2 parameters, and names 1; give match\(\.\.\., order=\) the"),
    row("sorted tensors", sorted_tensors, ValueError,
        r"^optimizer: state_dict has no names, so that the order of the tensors given to match "
        r"counts, and there dense.bias comes before dense.weight: they are sorted\. Give match"),
    *(row(name, lambda name=name: interop.optimizer(state_of(name)), ValueError,
        r"^optimizer: param group 0 is not of Adam, AdamW, RMSprop or SGD of torch.optim; it has")
      for name in OTHER),
]
# fmt: on


@pytest.mark.parametrize("call, error, match", REFUSED)
def test_what_does_not_fit_is_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


_ADAMS = ("Adam", {"betas": (0.8, 0.97)})
_AMSGRAD = ("Adam", {"amsgrad": True})
_STEPS = ("RMSprop", {"momentum": 0.7})
_MOMENTUM = ("SGD", {"momentum": 0.7})
_RATE = adaptax.linear_schedule(1.0, 0.0, 10)

# fmt: off
LOAD = [
    row("another optimizer", *_MOMENTUM, adaptax.adam(0.1), MISMATCH,
        r"^load_state: state_dict does not fit tx at 2 of 2 parameters: the state of dense/bias "
        r"lacks exp_avg, exp_avg_sq and has momentum_buffer, for which tx has no place; the state"),
    row("no place for the maximum", *_AMSGRAD, adaptax.adam(0.1), MISMATCH,
        r"the state of dense/bias has max_exp_avg_sq, for which tx has no place; the"),
    row("no maximum", *_ADAMS, adaptax.amsgrad(0.1, correct_after_max=True), MISMATCH,
        r"the state of dense/bias lacks max_exp_avg_sq; the"),
    row("another maximum", *_AMSGRAD, adaptax.amsgrad(0.1), ValueError,
        r"^load_state: no optimizer of torch does what tx does with dense/bias, which goes through "
        r"scale_by_amsgrad, scale_by_learning_rate: torch's amsgrad is correct_after_max=True\.$"),
    row("momentum of scheduled steps", *_STEPS, adaptax.rmsprop(_RATE, momentum=0.7), ValueError,
        r": the momentum of RMSprop is one of steps, at a rate that follows a schedule or is 0; p"),
    row("momentum of steps at a rate that is set by a schedule", *_STEPS,
        adaptax.adjustable(adaptax.rmsprop(_RATE, momentum=0.7)), ValueError,
        r": the momentum of RMSprop is one of steps, at a rate"),
    row("momentum of no steps", *_STEPS, adaptax.rmsprop(0.0, momentum=0.7), ValueError,
        r": the momentum of RMSprop is one of steps, at a rate"),
    row("two optimizers", *_ADAMS, chain(adaptax.adam(0.1), adaptax.adam(0.1)), ValueError,
        r": they are several of torch's optimizers, or in another order\.$"),
    row("momentum before", *_STEPS, chain(adaptax.trace(0.7), adaptax.rmsprop(0.1)), ValueError,
        r": they are several of torch's optimizers, or in another order\.$"),
    row("ascent there", "Adam", {"maximize": True}, adaptax.adam(0.1), ValueError,
        r"^load_state: torch's optimizer of dense/bias ascends, tx does not; begin with scale\(-1"),
    row("ascent here", *_ADAMS, chain(scale(-1.0), adaptax.adam(0.1)), ValueError,
        r"^load_state: torch's optimizer of dense/bias descends, tx does not; leave out scale\(-1"),
    row("dampening", "SGD", {"momentum": 0.7, "dampening": 0.25}, adaptax.sgd(0.1, 0.7), ValueError,
        r"^load_state: torch's momentum of dense/bias has dampening 0.25; put scale\(0.75\) befor"),
    row("optax", *_ADAMS, optax.adam(0.1), TypeError,
        r"^load_state: tx must be made of adaptax's transformations, got .*interop.convert_state"),
    row("optax inside", *_ADAMS, chain(optax.clip(1.0), adaptax.adam(0.1)), TypeError,
        r"^load_state: tx must be made of adaptax's transformations, got"),
    row("a factory", *_ADAMS, adaptax.adam, TypeError,
        r"^load_state: tx is the function adam itself; call it, as in adam\(\.\.\.\)\.$"),
    row("one vector", *_ADAMS, adaptax.flatten(adaptax.adam(0.1)), MISMATCH,
        r"scale_by_adam keeps no nu like dense/bias; scale_by_adam keeps no nu like dense/kernel"),
]
# fmt: on


@pytest.mark.parametrize("name, options, tx, error, match", LOAD)
def test_states_that_mean_something_else_are_refused(name, options, tx, error, match):
    theirs = tensors(dtype=torch.float32)
    optimizer = getattr(torch.optim, name)(theirs.values(), lr=0.1, **options)
    train_theirs(optimizer, theirs, gradients(1))
    params = as_params(theirs)
    with pytest.raises(error, match=match):
        interop.load_state(tx, params, optimizer.state_dict(), interop.match(params, theirs))


# States that are damaged: each option and each array that is read, missing or wrong.

MISSING = object()
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Adam": ("Adam", {}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "AdamW": ("AdamW", {}),
    "RMSprop": ("RMSprop", {"momentum": 0.7, "centered": True}),
    "SGD": ("SGD", {"momentum": 0.7}),
}
NUMBERS = {
    **dict.fromkeys(("Adam", "amsgrad", "AdamW"), ("lr", "eps", "weight_decay")),
    "RMSprop": ("lr", "alpha", "eps", "weight_decay", "momentum"),
    "SGD": ("lr", "momentum", "dampening", "weight_decay"),
}
FLAGS = {
    **dict.fromkeys(
        ("Adam", "amsgrad", "AdamW"), ("amsgrad", "maximize", "decoupled_weight_decay")
    ),
    "RMSprop": ("centered", "maximize"),
    "SGD": ("nesterov", "maximize"),
}
MARKS = {"betas", "amsgrad", "alpha", "centered", "momentum", "dampening"}  # tell the optimizer
SLOTS = {
    **dict.fromkeys(("Adam", "AdamW"), ("exp_avg", "exp_avg_sq")),
    "amsgrad": ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"),
    "RMSprop": ("square_avg", "grad_avg", "momentum_buffer"),
    "SGD": ("momentum_buffer",),
}
NO_NUMBER: dict[str, Any] = {
    "None": None, "text": "0.1", "NaN": np.nan, "infinite": torch.tensor(np.inf),
    "two": torch.ones(2), "a list": [0.1], "True": True, "complex": 1j,
}  # fmt: skip
NO_FLAG: dict[str, Any] = {"None": None, "text": "True", "2": 2, "a half": 0.5, "a list": [True]}
NO_BETAS: dict[str, Any] = {
    "None": None, "one": (0.9,), "three": (0.9, 0.99, 0.999), "text": ("a", 0.9),
    "NaN": (np.nan, 0.9), "a number": 0.9,
}  # fmt: skip
NO_STEP: dict[str, Any] = {
    "negative": -1.0, "fractional": torch.tensor(2.5), "NaN": torch.tensor(np.nan),
    "infinite": np.inf, "text": "3", "two": torch.ones(2), "True": True, "a dict": {},
}  # fmt: skip
NO_ARRAY: dict[str, tuple[Any, type[Exception], str]] = {
    "a number": (1.0, ValueError, r"has shape \(\) against \(3,\)"),
    "shape": (torch.ones(4), ValueError, r"has shape \(4,\) against \(3,\)"),
    "turned": (torch.ones(3, 1), ValueError, r"has shape \(3, 1\) against \(3,\)"),
    "text": ("ones", TypeError, "must be a tensor or an array, got str"),
    "a list": ([1.0, 2.0, 3.0], TypeError, "must be a tensor or an array, got list"),
    "integers": (torch.ones(3).int(), ValueError, "must be floating, got int32"),
    "objects": (np.array([None] * 3), ValueError, "must be floating, got object"),
    "complex": (torch.ones(3) * 1j, ValueError, "is complex"),
    "sparse": (torch.ones(3).to_sparse(), TypeError, "must be dense"),
    "meta": (torch.ones(3, device="meta"), TypeError, "must have numbers as entries: Cannot copy"),
    "a format": (
        torch.ones(3).to(torch.float8_e4m3fnuz),
        TypeError,
        "must have numbers as entries: .*Float8_e4m3fnuz",
    ),
}


def put(place: Any, key: Any, value: Any) -> None:
    if value is MISSING:
        place.pop(key, None)
    else:
        place[key] = value


def damages_of_groups() -> list[Any]:
    """A kind, an option, what it is then, and what is said of it."""
    found = []
    for kind in KINDS:
        for name in (*NUMBERS[kind], "params"):
            said = f"param group 0 is not of Adam.*; it has|param group 0 lacks {name}[.;]"
            found.append(row(f"{kind}-{name}-missing", kind, name, MISSING, said))
        for names, values, wanted in (
            (NUMBERS[kind], NO_NUMBER, "a finite number"),
            (FLAGS[kind], NO_FLAG, "True or False"),
            (
                ("betas",) if "dam" in kind or kind == "amsgrad" else (),
                NO_BETAS,
                "two finite numbers",
            ),
        ):
            for name in names:
                said = rf"{name} of param group 0 must be {wanted}, got"
                found += [row(f"{kind}-{name}-{v}", kind, name, values[v], said) for v in values]
    for name in sorted(MARKS):
        kind = next(kind for kind in KINDS if name in (*NUMBERS[kind], *FLAGS[kind], "betas"))
        found.append(
            row(f"mark-{name}", kind, name, MISSING, "param group 0 (is not of Adam|lacks)")
        )
    wanted = "params of param group 0 must be a list of numbers or names, got"
    for value in (None, 3, "01", [[0], 1], [None, 1], [torch.ones(1), 1]):
        found.append(row(f"params-{value}"[:20], "Adam", "params", value, wanted))
    again = "param group 0 has the parameter 0 again"
    found.append(row("params-twice", "Adam", "params", [0, 0], again))
    for value in (None, ["a"], [1, 2], "ab"):
        said = "param_names of param group 0 must be a list of 2 names, got"
        found.append(row(f"param_names-{value}", "Adam", "param_names", value, said))
    found.append(row("params-lost", "Adam", "params", [0], "has 1 parameters, and names 2"))
    return found


@functools.cache
def example(kind: str) -> Any:
    name, options = KINDS[kind]
    _, optimizer, params, names = trained(name, steps=2, dtype=torch.float32, **options)
    saved = optimizer.state_dict()
    tx = interop.optimizer(saved, names)
    return tx, params, interop.load_state(tx, params, saved, names), names, saved


def calls(kind: str, saved: Any) -> dict[str, Callable[[], Any]]:
    """What reads a state of torch's."""
    tx, params, state, names, _ = example(kind)
    return {
        "optimizer": lambda: interop.optimizer(saved, names),
        "load_state": lambda: interop.load_state(tx, params, saved, names),
        "dump_state": lambda: interop.dump_state(tx, params, state, names, saved),
    }


@pytest.mark.parametrize("kind, name, value, said", damages_of_groups())
def test_each_option_is_checked(kind, name, value, said):
    saved = copy.deepcopy(example(kind)[-1])
    put(saved["param_groups"][0], name, value)
    for where, call in calls(kind, saved).items():
        with pytest.raises(ValueError, match=rf"^{where}: .*({said})"):
            call()


def test_all_damage_of_groups_is_said_at_once():
    saved = copy.deepcopy(example("Adam")[-1])
    group = saved["param_groups"][0]
    del group["lr"]
    group.update(eps=None, amsgrad="no", betas=3, params=None)
    match = (
        r"^optimizer: state_dict is damaged: param group 0 lacks lr; eps of param group 0 must be "
        r"a finite number, got None \(NoneType\); amsgrad of .*; betas of .*; params of [^;]*\.$"
    )
    with pytest.raises(ValueError, match=match):
        interop.optimizer(saved)


RANGES = [
    ("Adam", "betas", (1.5, 0.9), "adam: b1 must lie in"),
    ("Adam", "betas", (0.9, -0.1), "adam: b2 must lie in"),
    ("amsgrad", "betas", (0.9, 1.0), "amsgrad: b2 must lie in"),
    ("AdamW", "eps", -1.0, "adamw: eps must lie in"),
    ("RMSprop", "alpha", 1.5, "scale_by_stddev: decay must lie in"),
]


@pytest.mark.parametrize("kind, name, value, said", RANGES)
def test_numbers_out_of_range_are_refused(kind, name, value, said):
    saved = copy.deepcopy(example(kind)[-1])
    saved["param_groups"][0][name] = value
    match = rf"^optimizer: state_dict is damaged: in param group 0, {said} .*, got [^.]*\.[^.]*\.$"
    with pytest.raises(ValueError, match=match):
        interop.optimizer(saved)


def damages_of_states() -> list[Any]:
    found = []
    for kind, slots in SLOTS.items():
        only = "step" not in example(kind)[-1]["state"][1] and len(slots) == 1
        for name in slots:
            for value in (MISSING, None):
                said = f"the state of dense/bias lacks {name}"
                said = "dense/bias has no state in torch" if only else said
                found.append(row(f"{kind}-{name}-no", kind, name, value, MISMATCH, said))
            for case, (value, error, text) in NO_ARRAY.items():
                said = f"{name} of dense/bias {text}"
                found.append(row(f"{kind}-{name}-{case}", kind, name, value, error, said))
            if name in ("exp_avg_sq", "max_exp_avg_sq", "square_avg"):
                value, said = (
                    torch.tensor([1.0, -1.0, 0.0]),
                    f"{name} of dense/bias has negative en",
                )
                found.append(row(f"{kind}-{name}-negative", kind, name, value, MISMATCH, said))
        for value in (MISSING, None) if kind != "SGD" else ():
            said = "the state of dense/bias lacks step"
            found.append(row(f"{kind}-step-no", kind, "step", value, MISMATCH, said))
        for case, value in NO_STEP.items():
            said = r"the step of dense/bias must be a whole number >= 0, got"
            found.append(row(f"{kind}-step-{case}", kind, "step", value, MISMATCH, said))
        said = "the state of dense/bias has more, for which tx has no place"
        found.append(row(f"{kind}-more", kind, "more", torch.ones(3), MISMATCH, said))
    return found


@pytest.mark.parametrize("kind, name, value, error, said", damages_of_states())
def test_each_array_and_each_step_is_checked(kind, name, value, error, said):
    saved = copy.deepcopy(example(kind)[-1])
    put(saved["state"][1], name, value)
    with pytest.raises(error, match=rf"^load_state: .*({said})"):
        calls(kind, saved)["load_state"]()


def test_a_step_that_dump_state_takes_from_torch_is_checked():
    saved = copy.deepcopy(example("RMSprop")[-1])
    saved["state"][1]["step"] = -3
    match = (
        r"^dump_state: like is damaged: the step of dense/bias must be a whole number >= 0, got -3"
    )
    with pytest.raises(ValueError, match=match):
        calls("RMSprop", saved)["dump_state"]()


_TOP = r"{} must be an optimizer's state_dict\(\), with 'state' and 'param_groups', got"
_GROUPS = r"{}\['param_groups'\] must be a list of at least one group, got"
_STATE = r"{}\['state'\] must be a mapping from parameters to their states, got"
_ENTRY = "{} is damaged: the state of dense.weight must be a mapping, got"
READERS, STATES = ("optimizer", "load_state", "dump_state"), ("load_state", "dump_state")
# What is damaged, how, who notices, and what is said.
CONTAINERS = [
    row("no state", lambda s: s.pop("state"), READERS, TypeError, _TOP),
    row("no groups", lambda s: s.pop("param_groups"), READERS, TypeError, _TOP),
    *(row(f"groups {v}", lambda s, v=v: s.update(param_groups=v), READERS, TypeError, _GROUPS)
      for v in (None, [], {}, "groups", 3)),
    *(row(f"group {v}", lambda s, v=v: s.update(param_groups=[v]), READERS, TypeError,
          r"{}\['param_groups'\]\[0\] must be a mapping of options, got") for v in (None, 3, [])),
    *(row(f"state {v}", lambda s, v=v: s.update(state=v), READERS, TypeError, _STATE)
      for v in (None, [1], 3)),
    *(row(f"entry {v}", lambda s, v=v: s["state"].update({0: v}), STATES, ValueError, _ENTRY)
      for v in (None, [1], 3, "x")),
    row("an entry of nothing", lambda s: s["state"].update({7: {}}), STATES, ValueError,
        "{} is damaged: state has 7, which is in no param group"),
    row("keys as text", lambda s: s.update(state={str(k): x for k, x in s["state"].items()}),
        STATES, ValueError, "{} is damaged: state has '0', which is in no param group; state has"),
]  # fmt: skip


@pytest.mark.parametrize("damage, functions, error, said", CONTAINERS)
def test_each_container_is_checked(damage, functions, error, said):
    saved = copy.deepcopy(example("Adam")[-1])
    damage(saved)
    every = calls("Adam", saved)
    for where in functions:
        argument = "like" if where == "dump_state" else "state_dict"
        with pytest.raises(error, match=f"^{where}: {said.format(argument)}"):
            every[where]()
    if "optimizer" not in functions:
        every["optimizer"]()  # reads the groups alone


@pytest.mark.parametrize("value, error", [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_the_step_that_is_given_is_checked(value, error):
    tx, params, _, names, saved = example("SGD")
    with pytest.raises(error, match=r"^load_state: step must"):
        unchecked(interop.load_state)(tx, params, saved, names, step=value)


def test_parameters_that_are_no_tensors_are_refused():
    theirs = tensors(dtype=torch.float32)
    params = as_params(theirs)
    names = interop.match(params, theirs)
    load, dump, match = map(unchecked, (interop.load_params, interop.dump_params, interop.match))
    for nothing in (None, 3, [1]):
        with pytest.raises(
            TypeError, match=r"^load_params: state_dict must be a model's state_dict"
        ):
            load(params, nothing, names)
        with pytest.raises(TypeError, match=r"^dump_params: like must be a model's state_dict"):
            dump(params, names, nothing)
        with pytest.raises(TypeError, match=r"^match: tensors must be a mapping of names to tenso"):
            match(params, nothing)
        with pytest.raises(TypeError, match=r"^optimizer: names must be what match"):
            unchecked(interop.optimizer)(example("Adam")[-1], nothing or "names")
    with pytest.raises(
        TypeError, match=r"^load_params: dense.bias must be a tensor or an array, go"
    ):
        load(params, {**theirs, "dense.bias": "text"}, names)
    with pytest.raises(MISMATCH, match=r"dense.bias has dtype object\.$"):
        load(params, {**theirs, "dense.bias": np.array([None] * 3)}, names)
    with pytest.raises(MISMATCH, match=r"^dump_params: like .*: dense.bias has shape \(\) against"):
        dump(params, names, {**theirs, "dense.bias": "text"})


def test_all_that_is_missing_is_said_at_once_and_can_begin_at_zero():
    rng = np.random.default_rng(0)
    theirs = {f"p{i}": torch.nn.Parameter(torch.tensor(rng.normal(size=2))) for i in range(4)}
    optimizer = torch.optim.Adam(theirs.values())
    for steps in range(3):
        for i, p in enumerate(theirs.values()):
            p.grad = torch.ones_like(p) if i != 1 and (i != 3 or steps) else None
        optimizer.step()
    params = {name: jnp.zeros(2) for name in theirs}
    names = interop.match(params, theirs)
    saved = optimizer.state_dict()
    saved["state"][2]["exp_avg"] = torch.ones(3)
    before = copy.deepcopy(saved)
    tx = adaptax.adam(0.1)
    match = (
        r"^load_state: state_dict does not fit tx at 3 of 4 parameters: p1 has no state in torch; "
        r"exp_avg of p2 has shape \(3,\) against \(2,\); p3 has done 2 steps, others 3\. What "
        r"never had a gradient can begin at zero: zeros_for_missing=True\.$"
    )
    with pytest.raises(MISMATCH, match=match) as error:
        interop.load_state(tx, params, saved, names)
    assert error.value.paths == ("p1", "p2", "p3")  # type: ignore[attr-defined]
    with pytest.raises(MISMATCH, match=r" at 2 of 4 .* others 3\.$"):
        interop.load_state(tx, params, saved, names, zeros_for_missing=True)
    torch.testing.assert_close(saved["state"], before["state"])
    del saved["state"][2], saved["state"][3]
    state = interop.load_state(tx, params, saved, names, zeros_for_missing=True)
    assert int(state[0].count) == 3
    for name, there in {"p0": True, "p1": False, "p2": False}.items():
        assert bool(state[0].mu[name].any()) is there
    rate = adaptax.linear_schedule(1.0, 0.0, 10)
    both = chain(decayed(adaptax.constant_schedule(0.0)), adaptax.adam(rate))
    alone = adaptax.partition({"p0": both, "*": both})
    state = interop.load_state(alone, params, saved, names, zeros_for_missing=True)
    counts = [int(x) for x in jax.tree.leaves(state) if x.dtype == jnp.int32]
    assert counts == [3, 0, 3, 3, 3, 3]  # Adam's of the rest is 0
    dumped = interop.dump_state(alone, params, state, names, saved)
    assert [entry["step"].item() for entry in dumped["state"].values()] == [3, 0, 0, 0]
    assert dumped["param_groups"][0]["lr"] == pytest.approx(0.7)
    fresh = torch.optim.Adam(theirs.values()).state_dict()
    begun = interop.load_state(tx, params, fresh, names, zeros_for_missing=True)
    assert_same_bits(begun, tx.init(params))


def test_a_state_without_a_leaf_is_refused():
    theirs, optimizer, params, _ = trained()
    small = {"dense": {"kernel": params["dense"]["kernel"]}}
    names = interop.match(small, theirs, order=NAMES)
    saved = optimizer.state_dict()
    tx = adaptax.adam(0.1)
    with pytest.raises(
        MISMATCH, match=r"1 of 1 parameters: torch's dense.bias has a state, and no leaf\.$"
    ):
        interop.load_state(tx, small, saved, names)
    with pytest.raises(
        MISMATCH, match=r"^dump_state: params and like .*: torch's dense.bias has no leaf"
    ):
        interop.dump_state(tx, small, tx.init(small), names, saved)
    names = interop.match(params, theirs, order=NAMES[:1])
    less = torch.optim.Adam([theirs["dense.weight"]]).state_dict()
    with pytest.raises(
        MISMATCH, match=r"^dump_state: params and like .*: dense/bias is not in like\.$"
    ):
        interop.dump_state(tx, params, tx.init(params), names, less)
    with pytest.raises(MISMATCH, match=r"dense/bias has no state in torch"):
        interop.load_state(tx, params, less, names)


# fmt: off
DUMP = [
    row("another optimizer", *_MOMENTUM, adaptax.adam(0.1),
        r"^dump_state: tx does what Adam does, and like is of SGD\.$"),
    row("clipping", *_ADAMS, chain(adaptax.clip_by_global_norm(1.0), adaptax.adam(0.1)),
        r"^dump_state: torch has no clip_by_global_norm in its optimizers, which dense/kernel goes "
        r"through\. If the training loop there does that, give outside=\['clip_by_global_norm'\]"),
    row("a wrapper", *_ADAMS, adaptax.guard(adaptax.adam(0.1)),
        r"^dump_state: torch has no guard in its optimizers"),
    row("lion", "Adam", {}, adaptax.lion(0.1), r"^dump_state: torch has no scale_by_lion in its"),
    row("one vector", *_ADAMS, adaptax.flatten(adaptax.adam(0.1)),
        r"^dump_state: torch has no flatten in its optimizers"),
    row("two numbers in a group", *_ADAMS,
        adaptax.partition({"*/bias": adaptax.adam(0.1), "*": adaptax.adam(0.2)}),
        r"^dump_state: tx has lr=0.2 for dense/kernel and 0.1 for dense/bias, which are in one "
        r"param group of like, number 0; make like with a group for each\.$"),
    row("decay of AdamW", *_ADAMS, adaptax.adamw(0.1),
        r"^dump_state: in tx the weight decay of dense/kernel is that of AdamW, and like is of "
        r"Adam; make like with torch.optim.AdamW\.$"),
    row("decay of Adam", "AdamW", {}, chain(decayed(0.1), adaptax.adam(0.1)),
        r"is that of Adam, and like is of AdamW; make like with torch.optim.Adam\.$"),
    row("two decays", *_ADAMS, chain(decayed(0.1), adaptax.adamw(0.1)),
        r"goes through add_decayed_weights, scale_by_adam, scale_by_learning_rate: weights decay "),
    row("Nesterov", *_ADAMS, adaptax.nadam(0.1), r": torch's Adam has no Nesterov momentum\.$"),
    row("eps_root", *_ADAMS, adaptax.adam(0.1, eps_root=1e-8), r": torch's Adam has no eps_root"),
    row("first moments as they are", *_AMSGRAD,
        adaptax.amsgrad(0.1, bias_correction_mu=False, correct_after_max=True),
        r": torch's amsgrad corrects both moments\.$"),
    row("no correction", *_AMSGRAD, adaptax.amsgrad(0.1, bias_correction_nu=False),
        r": torch's amsgrad corrects both moments\.$"),
    row("another maximum", *_AMSGRAD, adaptax.amsgrad(0.1),
        r": torch's amsgrad is correct_after_max=True\.$"),
    row("eps inside", "RMSprop", {}, adaptax.rmsprop(0.1),
        r": torch's RMSprop has eps outside the root: eps_in_sqrt=False\.$"),
    row("bias correction", "RMSprop", {},
        adaptax.rmsprop(0.1, eps_in_sqrt=False, bias_correction=True),
        r": torch's RMSprop has no bias correction\.$"),
    row("RMSprop with Nesterov", *_STEPS,
        adaptax.rmsprop(0.1, eps_in_sqrt=False, momentum=0.7, nesterov=True),
        r": torch's RMSprop has no Nesterov momentum\.$"),
    row("Nesterov with dampening", *_MOMENTUM,
        chain(scale(0.5), adaptax.sgd(0.1, 0.7, nesterov=True)),
        r": torch's Nesterov momentum has no dampening\.$"),
    row("a factor", *_ADAMS, chain(scale(0.5), adaptax.adam(0.1)),
        r": gradients are multiplied by 0.5, and torch's only by -1\.$"),
    row("ascent", *_ADAMS, chain(adaptax.adam(0.1), scale(-1.0)),
        r": the last factor is positive, so that they ascend\.$"),
    row("many numbers", *_ADAMS, adaptax.adam(np.array([0.1, 0.2])),
        r"^scale_by_learning_rate: learning_rate has shape \(2,\) where one number is wanted"),
]
# fmt: on


@pytest.mark.parametrize("name, options, tx, match", DUMP)
def test_what_torch_can_not_do_is_refused(name, options, tx, match):
    theirs = tensors(dtype=torch.float32)
    like = getattr(torch.optim, name)(theirs.values(), lr=0.1, **options).state_dict()
    before = copy.deepcopy(like)
    params = as_params(theirs)
    with pytest.raises(ValueError, match=match):
        interop.dump_state(tx, params, tx.init(params), interop.match(params, theirs), like)
    assert like == before


def test_what_is_outside_must_be_there():
    _, optimizer, params, names = trained()
    tx, like = adaptax.adam(0.1), optimizer.state_dict()
    match = (
        r"^dump_state: outside has 'clip', and tx has no such part; it has scale_by_adam; scale_by"
    )
    with pytest.raises(ValueError, match=match):
        interop.dump_state(tx, params, tx.init(params), names, like, outside=["clip"])
    flat = adaptax.flatten(tx)
    with pytest.raises(ValueError, match=r"^dump_state: scale_by_adam keeps no mu like dense/k"):
        interop.dump_state(flat, params, flat.init(params), names, like, outside=["flatten"])


@pytest.mark.parametrize("tx", [adaptax.adam(0.1), adaptax.rmsprop(0.1)], ids=["adam", "rmsprop"])
def test_second_moments_of_complex_parameters_are_refused(tx):
    w = torch.nn.Parameter(torch.tensor([1.0 + 2.0j]))
    make = torch.optim.Adam if tx == adaptax.adam(0.1) else torch.optim.RMSprop
    params = {"w": jnp.array([1.0 + 2.0j])}
    names = interop.match(params, {"w": w})
    with pytest.raises(ValueError, match=r"^load_state: w is complex\. Torch keeps second mom"):
        interop.load_state(tx, params, make([w]).state_dict(), names)
    with pytest.raises(ValueError, match=r"^dump_state: w is complex"):
        interop.dump_state(tx, params, tx.init(params), names, make([w]).state_dict())


def test_without_torch(monkeypatch):
    _, optimizer, params, names = trained()
    saved = optimizer.state_dict()
    wanted = interop.load_state(adaptax.adam(0.1), params, saved, names)
    arrays = copy.deepcopy(saved)
    for entry in arrays["state"].values():
        entry.update({name: x.numpy() for name, x in entry.items()})
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same_bits(interop.load_state(adaptax.adam(0.1), params, arrays, names), wanted)
    match = r"^{} needs PyTorch: pip install 'adaptax\[torch\]'\.$"
    with pytest.raises(ModuleNotFoundError, match=match.format("load")):
        interop.load("run.pt")
    with pytest.raises(ModuleNotFoundError, match=match.format("dump_state")):
        interop.dump_state(adaptax.adam(0.1), params, wanted, names, saved)
    with pytest.raises(ModuleNotFoundError, match=match.format("dump_params")):
        interop.dump_params(params, names, {name: np.ones((3, 4)) for name in NAMES})
