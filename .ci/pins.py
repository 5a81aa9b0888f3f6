"""Print the exact versions that adaptax and its extras resolve to, on the Python that runs this.

Arguments are further requirements, such as jax==0.9.0. Nothing is installed.
"""

import json
import re
import subprocess
import sys

EXTRAS = "test,docs,examples,bench,aot"
PIP = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
# The CUDA that a build of torch brings along is that build's affair; nvcc is ours, for `make aot`.
OURS_OR_OF_TORCH = "adaptax$|triton$|cuda-|nvidia-(?!cuda-nvcc-cu12$)"


def main(requirements: list[str]) -> None:
    """Resolve, and print one line for each package."""
    command = [*PIP, "--report", "-", f".[{EXTRAS}]", *requirements]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    found = [item["metadata"] for item in report["install"]]
    # Without the local part: torch==2.13.0 is met by every build of it.
    pins = {data["name"]: data["version"].split("+")[0] for data in found}
    pins = {name: pins[name] for name in pins if not re.match(OURS_OR_OF_TORCH, name)}
    python = "{}.{}.{}".format(*sys.version_info)
    made = " ".join(["python .ci/pins.py", *requirements])
    print(f"# What .[{EXTRAS}] brings along on Python {python}. Made with `{made}`.")
    for name in sorted(pins, key=str.lower):
        print(f"{name}=={pins[name]}")


if __name__ == "__main__":
    main(sys.argv[1:])
