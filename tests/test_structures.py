"""Structures as in optax: prefixes, markers, functions or trees, empty states, dtypes of links."""

# pyright: reportArgumentType=false

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import Case, cases
from flax import nnx
from support import assert_same_bits, optax_rules, params, skeleton
from trees import as_jax

import adaptax
from adaptax import lowbit
from adaptax._core._tree import MaskedNode, is_function, is_marker

# Masks that are prefixes


def deep() -> Any:
    """Parameters below lists, tuples and dicts, among them None and nothing."""
    x = jnp.ones
    return {"a": [x(1), (x(2), x((3, 2)), None)], "b": {"c": x(4), "d": x((5, 3)), "e": {}}}


def over(f: Callable[[Any], bool]) -> Callable[[Any], Any]:
    return lambda tree: jax.tree.map(f, tree)


MASKS: dict[str, Any] = {
    "prefix": {"a": [True, (True, False, None)], "b": False},
    "prefix of parts": {"a": False, "b": True},
    "prefix of one level": {"a": [False, True], "b": {"c": True, "d": False, "e": False}},
    "matrices": over(lambda x: x.ndim > 1),
    "no leaf": over(lambda x: False),
    "all": True,
    "none": False,
    "all, by a function": lambda tree: True,
    "prefix, by a function": lambda tree: {"a": True, "b": False},
}
INNER: dict[str, Callable[[Any], Any]] = {
    "trace": lambda lib: lib.trace(0.9),
    "scale": lambda lib: lib.scale(2.0),
    "chain": lambda lib: lib.chain(lib.clip_by_global_norm(1.0), lib.adam(0.1)),
    "adamw with a mask": lambda lib: lib.adamw(0.1, mask=over(lambda x: x.ndim > 1)),
    "masked": lambda lib: lib.masked(lib.trace(0.5), over(lambda x: x.ndim < 2)),
    "accumulated": lambda lib: optax.GradientTransformation(
        *_pair(lib.MultiSteps(lib.sgd(1.0), 2))
    ),
    "apply_if_finite": lambda lib: lib.apply_if_finite(lib.sgd(0.1, momentum=0.9), 2),
    "adafactor": lambda lib: lib.adafactor(0.1),
}


def _pair(tx: Any) -> tuple[Any, Any]:
    return tx.init, tx.update


def _labels(mask: Any, yes: Any, no: Any) -> Any:
    def named(tree: Any) -> Any:
        return jax.tree.map(lambda b: yes if b else no, tree)

    return (lambda tree: named(mask(tree))) if callable(mask) else named(mask)


def _frozen(lib: Any, tx: Any, mask: Any) -> Any:
    return lib.partition({"on": tx, "off": lib.set_to_zero()}, _labels(mask, "on", "off"))


AROUND: dict[str, Callable[[Any, Any, Any], Any]] = {
    "masked": lambda lib, tx, mask: lib.masked(tx, mask),
    "partition": lambda lib, tx, mask: lib.partition(
        {1: tx, 2: lib.sgd(0.1, 0.9)}, _labels(mask, 1, 2)
    ),
    "frozen": _frozen,
    "multi_transform in a mask": lambda lib, tx, mask: lib.masked(_frozen(lib, tx, True), mask),
    "decay": lambda lib, tx, mask: lib.chain(tx, lib.add_decayed_weights(0.1, mask)),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("around", AROUND.values(), ids=AROUND.keys())
def test_structures_are_those_of_optax_to_the_last_node(around, mask):
    p = deep()
    for name in INNER if around in (AROUND["masked"], AROUND["partition"]) else ("trace", "masked"):

        def run(lib: Any, inner: Any = INNER[name]) -> Any:
            tx = around(lib, inner(lib), mask)

            def step() -> Any:
                state = tx.init(p)
                return state, *tx.update(p, state, p)

            return skeleton(jax.eval_shape(step))

        with optax_rules():
            wanted = run(optax)
        assert run(adaptax) == wanted, name


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_updates_under_a_prefix_are_those_of_optax(mask):
    def run(lib: Any) -> Any:
        tx = _frozen(lib, lib.chain(lib.trace(0.9), lib.add_decayed_weights(0.1, mask)), mask)
        _, state = tx.update(deep(), tx.init(deep()), deep())
        return tx.update(deep(), state, deep())

    with optax_rules():
        wanted = run(optax)
    for ours, theirs in zip(*(jax.tree.leaves(x) for x in (run(adaptax), wanted)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def layers() -> Any:
    x = jnp.ones(2)
    return {"blocks": [{"k": x, "b": x}, {"k": x, "b": x}], "embed": {"t": x}, "head": {"k": x}}


NAMED: dict[str, Any] = {
    "groups": adaptax.partition({"blocks/*/b": None, "embed/*": None, "*": adaptax.sgd(2.0)}),
    "layers": adaptax.scale_by_layer_decay(0.5, ["embed/*", "blocks/{}/*", "head/*"]),
    "mask": adaptax.add_decayed_weights(1.0, mask="!*/b"),
    "deeper mask": adaptax.add_decayed_weights(1.0, jax.tree.map(lambda x: True, layers())),
}


@pytest.mark.parametrize("inner", NAMED.values(), ids=NAMED.keys())
def test_what_a_prefix_hides_is_known_by_name_inside(inner):
    """As where a mask has a bool for each leaf."""
    prefix = {"blocks": False, "embed": True, "head": True}
    whole = jax.tree.map(lambda x: True, layers()) | {
        "blocks": jax.tree.map(lambda x: False, layers()["blocks"])
    }
    one, other = (
        tx.update(layers(), tx.init(layers()), layers())[0]
        for tx in (adaptax.masked(inner, prefix), adaptax.masked(inner, whole))
    )
    assert_same_bits(one, other)
    assert_same_bits(one["blocks"], layers()["blocks"])


def test_a_pattern_for_nothing_is_refused_below_a_prefix_too():
    tx = adaptax.masked(
        adaptax.partition({"bloks/*": None, "*": None}),
        {**layers(), "blocks": False, "embed": True, "head": True},
    )
    with pytest.raises(ValueError, match=r"'bloks/\*' matches no leaf; .*blocks/0/b"):
        tx.init(layers())


# A function, or a tree that can be called


class Net(eqx.Module):
    w: Any
    b: Any

    def __call__(self, x: Any) -> Any:
        raise AssertionError("a tree was called")


def net() -> Net:
    return Net(jnp.ones((3, 2)), jnp.ones(3))


ONLY_W = Net(True, False)
CALLABLE: dict[str, Callable[[], tuple[Any, Any]]] = {
    "masked": lambda: (adaptax.masked(adaptax.scale(2.0), ONLY_W), {"w": True, "b": False}),
    "decay": lambda: (adaptax.add_decayed_weights(1.0, ONLY_W), {"w": True, "b": False}),
    "lion": lambda: (
        adaptax.chain(adaptax.lion(1.0, mask=ONLY_W, weight_decay=2.0), adaptax.scale(-1.0)),
        {"w": True, "b": False},
    ),
    "partition": lambda: (
        adaptax.partition({1: adaptax.scale(2.0), 2: adaptax.identity()}, Net(1, 2)),
        {"w": True, "b": False},
    ),
    "freeze": lambda: (adaptax.freeze(ONLY_W), {"w": True, "b": False}),
    "selective_transform": lambda: (
        adaptax.selective_transform(adaptax.identity(), freeze_mask=ONLY_W),
        {"w": True, "b": False},
    ),
    "muon": lambda: (
        adaptax.muon(0.1, muon_weight_dimension_numbers=Net(adaptax.MuonDimensionNumbers(), None)),
        {"w": True, "b": True},
    ),
}


@pytest.mark.parametrize("make", CALLABLE.values(), ids=CALLABLE.keys())
def test_a_module_that_can_be_called_is_a_tree(make):
    tx, changes = make()
    state = tx.init(net())
    updates, _ = tx.update(net(), state, net())
    for name, change in changes.items():
        assert np.array_equal(getattr(updates, name), getattr(net(), name)) is not change, name


class Wrapped(eqx.Module):
    """A function that some framework has made a pytree."""

    f: Callable[[Any], Any]

    def __call__(self, tree: Any) -> Any:
        return self.f(tree)


@pytest.mark.parametrize(
    "given, function",
    [
        (lambda tree: True, True),
        (functools.partial(print), True),
        (jax.tree_util.Partial(print, 1), True),
        (Wrapped(lambda tree: True), True),
        (adaptax.by_path({"*": True}), True),
        (net(), False),
        (ONLY_W, False),
        ({"w": True}, False),
        (True, False),
        (None, False),
    ],
)
def test_what_is_a_function(given, function):
    assert is_function(given) is function


# Markers of optax's classes


def test_markers_of_optax_are_ours():
    assert is_marker(optax.MaskedNode(), MaskedNode) and not is_marker((), MaskedNode)
    assert not is_marker(optax.EmptyState(), MaskedNode)
    dims = {"w": optax.contrib.MuonDimensionNumbers(1, 0), "b": None}
    ours = {"w": adaptax.MuonDimensionNumbers(1, 0), "b": None}
    for given in (dims, lambda tree: dims):
        states = [
            adaptax.muon(0.1, muon_weight_dimension_numbers=d).init(params()) for d in (given, ours)
        ]
        assert_same_bits(*states)
    inner = optax.masked(
        adaptax.chain(adaptax.scale_by_path({"b": 3.0, "w": 2.0})), {"b": False, "w": True}
    )
    updates, _ = inner.update(params(), inner.init(params()), params())
    assert_same_bits(updates, {"b": params()["b"], "w": 2 * params()["w"]})


def test_a_leaf_without_dimension_numbers_is_named():
    tx = adaptax.scale_by_muon(weight_dimension_numbers={"w": None, "b": None})
    with pytest.raises(
        ValueError, match=r"\['b'\] has 1 axes, which do not hold the matrix of None"
    ):
        tx.init(params())


# Trees in other containers


def test_masks_in_other_containers_are_refused_with_the_place_and_both_types():
    layer = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
    state = nnx.state(layer, nnx.Param)
    mask = jax.tree.map(lambda x: x.ndim > 1, state)
    tx = adaptax.adamw(0.1, mask=mask)
    tx.init(state)
    with pytest.raises(
        adaptax.TreeMismatchError,
        match=r"; at \['bias'\] it has a flax.*Param where the other tree has a jax.*ArrayImpl\.$",
    ) as caught:
        tx.init(nnx.as_pure(state))
    assert caught.value.paths == ("['bias']",)
    for given, match in {
        "list": ([True, True], r"at the root it has a list where the other tree has a dict"),
        "keys": (
            {"w": True},
            r"at the root it has \['w'\] where the other tree has \['b'\], \['w'\]",
        ),
        "deeper": ({"w": {"x": True}, "b": True}, r"at \['w'\] it has a dict where .*ArrayImpl"),
    }.values():
        with pytest.raises(adaptax.TreeMismatchError, match=match):
            adaptax.masked(adaptax.identity(), given).init(params())
        labels = jax.tree.map(lambda x: 1, given)
        with pytest.raises(adaptax.TreeMismatchError, match=match):
            adaptax.partition({1: adaptax.identity()}, labels).init(params())


# States of nothing


@cases(lambda case: case.first)
def test_what_stores_nothing_takes_any_empty_state(case: Case) -> None:
    tx, p = case.make(), as_jax(case.params_as(np.float32))
    if not isinstance(tx.init(p), adaptax.EmptyState):
        with pytest.raises(
            TypeError, match=r"the second argument of update must be|holds one state"
        ):
            tx.update(p, None, p)
        return
    for state in (None, (), {}, optax.EmptyState(), adaptax.EmptyState()):
        assert tx.update(p, state, p)[1] is state
    with pytest.raises(TypeError, match="the second argument of update must be its state"):
        tx.update(p, p, p)


# Links from elsewhere


class Link(NamedTuple):
    """A link from elsewhere that tells the dtypes that it is given."""

    seen: list[Any]

    def pair(self) -> Any:
        def update(updates: Any, state: Any, params: Any = None) -> Any:
            self.seen.append([x.dtype for x in jax.tree.leaves(updates)])
            return updates, state

        return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


first = adaptax.clip_by_global_norm(1.0)
HANDING: dict[str, Callable[[Any], Any]] = {
    "chain": lambda tx: adaptax.chain(first, tx),
    "last but one": lambda tx: adaptax.chain(first, tx, adaptax.scale(-0.1)),
    "named_chain": lambda tx: adaptax.named_chain(("first", first), ("second", tx)),
    "chain in a chain": lambda tx: adaptax.chain(first, adaptax.chain(adaptax.scale(2.0), tx)),
    "masked": lambda tx: adaptax.chain(first, adaptax.masked(tx, True)),
    "partition": lambda tx: adaptax.chain(first, adaptax.partition({"*": tx})),
    "MultiSteps": lambda tx: adaptax.MultiSteps(tx, 2),
    "MultiSteps of a chain": lambda tx: adaptax.MultiSteps(adaptax.chain(first, tx), 1),
    "MultiSteps in a chain": lambda tx: adaptax.chain(first, adaptax.MultiSteps(tx, 2)),
    "dynamic_loss_scale": lambda tx: adaptax.dynamic_loss_scale(tx, 1.0),
    "guard": lambda tx: adaptax.chain(first, adaptax.guard(tx)),
    "apply_if_finite": lambda tx: adaptax.chain(first, adaptax.apply_if_finite(tx, 2)),
    "conditionally_mask": lambda tx: adaptax.chain(
        first, adaptax.conditionally_mask(tx, lambda step: step >= 0)
    ),
    "flatten": lambda tx: adaptax.chain(first, adaptax.flatten(tx)),
    "lookahead": lambda tx: adaptax.chain(first, adaptax.lookahead(tx, 2, 0.5, slow_in_state=True)),
    "schedule_free": lambda tx: adaptax.chain(first, adaptax.schedule_free(tx, 0.1)),
    "ema_params": lambda tx: adaptax.chain(first, adaptax.ema_params(tx, 0.9)),
    "inject_hyperparams": lambda tx: adaptax.chain(
        first, adaptax.inject_hyperparams(lambda rate: tx)(0.1)
    ),
    "monitor": lambda tx: adaptax.chain(first, adaptax.monitor({"it": tx})),
    "store": lambda tx: adaptax.chain(
        first, lowbit.store(adaptax.chain(adaptax.ema(0.9), tx), {"ema": lowbit.int8()})
    ),
}
narrow = pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bf16", "f16"])


@narrow
@pytest.mark.parametrize("make", HANDING.values(), ids=HANDING.keys())
def test_links_from_elsewhere_see_the_dtypes_of_the_gradients(make, dtype):
    link = Link([])
    tx = make(link.pair())
    p = (
        {"h": jnp.ones(3, dtype), "w": jnp.ones(3)}
        if "flatten" not in repr(tx)
        else jnp.ones(3, dtype)
    )
    jax.eval_shape(lambda: tx.update(p, tx.init(p), p))
    assert link.seen and all(seen == [x.dtype for x in jax.tree.leaves(p)] for seen in link.seen)


def test_master_weights_hand_out_float32():
    link = Link([])
    tx = adaptax.dynamic_loss_scale(lowbit.master_weights(adaptax.chain(first, link.pair())))
    p = jnp.ones(3, jnp.float16)
    jax.eval_shape(lambda: tx.update(p, tx.init(p), p))
    assert link.seen == [[jnp.float32]] * len(link.seen) and link.seen


THEIRS: dict[str, Callable[[], Any]] = {
    name: functools.partial(getattr(optax, name, None) or getattr(optax.contrib, name), *args)
    for name, args in {
        "scale_by_adadelta": (), "scale_by_rprop": (0.1,), "scale_by_optimistic_gradient": (),
        "scale_by_adam": (), "scale_by_yogi": (), "scale_by_belief": (), "scale_by_novograd": (),
        "scale_by_sm3": (), "centralize": (), "zero_nans": (), "cocob": (), "adabelief": (0.1,),
        "fromage": (0.1,), "dog": (0.1,), "ademamix": (0.1,),
    }.items()
}  # fmt: skip


@pytest.mark.parametrize("name", THEIRS)
def test_states_of_optax_keep_the_dtypes_that_they_have_in_its_own_chain(name):
    link, p = THEIRS[name](), {"w": jnp.ones(3, jnp.bfloat16)}

    def step(tx: Any) -> Any:
        return jax.eval_shape(lambda: tx.update(p, tx.init(p), p))[1]

    with optax_rules():
        _, wanted, *_ = step(optax.chain(optax.identity(), link, optax.scale(-0.1)))
        _, got, *_ = step(adaptax.chain(first, link, adaptax.scale(-0.1)))
    assert [x.dtype for x in jax.tree.leaves(got)] == [x.dtype for x in jax.tree.leaves(wanted)]


LANDING: dict[str, Callable[[Any], Any]] = {
    "lookahead": lambda tx: adaptax.lookahead(tx, 100, 0.5, slow_in_state=True),
    "flatten": adaptax.flatten,
    "optax's chain in ours": lambda tx: adaptax.chain(adaptax.identity(), optax.chain(tx)),
    "optax's chain, masked": lambda tx: adaptax.masked(optax.chain(optax.identity(), tx), True),
    "chain of chains": lambda tx: adaptax.chain(adaptax.identity(), adaptax.chain(tx)),
    "MultiSteps": lambda tx: adaptax.MultiSteps(optax.chain(tx), 1),
}


@pytest.mark.parametrize("make", LANDING.values(), ids=LANDING.keys())
def test_nothing_rounds_updates_that_land_on_a_16_bit_number(make):
    inner = adaptax.chain(adaptax.sgd(1e-3), lowbit.kahan())
    p = jnp.linspace(1.0, 2.0, 32).astype(jnp.bfloat16)

    def train(tx: Any) -> Any:
        def step(carry: Any, _: Any) -> Any:
            p, state = carry
            u, state = tx.update(jnp.full_like(p, 0.3), state, p)
            return (adaptax.apply_updates(p, u), state), u

        return jax.lax.scan(step, (p, tx.init(p)), None, length=5)[1]

    assert_same_bits(train(make(inner)), train(inner))


def test_only_what_comes_from_elsewhere_at_the_end_keeps_its_dtype():
    wide = optax.stateless(
        lambda updates, params: jax.tree.map(lambda u: u.astype(jnp.float32), updates)
    )
    p = jnp.ones(3, jnp.bfloat16)
    for tx, dtype in {
        adaptax.chain(wide, adaptax.scale(2.0)): jnp.bfloat16,
        adaptax.chain(wide, adaptax.stateless(lambda u, p: u)): jnp.bfloat16,
        adaptax.chain(adaptax.scale(2.0), wide): jnp.float32,
    }.items():
        assert tx.update(p, tx.init(p), p)[0].dtype == dtype


# Misuse: where optax raises, ours is an instance of the same error


def _updated(tx: Any, g: Any, state: Any = None, p: Any = None) -> Any:
    return tx.update(g, tx.init(params()) if state is None else state, p)


def _contrib(lib: Any) -> Any:
    return getattr(lib, "contrib", lib) if lib is optax else lib


def _part(*names: str) -> Any:
    return {name: params()[name] for name in names}


def _tall() -> Any:
    return {"b": jnp.ones(3), "w": jnp.ones((5, 2))}


def _no_bool(*_: Any) -> Any:
    return jnp.zeros(2), ()


MISUSE: dict[str, Callable[[Any], Any]] = {
    "mask of other keys": lambda lib: lib.masked(lib.adam(0.1), {"x": True}).init(params()),
    "mask that is a list": lambda lib: lib.masked(lib.adam(0.1), [True, True]).init(params()),
    "mask that is deeper": lambda lib: lib.masked(
        lib.adam(0.1), {"b": True, "w": {"x": True}}
    ).init(params()),
    "mask function": lambda lib: lib.adamw(0.1, mask=lambda p: {"x": True}).init(params()),
    "labels of other keys": lambda lib: lib.partition({1: lib.sgd(0.1)}, {"x": 1}).init(params()),
    "label unknown": lambda lib: lib.partition({1: lib.sgd(0.1)}, {"b": 1, "w": 2}).init(params()),
    "label that is an array": lambda lib: lib.partition(
        {1: lib.sgd(0.1)}, {"b": 1, "w": np.ones(2)}
    ).init(params()),
    "gradient missing": lambda lib: _updated(lib.adam(0.1), _part("w")),
    "gradients in a list": lambda lib: _updated(lib.adam(0.1), list(params().values())),
    "gradient of another shape": lambda lib: _updated(lib.adam(0.1), _tall()),
    "parameters missing": lambda lib: _updated(lib.adamw(0.1), params()),
    "one parameter missing": lambda lib: _updated(lib.adamw(0.1), params(), p=_part("w")),
    "trust ratio without parameters": lambda lib: _updated(lib.scale_by_trust_ratio(), params()),
    "too few states": lambda lib: _updated(
        lib.chain(lib.clip(1.0), lib.scale(1.0)), params(), (lib.EmptyState(),)
    ),
    "too many states": lambda lib: _updated(
        lib.chain(lib.clip(1.0), lib.scale(1.0)), params(), (lib.EmptyState(),) * 3
    ),
    "name twice": lambda lib: lib.named_chain(("a", lib.clip(1.0)), ("a", lib.clip(1.0))),
    "update missing": lambda lib: lib.apply_updates(params(), _part("w")),
    "update of another shape": lambda lib: lib.apply_updates(params(), _tall()),
    "skip that is no bool": lambda lib: _updated(
        lib.MultiSteps(lib.sgd(0.1), 2, should_skip_update_fn=_no_bool), params()
    ),
    "period of zero": lambda lib: lib.lookahead(lib.sgd(0.1), 0, 0.5),
    "average of other trees": lambda lib: lib.incremental_update(params(), _part("w"), 0.1),
    "complex clip": lambda lib: _updated(lib.clip(1.0), jnp.ones(2, jnp.complex64)),
    "dimension numbers of other keys": lambda lib: (
        _contrib(lib)
        .muon(0.1, muon_weight_dimension_numbers={"x": _contrib(lib).MuonDimensionNumbers()})
        .init(params())
    ),
    "matrix of one axis": lambda lib: _updated(
        _contrib(lib).muon(
            0.1,
            muon_weight_dimension_numbers=over(lambda x: _contrib(lib).MuonDimensionNumbers()),
        ),
        params(),
    ),
    "coefficients": lambda lib: _contrib(lib).muon(0.1, ns_coeffs=(1.0, 2.0)).init(params()),
    "set of coefficients": lambda lib: _contrib(lib).muon(0.1, ns_coeffs="x").init(params()),
    "prodigy without parameters": lambda lib: _updated(_contrib(lib).prodigy(), params()),
    "schedule-free without parameters": lambda lib: _updated(
        _contrib(lib).schedule_free(lib.sgd(0.1), 0.1), params()
    ),
    "unknown argument": lambda lib: lib.adam(0.1, b3=0.9),
    "parameter of text": lambda lib: lib.adam(0.1).init({"w": "text"}),
}


@pytest.mark.parametrize("call", MISUSE.values(), ids=MISUSE.keys())
def test_an_error_is_one_of_those_of_optax(call):
    with optax_rules(), pytest.raises((ValueError, TypeError)) as theirs:
        call(optax)
    kind = ValueError if isinstance(theirs.value, ValueError) else TypeError
    with pytest.raises(kind):
        call(adaptax)
