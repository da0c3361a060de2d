"""The time from typing `python train.py` to the end of the first training step, beside importing torch and lightning.

    python benchmarks/startup.py [--repeats 9] [overrides of the training …]

Every measurement is a process of its own, on one thread, and the two kinds take turns. The clock runs from before the
process is started; that of a training stops when the optimizer has made its first step, as torch's own hook tells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

CLOCK = """
import json, os, resource, sys, time
marks = {}
def mark(name):
    marks[name] = time.monotonic()
def done():
    spent = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"marks": marks, "cpu": spent.ru_utime + spent.ru_stime}), file=sys.__stdout__, flush=True)
    os._exit(0)
"""

IMPORTS = """
import torch, lightning
mark("imports")
done()
"""

TRAINING = """
sys.argv = [{script!r}, *{words!r}]
from tunelab import command
mark("command line imported")
train = command.train_job
def timed(cfg):
    mark("composed and checked")
    import torch, lightning
    mark("torch and lightning imported")
    from torch.optim.optimizer import register_optimizer_step_post_hook
    def stepped(*_):
        mark("data, model, trainer, first step")
        done()
    register_optimizer_step_post_hook(stepped)
    return train(cfg)
command.train_job = timed
command.main()
"""
"""What train.py does, with marks on the way."""


def measure(program: str, folder: Path) -> tuple[dict[str, float], float]:
    """The seconds from the start of a process to each of its marks, and its processor seconds in all."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    begin = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", CLOCK + program],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        said = json.loads(process.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        sys.exit(process.stderr)
    return {name: moment - begin for name, moment in said["marks"].items()}, said["cpu"]


def main() -> None:
    """Prints the medians, and how the time of the training passes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("words", nargs="*", help="overrides of the training")
    asked = parser.parse_args()
    training = TRAINING.format(script=str(REPOSITORY / "train.py"), words=asked.words)
    ways = {"import torch, lightning": IMPORTS, "train.py, first step": training}
    found: dict[str, list[tuple[dict[str, float], float]]] = {way: [] for way in ways}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(asked.repeats + 1):
            for way, program in ways.items():
                outcome = measure(program, Path(folder))
                if repeat:  # the first reads the files from the disk
                    found[way].append(outcome)
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    ends = {}
    for way, outcomes in found.items():
        walls = [list(marks.values())[-1] for marks, _ in outcomes]
        ends[way] = statistics.median(walls)
        cpu = statistics.median(cpu for _, cpu in outcomes)
        print(f"{way:<34} {ends[way]:6.2f} s   ({min(walls):.2f} to {max(walls):.2f}; {cpu:.2f} s of processor)")
    first, second = ends
    pairs = zip(found[first], found[second], strict=True)
    more = [list(b.values())[-1] - list(a.values())[-1] for (a, _), (b, _) in pairs]
    print(f"{'more than the imports':<34} {statistics.median(more):6.2f} s   (median of the differences)")
    runs = [marks for marks, _ in found[second]]
    before = dict.fromkeys(range(len(runs)), 0.0)
    for name in runs[0]:
        print(f"  {name:<32} {statistics.median(marks[name] - before[i] for i, marks in enumerate(runs)):6.2f} s")
        before = {i: marks[name] for i, marks in enumerate(runs)}


if __name__ == "__main__":
    main()
