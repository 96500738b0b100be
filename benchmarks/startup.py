"""`neurokube --help` beside a bare interpreter; the aim is 0.4 s.

python -m benchmarks.startup [--rounds 15]
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from .measure import machine, ratio

COMMANDS = {
    "neurokube --help": [str(Path(sys.executable).with_name("neurokube")), "--help"],
    "import typer": [sys.executable, "-c", "import typer"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(options.rounds):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    print(machine())
    for name, times in taken.items():
        print(
            f"{name:16} {median(times):.3f} s (best {min(times):.3f}); "
            f"{ratio(times, taken['python -c pass']):.1f} times python -c pass"
        )


if __name__ == "__main__":
    main()
