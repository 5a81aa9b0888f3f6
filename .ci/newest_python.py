"""Print the path of the newest Python that is on PATH or in pyenv and can make environments.

With `--newer`: the newest of those that .ci/pins has a file for, if it is newer than this one.
"""

import os
import subprocess
import sys
from pathlib import Path

PINS = Path(__file__).parent / "pins"
ASK = "import ensurepip, sys, venv; print(*sys.version_info[:4], sys.executable)"


def candidates() -> set[Path]:
    """Executables named python3.11, python3.12 and so on."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders += pyenv.glob("versions/*/bin")
    return {p for folder in folders for p in folder.glob("python3.*") if p.name[8:].isdecimal()}


def pythons() -> dict[tuple[int, int], str]:
    """The path of the newest release of each version that runs."""
    found = []
    for path in candidates():
        result = subprocess.run([path, "-c", ASK], capture_output=True, text=True, check=False)
        if result.returncode == 0:  # not a shim of pyenv whose Python is not chosen
            major, minor, micro, level, executable = result.stdout.rstrip("\n").split(" ", 4)
            if level == "final":
                found.append((int(major), int(minor), int(micro), executable))
    return {(major, minor): executable for major, minor, _, executable in sorted(found)}


def main(newer: bool) -> None:
    """Print the path, or nothing."""
    found = pythons()
    if newer:
        pinned = {file.stem for file in PINS.glob("*.txt")}
        found = {v: p for v, p in found.items() if "{}.{}".format(*v) in pinned}
        found = {v: p for v, p in found.items() if v > sys.version_info[:2]}
    if found:
        print(found[max(found)])


if __name__ == "__main__":
    main("--newer" in sys.argv[1:])
