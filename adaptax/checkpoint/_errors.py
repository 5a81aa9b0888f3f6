"""What the errors of checkpoints say."""

from collections.abc import Mapping, Sequence
from typing import Any

from .._core import TreeMismatchError, _checks


def needs_orbax(where: str) -> ImportError:
    """Orbax is not installed."""
    return ImportError(f"{where} needs orbax-checkpoint: pip install 'adaptax[checkpoint]'.")


def not_a_directory(where: str, path: Any) -> NotADirectoryError:
    """A file where a directory belongs."""
    return NotADirectoryError(
        f"{where}: the directory must be one, or not exist yet; {path} is a file."
    )


def not_an_array(where: str, name: str, value: Any) -> TypeError:
    """A leaf that cannot be stored."""
    wanted = "an array, a key or a number"
    return _checks.wrong_kind(where, f"the leaf {name}", wanted, value)


def traced(where: str) -> TypeError:
    """A call inside a compiled function."""
    return TypeError(f"{where}: the arrays are traced; call it outside jax.jit, with its results.")


def too_large(where: str, name: str, value: Any, dtype: str) -> ValueError:
    """An integer that its dtype can't hold."""
    return ValueError(f"{where}: {name} is {value}, which {dtype} can't hold.")


def unwritable(where: str, name: str, problem: str) -> ValueError:
    """A name that Orbax can't write."""
    return ValueError(f"{where}: the name of the leaf {name!a:.80} {problem}; rename it.")


def same_name(where: str, names: Sequence[str]) -> ValueError:
    """Leaves that Orbax would write to one place."""
    return ValueError(
        f"{where}: the leaves {_checks.listed(names)} have one name in Orbax's files, where keys "
        "are joined by dots, and a slash at the end doesn't count; rename one."
    )


def step_is_there(where: str, step: int, latest: int) -> ValueError:
    """A save that is not after those that are whole."""
    return ValueError(
        f"{where}: the step must be after the latest one, {latest}, got {step}. To go on from an "
        "earlier one, delete those after it first: delete(step)."
    )


def no_checkpoint(where: str, directory: Any) -> FileNotFoundError:
    """An empty directory, or none."""
    return FileNotFoundError(
        f"{where}: there is no checkpoint in {directory}. A checkpoint of another program may "
        "have steps with other names; give checkpoint.restore(path, like) its path."
    )


def no_step(where: str, step: int, steps: Sequence[int]) -> FileNotFoundError:
    """A step that is not there."""
    have = ", ".join(map(str, steps)) or "none"
    return FileNotFoundError(f"{where}: there is no step {step}; the steps are {have}.")


def nothing_there(where: str, path: Any) -> FileNotFoundError:
    """A path that is not there."""
    return FileNotFoundError(f"{where}: {path} does not exist.")


class DamagedError(ValueError):
    """A checkpoint that is not whole, or can't be read."""


class RemovedError(Exception):
    """A step was removed, or replaced, while it was read; never raised to a user."""


def removed(where: str, directory: Any) -> FileNotFoundError:
    """Steps that are always removed before they are read."""
    return FileNotFoundError(
        f"{where}: the steps in {directory} are removed faster than they are read; keep more of "
        "them where they are written (keep=)."
    )


def damaged(where: str, file: Any, problem: str) -> DamagedError:
    """A file that is not what was written."""
    return DamagedError(f"{where}: {file} is damaged: {problem}.")


def damaged_elsewhere(where: str, path: Any) -> DamagedError:
    """A checkpoint that another process can't read."""
    return DamagedError(f"{where}: {path} can't be read by one of the processes.")


def bad_notes(where: str, path: Any, problem: str) -> DamagedError:
    """Notes that say what can't be."""
    return DamagedError(
        f"{where}: {path}/_METADATA is damaged: what adaptax noted in it is not valid ({problem})."
    )


def incomplete(where: str, path: Any, steps: Sequence[str]) -> ValueError:
    """A directory without the files of a checkpoint."""
    if steps:
        return ValueError(
            f"{where}: {path} holds the steps {_checks.listed(steps)}; use Checkpoints, or the "
            "path of one."
        )
    return DamagedError(
        f"{where}: {path} is not a checkpoint of a tree, or not a whole one: it has no _METADATA."
    )


def unreadable(where: str, path: Any, error: Exception) -> DamagedError:
    """Files that are damaged."""
    text = str(error)
    text = text if len(text) <= 300 else text[:297] + "..."
    return DamagedError(f"{where}: {path} can't be read: {text}")


def with_others(error: DamagedError, steps: Sequence[int]) -> DamagedError:
    """The same, with the steps that may be read instead."""
    if not steps:
        return error
    return DamagedError(f"{error} Other steps are {', '.join(map(str, steps))}: give step=.")


def none_whole(
    where: str, directory: Any, steps: Sequence[int], problems: Sequence[DamagedError]
) -> DamagedError:
    """Steps that are all damaged."""
    each = " ".join(str(problem).removeprefix(f"{where}: ") for problem in problems[:5])
    return DamagedError(
        f"{where}: none of the steps {', '.join(map(str, steps))} in {directory} is whole. {each}"
    )


def newer(where: str, path: Any) -> ValueError:
    """A checkpoint of a later version."""
    return ValueError(f"{where}: {path} was written by a later version of adaptax; update it.")


def bad_shardings(where: str, problem: str) -> TypeError:
    """A tree of shardings that does not fit."""
    return TypeError(
        f"{where}: shardings must be a jax.sharding.Sharding, or a tree of them with the "
        f"structure of like (or a prefix of it); {problem}."
    )


def abstract_mesh(where: str, mesh: Any) -> ValueError:
    """Shapes on a mesh without devices."""
    return ValueError(
        f"{where}: the shapes of like lie on {mesh}, which has no devices: call it within "
        "jax.set_mesh(mesh), or give shardings."
    )


def sharding_misfit(where: str, name: str, shape: Any, error: Exception) -> ValueError:
    """A sharding that does not divide an array."""
    return ValueError(f"{where}: the sharding of {name} does not fit its shape {shape}: {error}")


def misfit(where: str, path: Any, problems: Mapping[str, Mapping[str, str]]) -> TreeMismatchError:
    """All that does not match, at once.

    Args:
        where: Who asks.
        path: The checkpoint.
        problems: By what is wrong the leaves, each with what there is to say of it.
    """
    parts = []
    for what, leaves in problems.items():
        if leaves:
            each = (f"{name} {text}" if text else name for name, text in leaves.items())
            parts.append(f"{what}: {_checks.listed(each)}.")
    names = [name for leaves in problems.values() for name in leaves]
    return TreeMismatchError(f"{where}: {path} does not fit like. {' '.join(parts)}", names)


def path_is_there(where: str, path: Any) -> FileExistsError:
    """A path that is in use."""
    return FileExistsError(f"{where}: there is something at {path} already; give a new path.")


def ambiguous(where: str, name: str, values: Mapping[str, Any]) -> ValueError:
    """A count that may be one of several."""
    each = (f"{source} is {value}" for source, value in values.items())
    return ValueError(
        f"{where}: {name} belongs to states that are merged, and {_checks.listed(each)}. Restore "
        "into the optimizer that it was saved of, and set what the new one is to have."
    )
