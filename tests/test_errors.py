"""Bad input: what is said, and that nothing has changed."""

# pyright: reportArgumentType=false, reportCallIssue=false

import contextlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from support import assert_same_bits, grads, params

import adaptax
from adaptax import TreeMismatchError, extend
from adaptax._core import _checks

LINEAR = adaptax.linear_schedule(1.0, 0.0, 10)


def row(name: str, call: Callable[[], Any], error: type[Exception], match: str) -> Any:
    return pytest.param(call, error, match, id=name)


# At the factory

TYPE = "must be a number or a schedule, got "
FACTORY = [
    row("nan rate", lambda: adaptax.adam(float("nan")), ValueError,
        r"^adam: learning_rate must lie in \(-inf, inf\), got nan"),
    row("infinite rate", lambda: adaptax.adam(np.inf), ValueError,
        r"^adam: learning_rate must lie in \(-inf, inf\), got inf"),
    row("huge rate", lambda: adaptax.adam(10**400), ValueError,
        r"^adam: learning_rate must lie in \(-inf, inf\), got 1000"),
    row("nan among rates", lambda: adaptax.adam(jnp.array([0.1, jnp.nan])), ValueError,
        r"^adam: learning_rate must lie in \(-inf, inf\), got Array"),
    row("nan rate in a long array", lambda: adaptax.adam(np.full(9, np.nan)), ValueError,
        r"^adam: learning_rate must lie in \(-inf, inf\), got an array of shape \(9,\)"),
    row("text for a rate", lambda: adaptax.adam("0.1"), TypeError,
        rf"^adam: learning_rate {TYPE}'0.1' \(str\)\.$"),
    row("long text", lambda: adaptax.adam("x" * 99), TypeError, r"xxx\.\.\. \(str\)\.$"),
    row("bool for a rate", lambda: adaptax.adam(True), TypeError,
        rf"^adam: learning_rate {TYPE}True \(bool\)"),
    row("numpy bool for a rate", lambda: adaptax.adam(np.True_), TypeError,
        rf"^adam: learning_rate {TYPE}np.True_ \(bool\)"),
    row("array of bools for a rate", lambda: adaptax.adam(jnp.array(True)), TypeError,
        r"^adam: learning_rate must be a real number, got Array\(True"),
    row("complex rate", lambda: adaptax.adam(0.1j), TypeError,
        rf"^adam: learning_rate {TYPE}0.1j \(complex\)"),
    row("complex array for a rate", lambda: adaptax.adam(jnp.array(0.1j)), TypeError,
        r"^adam: learning_rate must be a real number, got Array\("),
    row("key for a rate", lambda: adaptax.adam(jax.random.key(0)), TypeError,
        r"^adam: learning_rate must be a real number"),
    row("type for a rate", lambda: adaptax.adam(float), TypeError,
        rf"^adam: learning_rate {TYPE}<class 'float'> \(type\)"),
    row("list for a rate", lambda: adaptax.adam([0.1]), TypeError,
        rf"^adam: learning_rate {TYPE}\[0.1\] \(list\)"),
    row("None for b1", lambda: adaptax.adam(0.1, b1=None), TypeError,
        rf"^adam: b1 {TYPE}None \(NoneType\)"),
    row("None for prodigy's rate", lambda: adaptax.prodigy(None), TypeError,
        rf"^prodigy: learning_rate {TYPE}None"),
    row("b1 of 1", lambda: adaptax.adam(0.1, b1=1), ValueError,
        r"^adam: b1 must lie in \[0, 1\), got 1 \(int\)\.$"),
    row("b2 above 1", lambda: adaptax.adam(0.1, b2=1.5), ValueError,
        r"^adam: b2 must lie in \[0, 1\), got 1.5"),
    row("b1 below 0", lambda: adaptax.lion(0.1, b1=-0.5), ValueError,
        r"^lion: b1 must lie in \[0, 1\), got -0.5"),
    row("negative eps", lambda: adaptax.adam(0.1, eps=-1e-8), ValueError,
        r"^adam: eps must lie in \[0, inf\), got -1e-08"),
    row("zero threshold", lambda: adaptax.clip_by_block_rms(0.0), ValueError,
        r"^clip_by_block_rms: threshold must lie in \(0, inf\], got 0.0"),
    row("infinite weight decay", lambda: adaptax.adamw(0.1, weight_decay=np.inf), ValueError,
        r"^adamw: weight_decay must lie in \(-inf, inf\), got inf"),
    row("integer dtype", lambda: adaptax.adam(0.1, mu_dtype=jnp.int8), TypeError,
        r"^adam: mu_dtype must be a floating or complex dtype, got <class 'jax.numpy.int8'>"),
    row("not a dtype", lambda: adaptax.adam(0.1, mu_dtype="float33"), TypeError,
        r"^adam: mu_dtype must be a dtype, got 'float33' \(str\)"),
    row("number for a flag", lambda: adaptax.adam(0.1, nesterov=1), TypeError,
        r"^adam: nesterov must be True or False, got 1 \(int\)"),
    row("array for a flag", lambda: adaptax.adam(0.1, nesterov=jnp.array(True)), TypeError,
        r"^adam: nesterov must be True or False, got Array"),
    row("fraction for a whole number", lambda: adaptax.muon(0.1, ns_steps=5.5), TypeError,
        r"^muon: ns_steps must be a concrete integer, got 5.5 \(float\)"),
    row("bool for a whole number", lambda: adaptax.muon(0.1, ns_steps=True), TypeError,
        r"^muon: ns_steps must be a concrete integer, got True"),
    row("unknown mode", lambda: adaptax.scale_by_lion(mode="soft"), ValueError,
        r"^scale_by_lion: mode must be one of 'hard', 'smooth', 'refined', got 'soft'"),
    row("unknown preconditioning", lambda: adaptax.muon(0.1, preconditioning=None), ValueError,
        r"^muon: preconditioning must be one of 'frobenius', "),
    row("unknown coefficients", lambda: adaptax.muon(0.1, "quintic"), ValueError,
        r"^muon: ns_coeffs must be one of .*dion.*standard.*got 'quintic'"),
    row("two coefficients", lambda: adaptax.muon(0.1, (1.0, 2.0)), TypeError,
        r"^muon: ns_coeffs must be \(a, b, c\) or a tuple of such, got \(1.0, 2.0\)"),
    row("no coefficients", lambda: adaptax.muon(0.1, ()), TypeError,
        r"^muon: ns_coeffs must be \(a, b, c\) or a tuple of such, got \(\)"),
    row("ragged coefficients", lambda: adaptax.muon(0.1, ((1.0, 2.0, 3.0), (1.0,))), TypeError,
        r"^muon: ns_coeffs must be \(a, b, c\)"),
    row("text among coefficients", lambda: adaptax.muon(0.1, (1.0, 2.0, "3")), TypeError,
        rf"^muon: ns_coeffs\[2\] {TYPE}'3'"),
    row("a number for coefficients", lambda: adaptax.muon(0.1, 3.0), TypeError,
        r"^muon: ns_coeffs must be a tuple, got 3.0"),
    row("a schedule among coefficients", lambda: adaptax.muon(0.1, (1.0, 2.0, LINEAR)), TypeError,
        r"^muon: ns_coeffs\[2\] must be a number"),
    row("negative steps", lambda: adaptax.muon(0.1, ns_steps=-1), ValueError, r"muon: ns_steps"),
    row("beta out of range in a tuple", lambda: adaptax.prodigy(betas=(0.9, 1.0)), ValueError,
        r"^prodigy: betas\[1\] must lie in \[0, 1\), got 1.0"),
    row("nan for a step",
        lambda: adaptax.piecewise_constant_schedule(1.0, {np.nan: 0.5}), TypeError,
        r"a step of boundaries_and_scales must be a number, got nan"),
    row("falling boundaries", lambda: adaptax.join_schedules([0.0, 1.0, 2.0], [10, 5]), ValueError,
        r"^join_schedules: boundaries must lie in rising order"),
    row("labels of two kinds",
        lambda: adaptax.partition({"x": adaptax.sgd(1.0), 1: adaptax.sgd(1.0)}, "x"), TypeError,
        r"^partition: transforms must be a mapping whose labels can be sorted together"),
    row("one beta", lambda: adaptax.prodigy(betas=0.9), TypeError,
        r"^prodigy: betas must be a tuple of 2, got 0.9"),
    row("three betas", lambda: adaptax.prodigy(betas=(0.9, 0.9, 0.9)), (TypeError, ValueError),
        r"^prodigy: betas must "),
    row("a schedule among betas", lambda: adaptax.prodigy(betas=(LINEAR, 0.9)), TypeError,
        r"^prodigy: betas\[0\] must be a number"),
    row("schedule without count", lambda: adaptax.rmsprop(0.1, decay=LINEAR), TypeError,
        r"^scale_by_rms: decay is a schedule, but this transformation keeps no step count; give"),
    row("function without count", lambda: adaptax.clip(lambda count: 1.0), TypeError,
        r"^clip: max_delta is a schedule, but this transformation keeps no step count"),
    row("schedule beside no state", lambda: adaptax.learning_rate(adaptax.adam(LINEAR), ()),
        TypeError, r"^adam: learning_rate is a schedule, .* no step count: \(\) \(tuple\)\.$"),
    row("too few arguments", lambda: adaptax.adam(), TypeError,
        r"^adam: missing a required argument: 'learning_rate'\.$"),
    row("too many arguments", lambda: adaptax.sgd(1, 0, True, None, 5), TypeError,
        r"^sgd: too many positional arguments\.$"),
    row("unknown argument", lambda: adaptax.adam(0.1, beta1=0.9), TypeError,
        r"^adam: got an unexpected keyword argument 'beta1'; here it is b1\. The arguments are "
        r"learning_rate, b1, b2, eps, eps_root, mu_dtype, nesterov\.$"),
    row("torch's rate", lambda: adaptax.adam(lr=0.1), TypeError,
        r"^adam: got an unexpected keyword argument 'lr'; here it is learning_rate\."),
    row("torch's betas", lambda: adaptax.adam(0.1, betas=(0.9, 0.99)), TypeError,
        r"keyword argument 'betas'; here it is b1 and b2\."),
    row("Keras's beta_2", lambda: adaptax.lamb(learning_rate=0.1, beta_2=0.9), TypeError,
        r"^lamb: got an unexpected keyword argument 'beta_2'; here it is b2\."),
    row("beta2 of a pair", lambda: adaptax.prodigy(beta2=0.9), TypeError,
        r"^prodigy: .* 'beta2'; here it is betas\."),
    row("Keras's epsilon", lambda: adaptax.adagrad(0.1, epsilon=1e-7), TypeError,
        r"^adagrad: .* 'epsilon'; here it is eps\."),
    row("torch's alpha", lambda: adaptax.rmsprop(0.1, alpha=0.9), TypeError,
        r"^rmsprop: .* 'alpha'; here it is decay\."),
    row("a momentum by another name", lambda: adaptax.muon(0.1, momentum=0.9), TypeError,
        r"^muon: .* 'momentum'; here it is beta\."),
    row("a momentum where there is none", lambda: adaptax.adagrad(0.1, momentum=0.9), TypeError,
        r"^adagrad: .* 'momentum'; put trace before it in a chain\."),
    row("torch's weight decay", lambda: adaptax.adam(0.1, weight_decay=0.1), TypeError,
        r"^adam: .* 'weight_decay'; adamw has it, and add_decayed_weights is for any chain\."),
    row("torch's amsgrad", lambda: adaptax.adam(0.1, amsgrad=True), TypeError,
        r"^adam: .* 'amsgrad'; amsgrad is an optimizer of its own\."),
    row("torch's fused", lambda: adaptax.adamw(0.1, fused=True), TypeError,
        r"^adamw: .* 'fused'; leave it out; it is about how torch and Keras compute\."),
    row("misspelled argument", lambda: adaptax.adamw(0.1, weight_deacy=0.1), TypeError,
        r"^adamw: .* 'weight_deacy'; did you mean weight_decay\."),
    row("torch's rate, injected", lambda: adaptax.inject_hyperparams(adaptax.sgd)(lr=0.1),
        TypeError, r"^sgd: .* 'lr'; here it is learning_rate\."),
    row("schedule without an argument", lambda: adaptax.adam(lambda: 0.1), TypeError,
        r"^adam: learning_rate must be a number or a schedule, a function of the step count; .*"
        r"<lambda>\(count\) fails: too many positional arguments\.$"),
    row("schedule with two arguments", lambda: adaptax.scale_by_schedule(lambda t, x: t), TypeError,
        r"^scale_by_schedule: step_size_fn must .* missing a required argument: 'x'\.$"),
    row("schedule in a schedule", lambda: adaptax.join_schedules([lambda: 0.1, 0.2], [3]),
        TypeError, r"^join_schedules: schedules\[0\] must be a number or a schedule"),
    row("window without an argument", lambda: adaptax.MultiSteps(adaptax.sgd(0.1), lambda: 2),
        TypeError, r"^MultiSteps: every_k_schedule must be a number or a schedule"),
    row("argument given twice", lambda: adaptax.adam(0.1, learning_rate=0.1), TypeError,
        r"^adam: multiple values for argument 'learning_rate'\.$"),
    row("uncalled factory in a chain", lambda: adaptax.chain(adaptax.clip(1.0), adaptax.adam),
        TypeError, r"^chain: argument 2 is the function adam itself; call it, as in adam\("),
    row("number in a chain", lambda: adaptax.chain(1.0), TypeError,
        r"^chain: argument 1 must be a transformation \(a pair of init and update\), got 1.0"),
    row("list of links", lambda: adaptax.chain([adaptax.clip(1.0)]), TypeError,
        r"^chain: argument 1 must be a transformation"),
    row("schedule for a transformation", lambda: adaptax.masked(LINEAR, True), TypeError,
        r"^masked: inner "),
    row("uncalled factory, masked", lambda: adaptax.masked(adaptax.adam, True), TypeError,
        r"^masked: inner is the function adam itself; call it"),
    row("uncalled factory, partition", lambda: adaptax.partition({"x": adaptax.adam}, "x"),
        TypeError, r"^partition: transforms\['x'\] is the function adam itself; call it"),
    row("list for a partition", lambda: adaptax.partition([adaptax.adam(0.1)], "x"), TypeError,
        r"^partition: transforms must be a mapping of path patterns, or pairs of a path pattern"),
    row("link without a name", lambda: adaptax.named_chain(adaptax.clip(1.0)), TypeError,
        r"^named_chain: argument 1 must be a pair of a name and a transformation"),
    row("uncalled factory with a name", lambda: adaptax.named_chain(("a", adaptax.adam)),
        TypeError, r"^named_chain: a is the function adam itself; call it"),
    row("one name twice",
        lambda: adaptax.named_chain(("a", adaptax.clip(1.0)), ("a", adaptax.clip(2.0))),
        ValueError, r"^named_chain: names must be unique, got 'a' more than once"),
    row("schedule of text", lambda: adaptax.linear_schedule("0", 1.0, 5), TypeError,
        rf"^linear_schedule: init_value {TYPE}'0'"),
    row("no steps of decay", lambda: adaptax.cosine_decay_schedule(1.0, 0), ValueError,
        r"^cosine_decay_schedule: decay_steps must lie in \(0, inf\), got 0"),
    row("warm-up as long as the whole",
        lambda: adaptax.warmup_cosine_decay_schedule(0.0, 1.0, 10, 10), ValueError,
        r"^warmup_cosine_decay_schedule: decay_steps must lie in \(10, inf\), after warmup_steps"),
    row("boundaries as pairs",
        lambda: adaptax.piecewise_constant_schedule(1.0, [(5, 0.1)]), TypeError,
        r"^piecewise_constant_schedule: boundaries_and_scales must be a mapping of steps to "),
    row("negative factor",
        lambda: adaptax.piecewise_constant_schedule(1.0, {5: -0.1}), ValueError,
        r"^piecewise_constant_schedule: boundaries_and_scales\[5\] must lie in \[0, inf\)"),
    row("boundaries missing", lambda: adaptax.join_schedules([LINEAR, LINEAR], []), ValueError,
        r"^join_schedules: the number of boundaries must be 1, got 0"),
    row("one schedule joined", lambda: adaptax.join_schedules(LINEAR, []), TypeError,
        r"^join_schedules: schedules must be a tuple, got linear_schedule"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, match", FACTORY)
def test_a_factory_refuses(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_what_is_traced_is_named_by_its_type_and_not_refused_for_its_value():
    with pytest.raises(
        TypeError, match=r"^muon: ns_steps must be a concrete integer, got a traced"
    ):
        jax.jit(lambda n: adaptax.muon(0.1, ns_steps=n) and n)(5)
    jax.jit(lambda rate: adaptax.adam(-rate) and rate)(1.0)


# At update. Each row: the transformation, and what is given to `update` in the place of the
# right (grads, state, params).


def bad(name: str, tx: Any, given: Callable[[Any, Any, Any], Any], error: Any, match: str) -> Any:
    return pytest.param(tx, given, error, match, id=name)


def without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in tree.items() if k != key}


@extend.transformation
def misshapen() -> extend.Leafwise:
    """Break the contract of a rule."""
    return extend.leafwise(lambda t, g, p: jnp.sum(g), adaptax.EmptyState)


ADAM, ADAMW, SCALE = adaptax.adam(0.1), adaptax.adamw(0.1), adaptax.scale_by_adam()
CLIPPED = adaptax.chain(adaptax.clip_by_global_norm(1.0), ADAMW)
TWO = adaptax.partition({"b": adaptax.sgd(0.1), "w": adaptax.sgd(0.2)})
PARTS = adaptax.partition({"x": adaptax.sgd(0.1), "y": ADAMW}, lambda tree: {"b": "x", "w": "y"})
NAMED = adaptax.named_chain(("one", adaptax.ema(0.5)), ("two", adaptax.ema(0.5)))
BATCH = {f"p{i}": jnp.zeros((i + 1, 2)) for i in range(8)}

UPDATE = [
    bad("params missing", ADAMW, lambda g, s, p: (g, s), ValueError,
        r"^add_decayed_weights \(link 2 of adamw\) needs params: call update\(grads, state, "),
    bad("params missing in a nested chain", CLIPPED, lambda g, s, p: (g, s), ValueError,
        r"^add_decayed_weights \(link 2 of adamw\) needs params"),
    bad("params missing in a part", PARTS, lambda g, s, p: (g, s), ValueError,
        r"^add_decayed_weights \(link 2 of adamw\) needs params"),
    bad("params missing, masked", adaptax.masked(ADAMW, True), lambda g, s, p: (g, s), ValueError,
        r"add_decayed_weights \(link 2 of adamw\) needs params"),
    bad("params missing, prodigy", adaptax.prodigy(), lambda g, s, p: (g, s), ValueError,
        r"^prodigy needs params: call update\(grads, state, params\)\.$"),
    bad("params missing, lamb", adaptax.lamb(0.1), lambda g, s, p: (g, s), ValueError,
        r"needs params"),
    bad("params missing, muon", adaptax.muon(0.1), lambda g, s, p: (g, s), ValueError,
        r"needs params"),
    bad("state and gradients swapped", ADAMW, lambda g, s, p: (s, g, p), TypeError,
        r"^adamw: its state holds one state for each of its 3 links \(scale_by_adam, "
        r"add_decayed_weights, scale_by_learning_rate\), got a dict with the keys 'b'; 'w'\. "
        r"The call is update\(grads, state, params\)\.$"),
    bad("state and gradients swapped, no chain", SCALE, lambda g, s, p: (s, g, p), TypeError,
        r"^scale_by_adam: the second argument of update must be its state, ScaleByAdamState, got "),
    bad("state and gradients swapped, masked", adaptax.masked(SCALE, True),
        lambda g, s, p: (s, g, p), TypeError, r"^masked: the second .* its state, MaskedState"),
    bad("state and gradients swapped, partition", PARTS, lambda g, s, p: (s, g, p), TypeError,
        r"^partition: the second .* its state, PartitionState of \['x', 'y'\], got"),
    bad("state missing", ADAM, lambda g, s, p: (g, None), TypeError,
        r"^adam: its state holds one state for each of its 2 links .*, got None"),
    bad("too few states", ADAMW, lambda g, s, p: (g, s[:2], p), TypeError,
        r"^adamw: its state .* 3 links .*, got 2 states, \(ScaleByAdamState, EmptyState\)\. .* "
        r'adaptax\.checkpoint\.restore\(path, tx\.init\(params\), missing="keep", unused="drop"\)'),
    bad("too many states", ADAM, lambda g, s, p: (g, (*s, s[1])), TypeError,
        r"^adam: its state holds one state for each of its 2 links .*, got 3 states"),
    bad("states in another order", ADAM, lambda g, s, p: (g, s[::-1]), TypeError,
        r"^scale_by_adam \(link 1 of adam\): the second argument of update must be its state, "
        r"ScaleByAdamState, got EmptyState\. .* from init or the last update\.$"),
    bad("state of another optimizer", ADAM, lambda g, s, p: (g, adaptax.lion(0.1).init(p)),
        TypeError, r"^adam: .*, got 3 states, .*ScaleByLionState.* adaptax\.checkpoint\.restore\("),
    bad("state of the wrapper", ADAM, lambda g, s, p: (g, adaptax.guard(ADAM).init(p)),
        TypeError, r"^adam: its state holds .* 2 links .*, got GuardState\. The call is"),
    bad("state of the inside", adaptax.guard(ADAM), lambda g, s, p: (g, s.inner_state),
        TypeError, r"^guard: .* its state, GuardState, got \(ScaleByAdamState, EmptyState\)\."),
    bad("state of optax", ADAM, lambda g, s, p: (g, optax.adam(0.1).init(p)), TypeError,
        r"^scale_by_adam \(link 1 of adam\): the second .* its state, ScaleByAdamState, got "
        r"optax's ScaleByAdamState\. .* adaptax\.interop\.convert_state\(state, tx\.init\(params"),
    bad("list of states", ADAM, lambda g, s, p: (g, list(s)), TypeError,
        r"^adam: its state holds one state for each of its 2 links"),
    bad("tuple where names are", NAMED, lambda g, s, p: (g, tuple(s.values())), TypeError,
        r"^named_chain: its state holds one state for each of its 2 links"),
    bad("other names", NAMED, lambda g, s, p: (g, OrderedDict(zip("ab", s.values(), strict=True))),
        TypeError, r"^named_chain: .*one.*two"),
    bad("names in another order", NAMED,
        lambda g, s, p: (g, OrderedDict(reversed(s.items()))), TypeError,
        r"^named_chain: .*one.*two"),
    bad("other labels", PARTS,
        lambda g, s, p: (g, adaptax.PartitionState({"x": s.inner_states["x"]}), p), TypeError,
        r"^partition: the second argument of update must be its state, PartitionState of "),
    bad("gradient missing", ADAMW, lambda g, s, p: (without(g, "b"), s, p), TreeMismatchError,
        r"updates do not match params at 1 of 2 leaves: \['b'\] is not in updates\.$"),
    bad("parameter missing", ADAMW, lambda g, s, p: (g, s, without(p, "b")), TreeMismatchError,
        r"^add_decayed_weights \(link 2 of adamw\): updates do not match params at 1 of 2 leaves: "
        r"\['b'\] is not in params\.$"),
    bad("one of each missing", ADAMW,
        lambda g, s, p: ({"b": g["b"], "x": g["w"]}, s, p), TreeMismatchError,
        r"at 2 of 3 leaves: \['x'\] is not in params; \['w'\] is not in updates\.$"),
    bad("gradient missing, no params", ADAM, lambda g, s, p: (without(g, "b"), s),
        TreeMismatchError, r"^scale_by_adam \(link 1 of adam\): updates do not match state.mu at 1 "
        r"of 2 leaves: \['b'\] is not in updates\.$"),
    bad("a leaf for the tree", ADAMW, lambda g, s, p: (g["w"], s, p), TreeMismatchError,
        r"updates do not match params at 3 of 3 leaves: the root is not in params; "),
    bad("a tree for a leaf", ADAMW, lambda g, s, p: ({**g, "b": {"c": g["b"]}}, s, p),
        TreeMismatchError, r"at 2 of 3 leaves: \['b'\]\['c'\] is not in params; \['b'\] is not "),
    bad("gradient of None's parameter", ADAMW, lambda g, s, p: (g, s, {**p, "b": None}),
        TreeMismatchError, r"at 1 of 2 leaves: \['b'\] is an array against None\.$"),
    bad("list for tuple", adaptax.chain(ADAMW), lambda g, s, p: ([g["b"], g["w"]], s, p),
        TreeMismatchError, r"updates do not match params at 4 of 4 leaves"),
    bad("transposed gradient", ADAMW, lambda g, s, p: ({**g, "w": g["w"].T}, s, p),
        TreeMismatchError, r"updates do not match params at 1 of 2 leaves: \['w'\] has shape "
        r"\(3, 4\) against \(4, 3\)\.$"),
    bad("broadcastable gradient", ADAMW, lambda g, s, p: ({**g, "w": g["w"][:1]}, s, p),
        TreeMismatchError, r"\['w'\] has shape \(1, 3\) against \(4, 3\)\.$"),
    bad("gradient that is a number", ADAMW, lambda g, s, p: ({**g, "w": g["w"][0, 0]}, s, p),
        TreeMismatchError, r"\['w'\] has shape \(\) against \(4, 3\)\.$"),
    bad("broadcastable parameter", ADAMW, lambda g, s, p: (g, s, {**p, "b": p["b"][:1]}),
        TreeMismatchError, r"\['b'\] has shape \(3,\) against \(1,\)\.$"),
    bad("broadcastable state", ADAM,
        lambda g, s, p: (g, (s[0]._replace(nu={**p, "b": p["b"][:1]}), s[1])),
        TreeMismatchError, r"^scale_by_adam \(link 1 of adam\): updates do not match state.nu at 1 "
        r"of 2 leaves: \['b'\] has shape \(3,\) against \(1,\)\.$"),
    bad("gradients of another shape than the state", ADAM,
        lambda g, s, p: ({**g, "b": g["b"][:1]}, s), TreeMismatchError,
        r"updates do not match state.mu at 1 of 2 leaves: \['b'\] has shape \(1,\) against \(3,\)"),
    bad("wrong shapes, factored", adaptax.adafactor(0.1, 2),
        lambda g, s, p: ({**g, "w": g["w"][:2]}, s, p), TreeMismatchError,
        r"updates do not match params at 1 of 2 leaves: \['w'\] has shape \(2, 3\) against"),
    bad("wrong shapes, factored, no params", adaptax.scale_by_factored_rms(),
        lambda g, s, p: ({**g, "w": g["w"][:2]}, s), TreeMismatchError,
        r"at 1 of 2 leaves: \['w'\] has shape \(2, 3\) against \(4, 3\)"),
    bad("integer gradients", ADAMW,
        lambda g, s, p: (jax.tree.map(lambda x: x.astype(int), g), s, p), TreeMismatchError,
        r"^scale_by_adam \(link 1 of adamw\): updates must be floating or complex: \['b'\] is "
        r"int32; \['w'\] is int32\. An integer parameter takes None or jax's float0"),
    bad("a boolean gradient", ADAM, lambda g, s, p: ({**g, "b": g["b"] > 0}, s),
        TreeMismatchError, r"updates must be floating or complex: \['b'\] is bool\. An integer"),
    bad("an integer parameter with a gradient", ADAMW,
        lambda g, s, p: (g, s, {**p, "b": p["b"].astype(int)}), TreeMismatchError,
        r"params must be floating or complex: \['b'\] is int32"),
    bad("rule that changes a shape", misshapen(), lambda g, s, p: (g, s), ValueError,
        r"misshapen: a rule must return an update of the gradient's shape"),
    bad("stacked rate outside vmap", adaptax.adam(jnp.array([0.1, 0.2])), lambda g, s, p: (g, s),
        ValueError, r"^scale_by_learning_rate \(link 2 of adam\): learning_rate has shape \(2,\) "
        r"where one number is wanted\. A transformation with stacked hyperparameters is for "
        r"jax\.vmap"),
    bad("complex gradients for clip", adaptax.clip(1.0),
        lambda g, s, p: ({"z": g["b"].astype(jnp.complex64)}, s), TreeMismatchError,
        r"^clip: complex numbers have no order, .* complex at \['z'\]\. clip_by_"),
    bad("schedule that returns None", adaptax.sgd(lambda count: None), lambda g, s, p: (g, s),
        TypeError, r"^scale_by_learning_rate \(link 2 of sgd\): learning_rate must be a number at "
        r"each step, got None \(NoneType\) from <lambda>"),
    bad("schedule that returns an array", adaptax.sgd(lambda count: jnp.ones(2)),
        lambda g, s, p: (g, s), ValueError,
        r"^scale_by_learning_rate \(link 2 of sgd\): learning_rate has shape"),
]  # fmt: skip


@pytest.mark.parametrize("tx, given, error, match", UPDATE)
def test_update_refuses(tx, given, error, match):
    g, p = grads(), params()
    state = tx.init(p)
    with pytest.raises(error, match=match):
        tx.update(*given(g, state, p))


@pytest.mark.parametrize("tx, given, error, match", UPDATE)
def test_update_refuses_under_jit_too(tx, given, error, match):
    g, p = grads(), params()
    args = given(g, tx.init(p), p)
    with pytest.raises(error, match=f"(?m){match}"):  # jax adds lines
        jax.eval_shape(tx.update, *args)


@pytest.mark.parametrize("tx, given, error, match", UPDATE)
def test_what_raised_has_changed_nothing(tx, given, error, match):
    g, p = grads(), params()
    state = tx.init(p)
    args = given(g, state, p)
    before = jax.tree.map(np.array, (args, g, state, p))
    with contextlib.suppress(Exception):
        tx.update(*args)
    assert_same_bits((args, g, state, p), before, "the arguments")


FINE = [row for row in UPDATE if row.values[0] in (ADAM, ADAMW, SCALE, CLIPPED, PARTS, NAMED)]


@pytest.mark.parametrize("tx, given, error, match", FINE)
def test_a_correct_call_works_after_what_raised(tx, given, error, match):
    g, p = grads(), params()
    state = tx.init(p)
    wanted = jax.tree.map(np.array, tx.update(g, state, p))
    with contextlib.suppress(Exception):
        tx.update(*given(g, state, p))
    assert_same_bits(tx.update(g, state, p), wanted, "the results")


def test_at_most_five_paths_are_shown_and_all_are_kept():
    state = ADAMW.init(BATCH)
    wrong = {name: jnp.zeros((9, 9)) for name in BATCH}
    with pytest.raises(TreeMismatchError, match=r"at 8 of 8 leaves: .*; and 3 more\.$") as caught:
        ADAMW.update(wrong, state, BATCH)
    assert str(caught.value).count("has shape") == 5
    assert caught.value.paths == tuple(f"['p{i}']" for i in range(8))
    assert isinstance(caught.value, ValueError)
    with pytest.raises(TreeMismatchError) as caught:
        ADAMW.update({f"p{i}": BATCH[f"p{i}"] for i in range(3)}, state, BATCH)
    assert str(caught.value).endswith(
        "at 5 of 8 leaves: ['p3'] is not in updates; ['p4'] is not in updates; "
        "['p5'] is not in updates; ['p6'] is not in updates; ['p7'] is not in updates."
    )


def test_containers_that_differ_are_named():
    listed = [*params().values()]
    state = ADAMW.init(tuple(listed))
    with pytest.raises(
        TreeMismatchError,
        match=r"same paths in different containers: "
        r"the root is builtins.list against builtins.tuple\.$",
    ):
        ADAMW.update(listed, state, tuple(listed))
    names = [f"a_layer_with_a_long_name_{i}" for i in range(50)]
    state = ADAMW.init({name: (x,) for name, x in zip(names, [jnp.ones(1)] * 50, strict=True)})
    many = {name: [jnp.ones(1)] for name in names}
    with pytest.raises(TreeMismatchError, match=r": \['a_layer_with_a_long_name_0'\] is builtins"):
        ADAM.update(many, state[:2])


class NnxModel(nnx.Module):
    def __init__(self) -> None:
        self.w = nnx.Param(jnp.ones(2))


def test_a_model_where_its_parameters_belong():
    model = NnxModel()
    state = nnx.state(model, nnx.Param)
    for tree, other in ((model, state), (state, model)):
        with pytest.raises(
            TreeMismatchError, match=r"give init and update nnx\.state\(model, nnx\."
        ):
            ADAM.update(tree, ADAM.init(other))
    model = eqx.nn.MLP(1, 1, 1, 1, key=jax.random.key(0))
    with pytest.raises(
        TypeError, match=r"at \['it'\]\.activation\..* eqx\.filter\(model, eqx\.is_arr"
    ):
        ADAM.init({"it": model})


@pytest.mark.parametrize("wrap", [lambda tx: tx, adaptax.adjustable, adaptax.guard])
def test_what_a_schedule_raises_or_returns_is_said_with_its_name(wrap):
    tx, p = wrap(adaptax.adam(lambda count: count.wrong)), params()
    with pytest.raises(
        AttributeError, match=r"raised by the function given to .* as learning_rate"
    ):
        tx.update(p, tx.init(p), p)
    for wrong in (None, "0.1", [0.1]):
        tx = wrap(adaptax.adam(lambda count, wrong=wrong: wrong))
        with pytest.raises(TypeError, match=r"learning_rate must be a number at each step, got"):
            tx.update(p, tx.init(p), p)


@pytest.mark.parametrize(
    "tx, name",
    [
        (adaptax.conditionally_mask(adaptax.sgd(0.1), lambda: True), "should_transform_fn"),
        (adaptax.MultiSteps(adaptax.sgd(0.1), 2, True, lambda: True), "should_skip_update_fn"),
        (adaptax.snapshot("norm", lambda: 0.0), "measure"),
        (adaptax.measure_with_ema(lambda: 0.0, 0.9), "measure"),
    ],
    ids=["condition", "skip", "snapshot", "measure_with_ema"],
)
def test_what_other_functions_raise_is_said_with_their_names(tx, name):
    with pytest.raises(TypeError, match=rf"(?m)raised by the function given to \w+ as {name}$"):
        tx.update(params(), tx.init(params()), params())


def test_an_integer_parameter_takes_none_or_float0():
    p = {**params(), "n": jnp.arange(3)}
    state = ADAMW.init(p)
    for nothing in (None, np.zeros(3, jax.dtypes.float0)):
        u, after = ADAMW.update({**grads(), "n": nothing}, state, p)
        assert u["n"] is nothing
        assert_same_bits(adaptax.apply_updates(p, u)["n"], p["n"])
        assert jax.tree.structure(after) == jax.tree.structure(state)


# Elsewhere

OTHER = [
    row("parameter that is text", lambda: ADAM.init({"w": "text"}), TypeError,
        r"^adam: parameters must be arrays, got 'text' \(str\) at \['w'\]\.$"),
    row("parameters that are an object", lambda: SCALE.init(object()), TypeError,
        r"^scale_by_adam: parameters must be arrays, got <object object .* at the root\.$"),
    row("vector for muon", lambda: adaptax.scale_by_muon().init(params()), ValueError,
        r"^scale_by_muon: \['b'\] has 1 axes, which do not hold the matrix of MuonDimensionN"),
    row("order of complex numbers", lambda: adaptax.clip(1.0).update(
        {"w": jnp.ones(2, jnp.complex64)}, ()), TreeMismatchError,
        r"^clip: complex numbers have no order, and updates are complex at \['w'\]\. clip_by_bl"),
    row("mask of another tree",
        lambda: adaptax.adamw(0.1, mask=lambda tree: {"b": True}).init(params()), TypeError,
        r"add_decayed_weights.*: a mask is a path pattern, or a tree of bools with the param"),
    row("mask of a pattern that matches nothing",
        lambda: adaptax.adamw(0.1, mask="k").init(params()), ValueError,
        r"add_decayed_weights.*: the pattern 'k' matches no leaf; the names are b; w\.$"),
    row("pattern that gets nothing",
        lambda: adaptax.partition({"*": None, "w": None}).init(params()), ValueError,
        r"^partition: the pattern 'w' gets no leaf: the first match wins, and what it matches "
        r"went, w to '\*'\. Put it earlier\.$"),
    row("leaf that no pattern matches", lambda: adaptax.partition({"w": None}).init(params()),
        ValueError, r"^partition: no pattern of \['w'\] matches b\. A last pattern "),
    row("layers stacked to different heights", lambda: adaptax.scale_by_layer_decay(
        0.5, [adaptax.Stacked("*")]).init(params()), ValueError,
        r"^scale_by_layer_decay: the leaves of the stacked layers '\*' must have one leading "
        r"size; b has 3; w has 4\.$"),
    row("hyperparameter that there is not",
        lambda: adaptax.adjustable(ADAM, static_args="b3"), ValueError,
        r"^adjustable: there is no 'b3'; the numbers are learning_rate; b1; b2; eps; eps_root\.$"),
    row("several learning rates", lambda: adaptax.learning_rate(TWO, TWO.init(params())),
        ValueError, r"^learning_rate: 'learning_rate' is ambiguous: b/learning_rate; w/learning_"),
    row("mask of ones", lambda: adaptax.adamw(0.1, mask={"b": 0, "w": 1}).init(params()),
        TypeError, r"a mask is a path pattern, or a tree of bools .*; got 0 at \['b'\]\.$"),
    row("mask of arrays", lambda: adaptax.adamw(
        0.1, mask=lambda tree: jax.tree.map(lambda x: x > 0, tree)).init(params()),
        TypeError, r"a mask is a path pattern, or a tree of bools "),
    row("mask of another tree at init", lambda: adaptax.masked(ADAM, {"x": True}).init(params()),
        TypeError, r"^masked: a mask is a path pattern, or a tree of bools with the param"),
    row("traced mask",
        lambda: jax.jit(lambda m: adaptax.masked(ADAM, m).init(params()))(True), TypeError,
        r"^masked: a mask is a path pattern, or a tree of bools "),
    row("unknown label",
        lambda: adaptax.partition({"x": ADAM}, {"b": "x", "w": "y"}).init(params()),
        ValueError, r"^partition: the label of \['w'\] must be one of \['x'\], got 'y' \(str\)\.$"),
    row("unknown label of all", lambda: adaptax.partition({"x": ADAM}, "y").init(jnp.ones(2)),
        ValueError, r"^partition: the label of the root must be one of \['x'\], got 'y'"),
    row("label that is a list", lambda: adaptax.partition({"x": ADAM}, lambda p: np.ones(2)).init(
        jnp.ones(2)), ValueError, r"^partition: the label of the root must be one of"),
    row("labels of another tree", lambda: adaptax.partition({"x": ADAM}, {"q": "x"}).init(params()),
        (TypeError, ValueError), r"^partition: .*label"),
    row("updates of another structure", lambda: adaptax.apply_updates(params(), [1.0]),
        TreeMismatchError, r"^apply_updates: updates do not match params at 3 of 3 leaves: "),
    row("an update missing", lambda: adaptax.apply_updates(params(), without(grads(), "b")),
        TreeMismatchError, r"^apply_updates: updates do not match params at 1 of 2 leaves: "
        r"\['b'\] is not in updates\.$"),
    row("parameters and state swapped", lambda: adaptax.apply_updates(ADAM.init(params()), grads()),
        TreeMismatchError, r"^apply_updates: updates do not match params "),
    row("update of another shape",
        lambda: adaptax.apply_updates(params(), {**grads(), "b": jnp.ones(1)}), TreeMismatchError,
        r"^apply_updates: updates do not match params at 1 of 2 leaves: \['b'\] has shape \(1,\) "),
    row("float update of an integer",
        lambda: adaptax.apply_updates({**params(), "b": jnp.arange(3)}, grads()),
        TreeMismatchError, r"^apply_updates: params must be floating or complex: \['b'\] is int32"),
]  # fmt: skip


@pytest.mark.parametrize("call, error, match", OTHER)
def test_the_rest_refuses(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_an_empty_chain_is_the_identity():
    u, state = adaptax.chain().update(grads(), adaptax.chain().init(params()))
    assert state == ()
    assert_same_bits(u, grads())
    assert adaptax.chain().update({"w": 1.0}, ()) == ({"w": 1.0}, ())


def test_every_message_is_in_these_tables(monkeypatch):
    makers = {
        name
        for name, f in inspect.getmembers(_checks, inspect.isfunction)
        if not name.startswith("_") and f.__module__ == _checks.__name__
    }
    called = set()

    def recording(name: str, make: Any) -> Any:
        def record(*args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return make(*args, **kwargs)

        return record

    for name in makers:
        monkeypatch.setattr(_checks, name, recording(name, getattr(_checks, name)))
    for call, *_ in (row.values for row in [*FACTORY, *OTHER]):
        with contextlib.suppress(Exception):
            call()
    for tx, given, *_ in (row.values for row in UPDATE):
        g, p = grads(), params()
        with contextlib.suppress(Exception):
            tx.update(*given(g, tx.init(p), p))
    assert called == makers


@pytest.mark.parametrize("rows", [FACTORY, UPDATE, OTHER], ids=["factory", "update", "other"])
def test_every_message_names_what_it_is_about(rows):
    for parameters in rows:
        match = parameters.values[-1]
        assert re.compile(match)
        assert len(match) > 10, f"{parameters.id} says nothing"
