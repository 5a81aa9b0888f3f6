"""The quality harness: its problems are what they say, and its page says what was measured."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaptax
from adaptax.bench.quality import __main__ as command
from adaptax.bench.quality import _candidates, _char, _digits, _page, _quadratic, _suite, _train
from adaptax.bench.quality._results import Results

SEEDS = (0, 1)


def outcome(final):
    return {"final": final, "area": 1.0, "curves": {"validation": [final], "train": [final]}}


def test_curvature_is_even_over_three_decades_in_both_layouts():
    flat = _quadratic.curvatures("sorted", (256, 512)).ravel()
    assert flat[0] == pytest.approx(1e-2, rel=1e-3) and flat[-1] == pytest.approx(10, rel=1e-3)
    np.testing.assert_allclose(np.diff(np.log(flat)), np.log(1000) / flat.size, atol=1e-5)
    shuffled = _quadratic.curvatures("shuffled", (131_072,))
    assert (shuffled != flat).any()
    np.testing.assert_array_equal(np.sort(shuffled), flat)


def test_sgd_on_the_quadratic_is_stationary_where_theory_says(monkeypatch):
    monkeypatch.setattr(_quadratic, "POOL", 2**18)  # quick to make
    monkeypatch.setitem(_quadratic.SHAPES, "vector", (4096,))
    # w' = (1 - α h) w - α s ξ has the variance α s² / (2 h - α h²); here s = √h.
    rate, steps = 0.1, 400
    found = _quadratic.stationary(
        adaptax.sgd(rate), noise="root", shape="vector", layout="sorted", seeds=SEEDS, steps=steps
    )
    assert found.decades.shape == (2, steps // _quadratic.EVERY, 3)
    h = _quadratic.curvatures("sorted", (4096,)).astype(np.float64)
    steep = h[h >= 1]  # there the start is forgotten
    theory = np.sum(0.5 * steep * rate / (2 - rate * steep)) / h.size
    np.testing.assert_allclose(found.stationary_decades[:, 2], theory, rtol=0.03)
    assert found.loss[0] != found.loss[1]


def test_a_comparison_is_paired():
    ratio, error = _quadratic.compare([1.1, 2.2, 4.4], [1.0, 2.0, 4.0])
    assert ratio == pytest.approx(1.1) and error == pytest.approx(0, abs=1e-12)
    assert np.isnan(_quadratic.compare([1.0], [2.0])[1])


def test_the_transformer_is_large_and_its_text_split():
    task = _char.task()
    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0)))]
    assert sum(sizes) >= 1_000_000 and task.steps >= 1500
    train, validation = _char.text()
    assert len(train) > 200_000 and len(validation) > 50_000
    assert set(train.tolist()) | set(validation.tolist()) <= set(range(_char.CLASSES))
    # Attention does not look ahead: the logits of a prefix are those of the whole.
    params = _char.init(jax.random.key(0), 8, 1, 6)
    x = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 9, 9]], np.int32)
    one, changed = jax.jit(_char.logits)(params, x)
    np.testing.assert_allclose(one[:4], changed[:4], rtol=1e-5)
    assert np.abs(one[4:] - changed[4:]).max() > 1e-3


def test_the_convolution_as_a_product_is_a_convolution():
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
    w = jax.random.normal(jax.random.key(1), (3, 3, 3, 4))
    stride, pad, layout = (2, 2), ((1, 1), (1, 1)), ("NHWC", "HWIO", "NHWC")
    expected = jax.lax.conv_general_dilated(x, w, stride, pad, dimension_numbers=layout)
    ours = jax.jit(_digits._patches, static_argnums=1)(x, 2) @ w.reshape(-1, 4)
    np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_a_run_learns_and_repeats_itself():
    def loss(params, batch):
        return jnp.square(params["w"].astype(jnp.float32) - batch).mean()

    task = _train.Task(
        "mean",
        lambda key: {"w": jax.random.normal(key, (3,))},
        loss,
        lambda key: 1.0 + 0.1 * jax.random.normal(key, (3,)),
        lambda params: loss(params, 1.0),
        lambda params: loss(params, 1.0),
        *(40, 10),
    )
    tx, count = adaptax.adam(0.1), []
    one, two = _train.run(task, tx, SEEDS, done=lambda: count.append(1))
    assert len(count) == 2 and one.train.shape == one.validation.shape == (4,)
    assert one.final == one.validation[-1] < one.validation[0] and one.final != two.final
    again, nudged = _train.run(task, tx, [0])[0], _train.run(task, tx, [0], nudge=0.1)[0]
    assert again.final == one.final != nudged.final


@pytest.fixture
def variant():
    return next(v for v in _suite.variants(quick=True) if v.problem == "digits")


def test_outcomes_are_kept_until_the_settings_change(tmp_path, variant):
    path = tmp_path / "quality.json"
    adam = _candidates.CANDIDATES[0]
    tx = variant.make(adam)
    results = Results(path)
    assert results.missing(variant, adam, tx, SEEDS) == [0, 1]
    results.add(variant, adam, tx, SEEDS, [outcome(1.0), outcome(2.0)])
    results = Results(path)
    assert results.missing(variant, adam, tx, (0, 1, 2)) == [2]
    slower = adaptax.adam(adaptax.warmup_cosine_decay_schedule(0.0, 1e-4, 1, 2))
    assert results.missing(variant, adam, slower, SEEDS) == [0, 1]
    assert results.of("digits", "", "adam") == {}, "an outcome of other settings is dropped"


def test_the_page_judges_by_the_limit(tmp_path, variant):
    results = Results(tmp_path / "quality.json")
    finals = {"adam": 2.0, "adam8bit": 2.009, "adam4bit": 1.9, "adam, plain": 2.2}
    chosen = [c for c in _candidates.CANDIDATES if c.name in finals]
    for c in chosen:
        results.add(variant, c, adaptax.adam(0.1), SEEDS, 2 * [outcome(finals[c.name])])
    found = {line.candidate.name: line for line in _page.lines(results, variant)}
    verdicts = {name: line.verdict for name, line in found.items()}
    expected = {"adam": "", "adam8bit": "holds", "adam4bit": "below", "adam, plain": "ABOVE"}
    assert verdicts == expected
    page = _page.render(results, [variant], {})
    assert "| adam8bit | float32 | 8-bit state | 2 | 2.009 | 1.0045 ± 0.0000 |" in page
    assert "seed by seed" not in page


def test_the_page_shows_each_of_many_seeds(tmp_path, variant):
    results = Results(tmp_path / "quality.json")
    seeds = range(_page.USUAL + 1)
    for c in _candidates.CANDIDATES:
        finals = {"adam": [2.0] * 4, "adam8bit": [2.0, 2.1, 2.2, 1.9]}.get(c.name)
        if finals is not None:
            results.add(variant, c, adaptax.adam(0.1), seeds, list(map(outcome, finals)))
    page = _page.render(results, [variant], {})
    assert page.count("seed by seed") == 1
    assert "`adam8bit`, seed by seed: 1.0000, 1.0500, 1.1000, 0.9500.\n" in page


PAGE = Path(__file__).parent.parent / "docs" / "measured" / "quality.md"


def test_the_page_is_what_was_measured():
    problems = {v.problem for v in _suite.variants()}
    figures = {p: f"quality-{p}.png" for p in problems}
    results = Results(PAGE.with_suffix(".json"))
    assert PAGE.read_text("utf-8") == _page.render(results, _suite.variants(), figures)
    assert all((PAGE.parent / name).exists() for name in figures.values())


def test_what_the_page_promises_of_8_bits():
    results = Results(PAGE.with_suffix(".json"))
    (digits, char) = (v for v in _suite.variants() if v.problem in _candidates.TRAINING)
    for variant in (digits, char):
        found = {line.candidate.name: line for line in _page.lines(results, variant)}
        for name in ("adam8bit", "rmsprop8bit"):
            assert found[name].verdict == "holds", (variant.problem, name)
        assert found["adam, plain"].verdict == "ABOVE", "what the wrappers are for"


def test_the_command_trains_and_writes_the_page(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_quadratic, "POOL", 2**12)
    monkeypatch.setitem(_quadratic.SHAPES, "matrix", (16, 32))
    out = tmp_path / "quality.md"
    chosen = ["--problems", "stall", "--only", "adam", "adam, plain", "--seeds", "1", "--quick"]
    assert command.main([*chosen, "--out", str(out)]) == 0
    text, written = out.read_text(), out.with_suffix(".json").read_text()
    assert "| adam, plain | bfloat16 |" in text and (tmp_path / "quality-stall.png").exists()
    assert "stall · adam, plain: " in capsys.readouterr().err
    assert command.main([*chosen, "--out", str(out)]) == 0
    assert out.with_suffix(".json").read_text() == written, "nothing was run again"
    with pytest.raises(SystemExit):
        command.main(["--problems", "nonsense"])


@pytest.mark.parametrize("problem", [_char, _digits], ids=["char", "digits"])
def test_a_task_traces_with_16_bit_parameters(problem):
    task = problem.task(steps=4, every=2)
    program = _train._program(task, adaptax.adam(1e-3), jnp.bfloat16)
    seed, nudge = jnp.uint32(0), jnp.float32(0)
    train, validation, final = jax.eval_shape(program, seed, nudge)
    assert train.shape == validation.shape == (2,) and final.shape == ()
    assert {x.dtype for x in (train, validation, final)} == {jnp.dtype(jnp.float32)}


def test_candidates_are_compared_with_one_that_is_run_beside_them():
    by_name = {c.name: c for c in _candidates.CANDIDATES}
    assert len(by_name) == len(_candidates.CANDIDATES)
    for c in _candidates.CANDIDATES:
        assert set(c.problems) <= set(by_name[c.baseline].problems)
        for v in _suite.variants():
            assert v.problem not in c.problems or c.baseline in v.learning_rates
