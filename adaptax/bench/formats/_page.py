"""The page: tables of quantization errors beside published figures, and of times."""

import statistics
from collections.abc import Sequence
from typing import Any

from ._errors import DECADES
from ._steps import OPTIMIZERS

# Of the dynamic map, by decade from the largest down; the last ones count 0 as no number.
PUBLISHED = {
    "dynamic_int8()": (0.062, 0.11, 0.18, 0.275, 0.466, 0.71, 4.5),
    "dynamic_uint8()": (0.033, 0.062, 0.11, 0.18, 0.276, 0.466, 2.25),
}
HEAD = """# Storage formats: what they lose

Written by `python -m adaptax.bench.formats` from `formats.json` beside it; do not edit. All of it
is rounding to nearest; training rounds stochastically, which has up to twice the error in a step
and none on average.
"""
LAYOUT = """## Numbers and bytes

*Bytes* of an entry hold scales, in an array of 4096 × 4096. *Octaves* reach from the smallest
positive number to the largest; numbers *an octave*, where they are closest and farthest apart.
Published for the state of Adam: 2.031 bytes a parameter with dynamic maps in blocks of 256
(bitsandbytes, torchao), 2.125 (FlashOptim, groups of 32), 1.0625 (torchao, 4 bits, blocks of 128).
"""
BY_DECADE = """## The largest relative error in each decade

Below the *reference*: the largest magnitude of a block of 256 (FlashOptim: 32, torchao's 4 bits:
128), the largest of a row, the root of the second moment beside it, or a fixed number. An error of
1 is an entry that becomes 0. For the two dynamic maps, *published* are the errors of the published
construction without the number 0; in the last decade, where 0 is nearer, they are more than 1.
"""
ON_MU = """## First moments

m of β₁ = 0.9 and ν of β₂ = 0.99 after 200 steps of random gradients, 128 × 2048 entries: normal
ones of one size; and heavy-tailed ones, Student's t with 3 degrees of freedom, whose sizes are
spread evenly in their logarithm over three decades. *Rms* is that of the error of m / √ν over that
of m / √ν itself, what rounding does to an update; *worst block* is that of the worst 256 entries;
*zeros* are entries that become 0.
"""
ON_NU = """## Second moments

ν of the same. *Rms* is that of the relative error of an entry; *zeros* are positive entries that
become 0, by whose root an update is then divided. That is why `linear_int8` is refused for second
moments.
"""
STEPS = """## Time of a step on a CPU

A jitted step on {parameters:,} parameters in the shapes of GPT-2 small, {rounds} rounds taken in
turn (`{command} --only steps`; jax {jax}, {cores} cores).{load}
*Ratio* is the median of the ratios within a round, with their quartiles. Decoding and encoding are
arithmetic, and a CPU has too little of that for them to be free. What a step moves on accelerators
is in [the compiled steps](aot.md).
"""
SHARED = " Other programs ran beside it (load average {load:.1f} when it began)."


def render(found: dict[str, Any], command: str = "python -m adaptax.bench.formats") -> str:
    """The page in Markdown, of what there is."""
    parts = [HEAD]
    errors = found.get("errors")
    if errors:
        parts += [LAYOUT, _layout(errors), BY_DECADE, _decades(errors)]
        for slot, text in (("mu", ON_MU), ("nu", ON_NU)):
            parts += [text, _states([one for one in errors if one["slot"] == slot])]
    if found.get("steps"):
        parts += _steps(found["steps"], command)
    return "\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    """Markdown; the first `words` columns are text."""
    rules = [":--"] * words + ["--:"] * (len(head) - words)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, rules, *rows))


def _name(one: dict[str, Any]) -> str:
    return f"{one['source']}, {one['name']}" if one["source"] else f"`{one['name']}`"


def _layout(errors: Sequence[dict[str, Any]]) -> str:
    seen: dict[str, list[str]] = {}
    for one in errors:
        most, least = one["an_octave"]
        row = [f"{one['bytes']:.4f}", f"{one['octaves']:.0f}", f"{most:.3g}", f"{least:.2g}"]
        seen.setdefault(_name(one), row)
    head = ("format", "bytes", "octaves", "an octave, most", "least")
    return _table(head, [(name, *row) for name, row in seen.items()], 1)


def _decades(errors: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in errors:
        rows.append([_name(one), one["slot"], one["reference"], *map(_digits, one["decades"])])
        signed = one["name"].startswith("dynamic_int8")
        if one["name"] in PUBLISHED and (one["slot"] == "mu") == signed:
            rows.append(["*published*", "", "", *map(_digits, PUBLISHED[one["name"]])])
    head = ("format", "slot", "reference", *(f"10⁻{'⁰¹²³⁴⁵⁶⁷'[d + 1]}" for d in range(DECADES)))
    return _table(head, rows, 3)


def _states(errors: Sequence[dict[str, Any]]) -> str:
    rows = []
    for one in errors:
        data = [one[name][key] for name in ("gaussian", "heavy") for key in ("rms", "worst")]
        rows.append([_name(one), *map(_digits, data), f"{100 * one['heavy']['zeros']:.1f} %"])
    head = ("format", "normal: rms", "worst block", "heavy-tailed: rms", "worst block", "zeros")
    return _table(head, rows, 1)


def _steps(found: dict[str, Any], command: str) -> list[str]:
    where, samples = found["environment"], found["samples"]
    load = found["load"]
    text = STEPS.format(
        parameters=found["parameters"],
        rounds=len(next(iter(samples.values()))),
        command=command,
        jax=where["versions"]["jax"],
        cores=where["cpus_usable"],
        load="" if load is None or load < 0.5 else SHARED.format(load=load),
    )
    rows = []
    for name, (_, baseline) in OPTIMIZERS.items():
        pairs = zip(samples[name], samples[baseline], strict=True)
        ratios = [mine / base for mine, base in pairs]
        around = "" if len(ratios) < 4 else _quartiles(ratios)
        rows.append(
            [
                f"`{name}`",
                f"{found['bytes'][name]:.3f}",
                f"{statistics.median(samples[name]):.0f}",
                "1" if name == baseline else f"{statistics.median(ratios):.2f}{around}",
            ]
        )
    head = ("optimizer", "state, bytes a parameter", "ms", "ratio to float32")
    return [text, _table(head, rows, 1)]


def _quartiles(ratios: Sequence[float]) -> str:
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f" [{low:.2f}, {high:.2f}]"


def _digits(x: float) -> str:
    return f"{x:.3f}" if x < 100 else f"{x:.0f}"
