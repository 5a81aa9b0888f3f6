"""Checkpoints that were damaged after they were written: what is found, and how a run goes on."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import assert_same_bits

import adaptax
from adaptax import checkpoint, lowbit
from adaptax.checkpoint import Checkpoints, _sums

TX = lowbit.store(adaptax.adam(0.1), {"mu": lowbit.int8("nu"), "nu": lowbit.uint8()}, min_size=16)


def tree_of(step: int) -> dict[str, Any]:
    """What is saved at a step: something of every kind, and no two steps alike."""
    rng = np.random.default_rng(step)
    params = {"w": jnp.asarray(rng.standard_normal((16, 64), np.float32)), "b": jnp.ones(3)}
    return {
        "step": step,
        "params": params,
        "state": TX.init(params),
        "key": jax.random.key(step),
        "few": jnp.full(2, 3, jnp.uint4),
        "none": np.zeros((0, 3)),
    }


LIKE = tree_of(0)


def same(x: Any, y: Any) -> None:
    x, y = ({**tree, "key": jax.random.key_data(tree["key"])} for tree in (x, y))
    assert_same_bits(x, y)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ten steps, saved at 5 and 10."""
    path = tmp_path_factory.mktemp("written") / "run"
    with Checkpoints(path) as saves:
        for step in (5, 10):
            saves.save(step, tree_of(step))
    return path


@pytest.fixture
def run(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(written, tmp_path / "run"))


def files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file())


def flip(file: Path, byte: int, bit: int) -> None:
    data = bytearray(file.read_bytes())
    data[byte] ^= 1 << bit
    file.write_bytes(data)


def arrays(step: Path) -> Path:
    """The largest file of a step."""
    return max((p for p in files(step) if "/d/" in str(p)), key=lambda p: p.stat().st_size)


def notes_of(step: Path) -> Path:
    return step / "default" / "_METADATA"


def edit(step: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Edit what is noted, so that it is JSON as before."""
    file = notes_of(step)
    metadata = json.loads(file.read_text())
    change(metadata["custom_metadata"])
    file.write_text(json.dumps(metadata))
    return file


# --- What is damaged. Each returns the file that an error has to name.


def flipped(step: Path) -> Path:
    file = arrays(step)
    flip(file, file.stat().st_size // 2, 3)
    return file


def cut(step: Path) -> Path:
    file = arrays(step)
    file.write_bytes(file.read_bytes()[:-1])
    return file


def emptied(step: Path) -> Path:
    file = arrays(step)
    file.write_bytes(b"")
    return file


def longer(step: Path) -> Path:
    file = step / "default" / "manifest.ocdbt"
    file.write_bytes(file.read_bytes() + b"\0")
    return file


def missing(step: Path) -> Path:
    file = arrays(step)
    file.unlink()
    return file


def swapped(step: Path) -> Path:
    """Two files of arrays, each whole."""
    one, other = sorted((step / "default").glob("**/d/*"), key=lambda p: p.stat().st_size)[-2:]
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    return one  # the shorter one is read first


def of_another_step(step: Path) -> Path:
    """The same length, whole, and not of this step: the metadata of the arrays are alike."""
    file = step / "_CHECKPOINT_METADATA"
    shutil.copyfile(step.with_name("5") / file.name, file)
    return file


def renamed_note(step: Path) -> Path:
    def change(notes: dict[str, Any]) -> None:
        notes["adaptax"]["dtypes"][0][1] = "uint2"

    return edit(step, change)


def no_notes(step: Path) -> Path:
    return edit(step, dict.clear)


def no_metadata(step: Path) -> Path:
    notes_of(step).unlink()
    return notes_of(step)


def no_checksums(step: Path) -> Path:
    (step / "_CHECKSUMS").unlink()
    return step / "_CHECKSUMS"


def other_checksums(step: Path) -> Path:
    flip(step / "_CHECKSUMS", 40, 0)
    return step / "_CHECKSUMS"


def no_arrays(step: Path) -> Path:
    shutil.rmtree(step / "default" / "ocdbt.process_0")
    return step / "default" / "ocdbt.process_0"


DAMAGES = [flipped, cut, emptied, longer, missing, swapped, of_another_step, renamed_note]
DAMAGES += [no_notes, no_metadata, no_checksums, other_checksums, no_arrays]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_the_file(damage: Any, run: Path) -> None:
    file = damage(run / "10")
    message = rf"restore: {re.escape(str(file))}.* is damaged: .*\. Other steps are 5: give step="
    with pytest.raises(ValueError, match=message):
        Checkpoints(run).restore(LIKE, step=10)
    with pytest.raises(ValueError, match=rf"restore: {re.escape(str(file))}.* is damaged: "):
        checkpoint.restore(run / "10", LIKE)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_goes_on_from_the_step_before(damage: Any, run: Path) -> None:
    """By the loop of the documentation; the damaged step is replaced when it is there again."""
    file = damage(run / "10")
    with Checkpoints(run) as saves:
        assert saves.latest == 5
        assert saves.steps == (5,)
        with pytest.warns(UserWarning) as caught:
            step, tree, report = saves.restore(LIKE)
        assert step == 5 and report.exact and report.verified
        message = rf"{re.escape(str(file))}.* is damaged: .* left out"
        assert re.search(message, str(caught[0].message))
        same(tree, tree_of(5))
        saves.save(10, tree_of(11))
        assert saves.steps == (5, 10) and saves.latest == 10
        same(saves.restore(LIKE).tree, tree_of(11))


def test_a_run_may_save_before_the_damaged_step(run: Path) -> None:
    """It saves more often now: the damaged step is still there, and in nobody's way."""
    flipped(run / "10")
    with Checkpoints(run, keep=2) as saves:
        for step, steps in ((7, (5, 7)), (10, (7, 10)), (12, (10, 12))):
            saves.save(step, tree_of(step))
            assert saves.latest == step and saves.steps == steps
        same(saves.restore(LIKE).tree, tree_of(12))
        same(saves.restore(LIKE, step=10).tree, tree_of(10))
    assert sorted(p.name for p in run.iterdir()) == ["10", "12"]


def test_every_flipped_bit_is_found(run: Path) -> None:
    """In every file of a step, at its beginning, amid it and at its end, and anywhere."""
    saves, rng, flips = Checkpoints(run), np.random.default_rng(0), 0
    found = files(run / "10")
    assert len(found) >= 12
    for file in found:
        size = file.stat().st_size
        for byte in (0, size // 2, size - 1, int(rng.integers(size))):
            bit = int(rng.integers(8))
            flip(file, byte, bit)
            with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is damaged: "):
                saves.restore(LIKE, step=10)
            flip(file, byte, bit)
            flips += 1
    assert flips >= 40
    step, tree, report = saves.restore(LIKE)  # nothing was damaged but by the flips
    assert step == 10 and report.verified
    same(tree, tree_of(10))


def test_one_tree_of_a_step_is_verified_too(run: Path) -> None:
    assert checkpoint.restore(run / "10" / "default", LIKE)[1].verified
    file = flipped(run / "10")
    with pytest.raises(ValueError, match=rf"{re.escape(str(file))} is damaged: "):
        checkpoint.restore(run / "10" / "default", LIKE)


def test_where_no_step_is_whole(run: Path) -> None:
    """A run that begins again is told why."""
    both = [flipped(run / "5"), no_metadata(run / "10")]
    saves = Checkpoints(run)
    with pytest.warns(UserWarning) as caught:
        assert saves.latest is None
    for file, warning in zip(reversed(both), caught, strict=True):
        assert re.search(rf"{file} is damaged: .* no other step is whole", str(warning.message))
    message = rf"restore: none of the steps 5, 10 in .* is whole\. .*{both[1]}.* {both[0]} is"
    with pytest.raises(ValueError, match=message):
        saves.restore(LIKE)
    saves.delete(10)
    saves.save(3, tree_of(3))
    assert saves.latest == 3 and sorted(p.name for p in run.iterdir()) == ["3", "5"]
    saves.close()


def test_a_step_is_saved_after_those_that_are_whole(run: Path) -> None:
    """Whether they are is found out where it matters: nobody has verified the step 10."""
    with pytest.raises(ValueError, match=r"save: the step must be after the latest one, 10, got 8"):
        Checkpoints(run).save(8, tree_of(8))
    flipped(run / "10")
    with Checkpoints(run) as saves:
        with pytest.raises(ValueError, match=r"must be after the latest one, 5, got 4"):
            saves.save(4, tree_of(4))
        saves.save(8, tree_of(8))
        assert saves.latest == 8


def test_damaged_steps_are_not_counted_among_those_that_are_kept(run: Path) -> None:
    """Also those that nobody has verified; the last whole one is never removed for their sake."""
    flipped(run / "10")
    with Checkpoints(run, keep=2) as saves:
        saves.save(15, tree_of(15))
        saves.wait()
        assert sorted(int(p.name) for p in run.iterdir()) == [5, 10, 15]
        saves.save(20, tree_of(20))
        saves.wait()
        assert sorted(int(p.name) for p in run.iterdir()) == [15, 20]


def test_steps_of_a_later_version_are_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They can't be read, but are no damage."""
    monkeypatch.setattr("adaptax.checkpoint._file.VERSION", 2)
    with Checkpoints(run) as saves:
        saves.save(15, tree_of(15))
    monkeypatch.undo()
    with Checkpoints(run, keep=2) as saves:
        saves.save(20, tree_of(20))
        saves.wait()
        assert saves.steps == (15, 20)


def test_damage_is_noticed_amid_a_run(run: Path) -> None:
    """By the object that has verified the step before."""
    saves = Checkpoints(run)
    assert saves.latest == 10 and saves.restore(LIKE).step == 10
    file = flipped(run / "10")
    assert saves.latest == 5
    with pytest.warns(UserWarning, match=rf"{file} is damaged"):
        assert saves.restore(LIKE).step == 5
    flip(file, file.stat().st_size // 2, 3)
    assert saves.latest == 10 and saves.restore(LIKE).step == 10


def test_directories_of_others_are_left_alone(run: Path) -> None:
    """That have a number for a name."""
    (run / "12").mkdir()
    (run / "12" / "mine.txt").write_text("mine")
    with Checkpoints(run, keep=1) as saves:
        assert saves.latest == 10
        with pytest.raises(FileExistsError, match=r"save: there is something at .*/12 already"):
            saves.save(12, tree_of(12))
        saves.save(15, tree_of(15))
    assert (run / "12" / "mine.txt").read_text() == "mine"
    assert sorted(p.name for p in run.iterdir()) == ["12", "15"]


# --- Without checksums


def unsealed(step: Path) -> None:
    """As an earlier version wrote it."""
    (step / "_CHECKSUMS").unlink()
    edit(step, lambda notes: notes["adaptax"].pop("checksums"))


def test_checkpoints_without_checksums_are_restored_and_reported(run: Path) -> None:
    for step in ("5", "10"):
        unsealed(run / step)
    with Checkpoints(run, keep=2) as saves:
        assert saves.latest == 10
        step, tree, report = saves.restore(LIKE)
        same(tree, tree_of(10))
        assert step == 10 and report.exact and not report.verified
        assert str(report).splitlines()[1] == "not verified: the checkpoint has no checksums"
        saves.save(11, tree_of(11))
        assert saves.restore(LIKE).report.verified
        assert "verified" not in str(saves.restore(LIKE).report)
        assert saves.steps == (10, 11)
    assert not checkpoint.restore(run / "10", LIKE)[1].verified


NOTES = {
    "no version": lambda notes: notes.pop("version"),
    "a version as text": lambda notes: notes.update(version="x"),
    "no version at all": lambda notes: notes.update(version=None),
    "a list left out": lambda notes: notes.pop("empty"),
    "an unknown dtype": lambda notes: notes.update(dtypes=[[["few"], "vloat32"]]),
    "another dtype": lambda notes: notes.update(dtypes=[[["params", "w"], "int32"]]),
    "a dtype of nothing": lambda notes: notes.update(dtypes=[[["z"], "uint4"]]),
    "a format of nothing": lambda notes: notes.update(
        encoded=[[["z"], {"name": "int8"}, "float32"]]
    ),
    "a format without a name": lambda notes: notes["encoded"][0][1].pop("name"),
    "a format with other arguments": lambda notes: notes["encoded"][0][1].update(x=1),
    "empty, and stored": lambda notes: notes.update(empty=[[["params", "b"], [3], "float32"]]),
    "empty, and not": lambda notes: notes.update(empty=[[["none"], [3], "float32"]]),
    "a shape of text": lambda notes: notes.update(empty=[[["none"], "33", "float32"]]),
    "a path of text": lambda notes: notes.update(keys=[["key", "fry"]]),
    "a key of nothing": lambda notes: notes.update(keys=[[["z"], "fry"]]),
    "a count of nothing": lambda notes: notes.update(rounding=[["z"]]),
    "no dict": lambda notes: notes.clear(),
}


@pytest.mark.parametrize("name", NOTES)
def test_notes_that_can_not_be_are_damage(name: str, run: Path) -> None:
    """Where there are no checksums to tell."""
    for step in ("5", "10"):
        unsealed(run / step)
    file = edit(run / "10", lambda notes: NOTES[name](notes["adaptax"]))
    assert Checkpoints(run).latest == 5
    with pytest.warns(UserWarning, match=rf"{file} is damaged: what adaptax noted in it is not"):
        step, tree, _ = Checkpoints(run).restore(LIKE)
    assert step == 5
    same(tree, tree_of(5))


def test_files_that_can_not_be_read_are_damage(tmp_path: Path) -> None:
    """Also without checksums, so far as TensorStore finds it."""
    like, run = {"x": jnp.zeros((64, 64))}, tmp_path / "run"
    with Checkpoints(run) as saves:
        for step in (5, 10):
            saves.save(step, {"x": jnp.full((64, 64), float(step))})
    for step in ("5", "10"):
        unsealed(run / step)
    for file in (run / "10").rglob("d/*"):
        file.write_bytes(b"x" * file.stat().st_size)
    with pytest.warns(UserWarning, match=r"10/default can't be read: .* It is left out"):
        assert Checkpoints(run).restore(like).step == 5
    (run / "5" / "default" / "manifest.ocdbt").unlink()
    with pytest.raises(ValueError, match=r"restore: .*5/default can't be read: .*Other steps are"):
        Checkpoints(run).restore(like, step=5)


def test_what_fails_for_another_reason_is_not_called_damage(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a checkpoint whose files are what was written."""

    def no_memory(*_: Any, **__: Any) -> None:
        raise MemoryError("not enough")

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", no_memory)
    with pytest.raises(MemoryError, match="not enough"):
        Checkpoints(run).restore(LIKE)


def test_what_a_process_has_listed_is_not_read_again(tmp_path: Path) -> None:
    """Process 0 would have to read what all have written."""
    arrays = tmp_path / "default-unfinished" / "ocdbt.process_0" / "d"
    arrays.mkdir(parents=True)
    (arrays / "x").write_bytes(b"x" * 10)
    _sums.list_part(tmp_path, "-unfinished")
    arrays.parents[1].rename(tmp_path / "default")
    file = tmp_path / "default" / "ocdbt.process_0" / "d" / "x"
    file.write_bytes(b"y" * 10)
    (tmp_path / "other").write_bytes(b"z")
    _sums.seal(tmp_path)
    assert not (tmp_path / "_CHECKSUMS.0").exists()
    with pytest.raises(ValueError, match=rf"{file} is damaged"):
        _sums.check("restore", tmp_path)
    file.write_bytes(b"x" * 10)
    assert _sums.check("restore", tmp_path)
    (tmp_path / "other").write_bytes(b"y")
    with pytest.raises(ValueError, match="other is damaged"):
        _sums.check("restore", tmp_path)
