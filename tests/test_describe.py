"""describe: which leaf gets what, and what its state takes."""

import jax
import jax.numpy as jnp
import optax
import pytest
from support import optax_rules, params

import adaptax
from adaptax import describe
from adaptax.catalog import CATALOG


def model():
    return {
        "embed": jnp.ones((6, 4)),
        "layers": [{"kernel": jnp.ones((4, 4), jnp.bfloat16), "bias": jnp.ones(4)}],
        "absent": None,
    }


def gets(tx, tree=None):
    tree = model() if tree is None else tree
    return {leaf.name: leaf.gets for leaf in describe(tx, tree).leaves}


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.name)
@pytest.mark.parametrize("lib", [adaptax, optax], ids=["adaptax", "optax"])
def test_bytes_add_up_to_the_state(entry, lib):
    factory = getattr(lib, entry.name, None) or getattr(lib.contrib, entry.name)
    tx = factory(0.1)
    with optax_rules():
        described = describe(tx, model())
        state = tx.init(model())
    assert described.state_bytes == sum(x.nbytes for x in jax.tree.leaves(state))
    assert [leaf.name for leaf in described.leaves] == [
        "embed", "layers/0/bias", "layers/0/kernel",
    ]  # fmt: skip
    assert described.shared_bytes <= 28


def test_groups_masks_and_chains_are_opened():
    sgd, adamw = adaptax.sgd(0.1), adaptax.adamw(0.1, mask="!*/bias")
    tx = adaptax.chain(
        adaptax.clip(1.0),
        adaptax.partition({"embed": None, "*": adamw}),
        adaptax.masked(sgd, "*/kernel"),
    )
    assert gets(tx) == {
        "embed": "clip(max_delta=1.0), set_to_zero()",
        "layers/0/bias": f"clip(max_delta=1.0), {adamw!r} without add_decayed_weights",
        "layers/0/kernel": f"clip(max_delta=1.0), {adamw!r}, {sgd!r}",
    }
    by_name = {leaf.name: leaf for leaf in describe(tx, model()).leaves}
    assert by_name["embed"].state_bytes == 0 and by_name["embed"].slots == ()
    assert by_name["layers/0/kernel"].state_bytes == 2 * 16 * 4  # float32 for bfloat16
    assert by_name["layers/0/kernel"].slots == ("mu", "nu")
    assert by_name["layers/0/kernel"].dtype == "bfloat16"


def test_wrappers_and_aliases_say_what_they_do():
    assert gets(adaptax.adjustable(adaptax.sgd(0.1)))["embed"] == (
        "adjustable: sgd(learning_rate=0.1)"
    )
    assert gets(adaptax.masked(adaptax.sgd(0.1), "embed"))["layers/0/bias"] == "passes unchanged"
    muon = gets(adaptax.muon(0.1))
    assert muon["embed"].endswith("its muon part")
    assert muon["layers/0/bias"].endswith("its adam part")
    assert "a pair of functions" in gets(optax.adam(0.1))["embed"]
    frozen = gets(adaptax.selective_transform(adaptax.sgd(0.1), freeze_mask="embed"))
    assert (
        frozen["embed"] == "selective_transform: set_to_zero()" or "set_to_zero" in frozen["embed"]
    )


def test_the_table():
    text = str(describe(adaptax.partition({"b": None, "*": adaptax.adam(0.1)}), params()))
    assert text.splitlines() == [
        "set_to_zero()",
        "  b  float32[3]    -          0 bytes",
        "adam(learning_rate=0.1)",
        "  w  float32[4,3]  mu nu     96 bytes",
        "15 parameters in 2 leaves; state 100 bytes, 6.67 a parameter (4 of them for the whole)",
    ]


@pytest.mark.parametrize("tree", [{}, jnp.ones(3), jax.ShapeDtypeStruct((3,), jnp.float32)])
def test_roots_and_empty_trees(tree):
    described = describe(adaptax.adam(0.1), tree)
    assert described.state_bytes == 4 + sum(8 * x.size for x in jax.tree.leaves(tree))
    assert described.shared_bytes == 4
    assert str(described)


def test_it_raises_what_init_raises():
    with pytest.raises(ValueError, match="no pattern of"):
        describe(adaptax.partition({"embed": None}), model())
