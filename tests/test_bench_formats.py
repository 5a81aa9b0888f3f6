"""What formats lose: published figures come out, and the page says what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

import adaptax
from adaptax import lowbit
from adaptax.bench import _problems, formats
from adaptax.bench.formats import __main__ as command
from adaptax.bench.formats import _errors, _page, _steps, _subjects

PAGE = Path(__file__).parent.parent / "docs" / "measured" / "formats.md"
FLASH = "FlashOptim, arXiv:2602.23349"
FOUR_BITS = "torchao's 4 bits"


def subject(name, slot, source=""):
    (found,) = (s for s in formats.SUBJECTS if (s.name, s.slot, s.source) == (name, slot, source))
    return found


def measured():
    return json.loads(PAGE.with_suffix(".json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("name", "slot", "errors", "smallest"),
    [
        ("dynamic_int8()", "mu", [0.062, 0.11, 0.18, 0.275, 0.466, 0.71], 5.5e-7),
        ("dynamic_uint8()", "nu", [0.033, 0.062, 0.11, 0.18, 0.276, 0.466], 3.25e-7),
    ],
)
def test_the_dynamic_maps_lose_what_is_published(name, slot, errors, smallest):
    one = subject(name, slot)
    found = _errors.by_decade(one)
    assert found[:6] == pytest.approx(errors, abs=1.5e-3)
    assert found[6] == 1, "0 is nearer there"
    assert one.numbers[0] == pytest.approx(smallest)
    # Without 0: of all numbers of the last decade 1e-7 is the worst.
    last = _page.PUBLISHED[name][-1]
    assert last == pytest.approx(smallest / 1e-7 - 1)
    assert _page.PUBLISHED[name][:6] == tuple(errors)


def test_published_formats_are_their_formulas():
    x = np.random.default_rng(0).normal(size=(64, 128)) ** 3
    nu = np.square(x)

    def scaled(y, group):
        blocks = y.reshape(-1, group)
        return blocks, np.abs(blocks).max(1, keepdims=True)

    blocks, scale = scaled(x, 32)
    z = np.round(127 * 2 * (blocks / scale) / (1 + np.abs(blocks / scale))) / 127
    flash_mu = z / (2 - np.abs(z)) * scale
    blocks, scale = scaled(np.sqrt(nu), 32)
    flash_nu = np.square(np.round(255 * blocks / scale) * scale / 255)
    blocks, scale = scaled(nu, 128)
    four_nu = np.clip(np.round(16 * blocks / scale), 1, 16) * scale / 16
    for one, data, expected in (
        (subject("m", "mu", FLASH), x, flash_mu),
        (subject("ν", "nu", FLASH), nu, flash_nu),
        (subject("ν", "nu", FOUR_BITS), nu, four_nu),
    ):
        np.testing.assert_allclose(one.round_trip(data, nu).ravel(), expected.ravel(), rtol=1e-12)
    # Signed 4 bits have a largest number on one side only.
    far = np.array([[-1.0, 1.0, 0.0, *np.linspace(-1, 1, 125)]])
    after = subject("m", "mu", FOUR_BITS).round_trip(far, far)
    assert (after.min(), after.max()) == (-0.8875, 1.0)
    assert len(np.unique(after)) == 16


@pytest.mark.parametrize(
    ("mu", "nu", "a_parameter"),
    [
        (("dynamic_int8()", ""), ("dynamic_uint8()", ""), 2.03125),
        (("m", FLASH), ("ν", FLASH), 2.125),
        (("m", FOUR_BITS), ("ν", FOUR_BITS), 1.0625),
        (("int8(root_of='nu')", ""), ("uint8()", ""), 2.0),
    ],
)
def test_bytes_a_parameter(mu, nu, a_parameter):
    one, other = (subject(n, slot, source) for slot, (n, source) in (("mu", mu), ("nu", nu)))
    assert one.bytes + other.bytes == a_parameter


@pytest.fixture(scope="module")
def small():
    """Fewer moments, made once for all tests."""
    _errors.moments.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_errors, "SHAPE", (8, 256))
        yield
    _errors.moments.cache_clear()


@pytest.mark.usefixtures("small")
def test_moments_have_the_sizes_of_theory():
    unit, (b1, b2, steps) = _errors.UNIT, (_errors.B1, _errors.B2, _errors.STEPS)
    mu, nu = _errors.moments(False)
    assert np.sqrt(np.mean(mu**2)) == pytest.approx(unit * np.sqrt((1 - b1) / (1 + b1)), rel=0.06)
    assert nu.mean() == pytest.approx(unit**2 * (1 - b2**steps), rel=0.01)
    # Student's t with 3 degrees of freedom has the variance 3; its unit spreads over 3 decades.
    _, nu = _errors.moments(True)
    tail, head = np.quantile(np.log10(nu), [0.02, 0.98])
    assert head - tail == pytest.approx(0.96 * 6, abs=0.5)
    assert np.median(np.log10(nu)) == pytest.approx(np.log10(3 * unit**2) - 3, abs=0.3)


@pytest.mark.usefixtures("small")
def test_errors_of_known_size():
    def known(slot, round_trip):
        one = _subjects.Subject("known", slot, "1", round_trip, lambda: np.array([1.0, 2.0]), 1.0)
        return formats.measure(one)

    def longer(x, nu):
        return x * np.where(np.arange(x.size).reshape(x.shape) < 256, 1.5, 1.25)

    for slot in ("mu", "nu"):
        found = known(slot, longer)
        assert found["decades"] == pytest.approx([0.5] * 7)  # of 32 rows the first
        for data in ("gaussian", "heavy"):
            assert 0.25 < found[data]["rms"] < 0.5
            assert found[data]["worst"] == pytest.approx(0.5)
            assert found[data]["zeros"] == 0
        nothing = known(slot, lambda x, nu: 0 * x)
        assert nothing["heavy"] == pytest.approx({"rms": 1, "worst": 1, "zeros": 1})
    assert (found["octaves"], found["an_octave"]) == (1, (1, 1))


@pytest.mark.usefixtures("small")
def test_the_command_measures_and_writes_the_page(tmp_path, monkeypatch, capsys):
    chosen = (subject("int8(root_of='nu')", "mu"), subject("uint8()", "nu"))
    monkeypatch.setattr(command, "SUBJECTS", chosen)
    halved = lowbit.store(adaptax.rmsprop(1e-3), {"nu": lowbit.bf16()})  # quick to compile
    few = {"rmsprop": _steps.OPTIMIZERS["rmsprop"], "halved": (lambda: halved, "rmsprop")}
    monkeypatch.setattr(_steps, "OPTIMIZERS", few)
    monkeypatch.setattr(_page, "OPTIMIZERS", few)
    monkeypatch.setattr(_problems, "torch_or_none", lambda: None)  # slow to import
    out = tmp_path / "measured" / "formats.md"
    given = ["--quick", "--repeats", "2", "--out", str(out)]
    assert command.main(given) == 0
    found = json.loads(out.with_suffix(".json").read_text("utf-8"))
    page = out.read_text("utf-8")
    assert page == _page.render(found)
    assert "| `uint8()` | nu | 2⁻¹⁸ | 0.116 |" in page
    assert "| `halved` | 2." in page and ", 2 rounds taken in\nturn (" in page
    assert [len(times) for times in found["steps"]["samples"].values()] == [2, 2]
    monkeypatch.setattr(command, "steps", None)  # what is not asked for stays
    monkeypatch.setattr(command, "SUBJECTS", chosen[:1])
    assert command.main([*given, "--only", "errors"]) == 0
    again = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert again["steps"] == found["steps"] and again["errors"] == found["errors"][:1]
    for bad, says in ((["--repeats", "0"], "at least 1"), (["--only", "x"], "invalid choice")):
        with pytest.raises(SystemExit):
            command.main(bad)
        assert says in capsys.readouterr().err


def test_the_page_is_what_was_measured():
    assert PAGE.read_text("utf-8") == _page.render(measured())


@pytest.mark.parametrize(
    ("name", "slot", "source"),
    [
        ("int8(root_of='nu')", "mu", ""),
        ("uint8()", "nu", ""),
        ("int4(root_of='nu')", "mu", ""),
        ("m", "mu", FLASH),
        ("ν", "nu", FOUR_BITS),
    ],
)
def test_the_page_is_of_the_formats_as_they_are(name, slot, source):
    one = subject(name, slot, source)
    (kept,) = (
        row
        for row in measured()["errors"]
        if (row["name"], row["slot"], row["source"]) == (name, slot, source)
    )
    assert _errors.by_decade(one) == pytest.approx(kept["decades"], rel=1e-6)
    assert [one.bytes, one.octaves, *one.an_octave] == pytest.approx(
        [kept["bytes"], kept["octaves"], *kept["an_octave"]]
    )


def test_no_format_is_on_the_page_that_is_not_measured():
    names = [(row["name"], row["slot"], row["source"]) for row in measured()["errors"]]
    assert names == [(s.name, s.slot, s.source) for s in formats.SUBJECTS]
