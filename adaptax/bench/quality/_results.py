"""What was measured, in a JSON file: a run that is there is not done again."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from .. import _report
from ._candidates import Candidate
from ._suite import Outcome, Variant

FORMAT = 1


class Results:
    """Outcomes by problem, variant, candidate and seed.

    An outcome counts only as long as its settings are the same: the problem's, the learning rate,
    the transformation (as it prints itself) and its state's dtypes and shapes. A change inside
    of a transformation is not seen: leave its outcomes out with `forget`.

    Args:
        path: The file. It is written after every candidate, and read if it is there.
    """

    def __init__(self, path: Path):
        self._path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["format"] == FORMAT:
                self.rows = kept["rows"]

    def missing(self, variant: Variant, candidate: Candidate, tx: Any, seeds: Any) -> list[int]:
        """The seeds without an outcome; those of other settings are dropped."""
        key = digest(variant, candidate, tx)
        mine = list(self._of(variant.problem, variant.name, candidate.name))
        stale = [row for row in mine if row["key"] != key]
        self.rows = [row for row in self.rows if row not in stale]
        there = {row["seed"] for row in mine if row["key"] == key}
        return [seed for seed in seeds if seed not in there]

    def add(
        self,
        variant: Variant,
        candidate: Candidate,
        tx: Any,
        seeds: Sequence[int],
        outcomes: Sequence[Outcome],
    ) -> None:
        """Keep outcomes, and write the file."""
        key = digest(variant, candidate, tx)
        for seed, outcome in zip(seeds, outcomes, strict=True):
            names = {"problem": variant.problem, "variant": variant.name}
            names |= {"candidate": candidate.name}
            self.rows.append({**names, "seed": seed, "key": key, **outcome})
        self._write()

    def forget(self, names: Sequence[str]) -> None:
        """Drop all outcomes of these candidates."""
        self.rows = [row for row in self.rows if row["candidate"] not in names]

    def of(self, problem: str, variant: str, candidate: str) -> dict[int, dict[str, Any]]:
        """Outcomes by seed."""
        rows = sorted(self._of(problem, variant, candidate), key=lambda row: row["seed"])
        return {row["seed"]: row for row in rows}

    def _of(self, problem: str, variant: str, candidate: str) -> Iterator[dict[str, Any]]:
        names = problem, variant, candidate
        for row in self.rows:
            if (row["problem"], row["variant"], row["candidate"]) == names:
                yield row

    def _write(self) -> None:
        rows = ",\n".join(json.dumps(row, ensure_ascii=False) for row in self.rows)
        environment = json.dumps(_report.environment())
        text = f'{{"format": {FORMAT},\n"environment": {environment},\n"rows": [\n{rows}\n]}}\n'
        self._path.parent.mkdir(parents=True, exist_ok=True)
        beside = self._path.with_suffix(".part")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self._path)


def digest(variant: Variant, candidate: Candidate, tx: Any) -> str:
    """A hash of what an outcome depends on, apart from the seed."""
    leaf = jax.ShapeDtypeStruct((256, 512), candidate.param_dtype)
    state = [str(x) for x in jax.tree.leaves(jax.eval_shape(tx.init, {"w": leaf}))]
    settings = [_plain(variant.settings), repr(tx), state, candidate.nudge]
    text = json.dumps([*settings, str(leaf.dtype)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(settings.items()))
