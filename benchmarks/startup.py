"""Times how long each command takes to print its help, as a whole process.

python benchmarks/startup.py [RUNS]
"""

import statistics
import subprocess
import sys
import time

from iaunet.__main__ import COMMANDS


def main() -> None:
    """Print a Markdown table of the median, and of a bare interpreter's start beside it."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    bare = _median([sys.executable, "-c", "pass"], runs)
    print("| command | seconds (median) | times a bare Python |")
    print("| --- | --- | --- |")
    print(f"| python -c pass | {bare:.3f} | 1.0 |")
    for name in COMMANDS:
        seconds = _median([sys.executable, "-m", "iaunet", name, "--help"], runs)
        print(f"| iaunet_{name} --help | {seconds:.3f} | {seconds / bare:.1f} |")


def _median(command: list[str], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
