"""Whether a diagnosis is right: its first verdict on a zoo of faulty runs, and its false alarms on healthy ones.

    python benchmarks/diagnosis.py [--folder FOLDER] [--part chosen|aside|fresh|noise|fast|all] [--seeds 5] [--wrong]

The runs of benchmarks/diagnosis_zoo.py are trained into the folder once, each on one thread; what is there is not
trained again, so that a change of a rule is measured in seconds. Thresholds were chosen on the cases of `chosen`; those
of `aside`, a third of each fault's by a hash of their names, were looked at when they stood; those of `fresh` were made
when these had shown that four thresholds had to be mended; those of `noise` are healthy runs of data that tell but a
part, those of `fast` healthy ones at an lr that is high and good: the rule of an lr too high was mended by its first,
which it had found fault with. Any verdict on a healthy run counts as a false alarm, also one that is but perhaps so.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the parts beside this file

from benchmarks.diagnosis_zoo import HIGH_LR, Case, aside, cases, command, fresh_cases, noise_cases
from tunelab.analysis.diagnosis import diagnose
from tunelab.analysis.evidence import read

DONE = "seconds.json"
"""Written last into a run's folder: how long it took."""


def train(case: Case, seed: int, root: Path) -> str:
    """Trains a case with a seed, unless its folder is complete; returns its name and seconds, or what went wrong."""
    import torch

    import tunelab
    from tunelab.composing import composed
    from tunelab.config import validate
    from tunelab.errors import ConfigError, RunFailed
    from tunelab.record import Start
    from tunelab.run import train as run

    folder = root / case.name / str(seed)
    if (folder / DONE).is_file():
        return ""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.set_num_threads(1)
    tunelab.trust("benchmarks")
    overrides = command(case, seed, root)
    begin = time.process_time()
    try:
        made = composed(*overrides)
        validate(made.cfg, [override.split("=")[0].lstrip("+~") for override in overrides])
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(RunFailed):
            run(made.cfg, folder, Start("python train.py " + " ".join(overrides), overrides, made.choices))
    except ConfigError as error:
        return f"{case.name} {seed}: {error}"
    seconds = round(time.process_time() - begin, 2)
    (folder / DONE).write_text(json.dumps(seconds), encoding="utf-8")
    return f"{case.name} {seed}: {seconds} s"


def train_all(wanted: list[Case], seeds: int, root: Path, processes: int) -> None:
    """Trains what is missing, seed by seed, so that a first table stands early."""
    jobs = [
        (case, seed) for seed in range(seeds) for case in wanted if not (root / case.name / str(seed) / DONE).is_file()
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(train, case, seed, root) for case, seed in jobs]
        for number, future in enumerate(futures, 1):
            print(f"{number}/{len(jobs)} {future.result()}", file=sys.stderr, flush=True)


def names(case: Case, seeds: int, root: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folder of each run of a case, and the names of the verdicts on it."""
    for seed in range(seeds):
        folder = root / case.name / str(seed)
        if (folder / DONE).is_file():
            yield folder, [verdict.name for verdict in diagnose(read(folder))]


def right(case: Case, found: list[str]) -> bool:
    """Whether the first verdict is the case's, or there is none where it is healthy."""
    return found[0] in case.accepted if found and case.accepted else not found and not case.accepted


def table(wanted: Iterable[Case], seeds: int, root: Path, *, wrong: bool) -> None:
    """Prints the share of right first verdicts by fault and in all, and of healthy runs found fault with."""
    counts: dict[str, list[bool]] = {}
    instead: dict[str, Counter[str]] = {}
    for case in wanted:
        for folder, found in names(case, seeds, root):
            counts.setdefault(case.fault, []).append(right(case, found))
            if not counts[case.fault][-1]:
                instead.setdefault(case.fault, Counter())[f"{found[0] if found else 'none'} ({case.base})"] += 1
                if wrong:
                    print(f"{folder}: {', '.join(found) or 'none'}")
    print("| fault | runs | right first verdict | instead |\n| --- | ---: | ---: | --- |")
    for fault, answers in counts.items():
        others = ", ".join(f"{count} × {name}" for name, count in instead.get(fault, Counter()).most_common())
        print(f"| {fault} | {len(answers)} | {sum(answers) / len(answers):.0%} | {others} |")
    faulty = [answer for fault, answers in counts.items() if fault != "healthy" for answer in answers]
    healthy = counts.get("healthy", [])
    if faulty:
        print(f"\nright first verdict: {sum(faulty)} of {len(faulty)} faulty runs, {sum(faulty) / len(faulty):.1%}")
    if healthy:
        false = len(healthy) - sum(healthy)
        print(f"false alarms: {false} of {len(healthy)} healthy runs, {false / len(healthy):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Whether a diagnosis is right, on a zoo of runs.")
    parser.add_argument("--folder", type=Path, help="where the runs are, or will be; by default a temporary one")
    parser.add_argument("--part", choices=["chosen", "aside", "fresh", "noise", "fast", "all"], default="all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="that train; 0 judges what is there")
    parser.add_argument("--only", default="", help="a part of the cases' names")
    parser.add_argument("--wrong", action="store_true", help="name the runs that were judged wrongly")
    arguments = parser.parse_args()
    kept_aside = aside(cases())
    parts: dict[str, list[Case]] = {"chosen": [], "aside": [], "fresh": fresh_cases(), "noise": noise_cases()}
    parts["fast"] = [Case("healthy", base, overrides, ()) for base, overrides in HIGH_LR.items()]
    for case in cases():
        parts["aside" if case.name in kept_aside else "chosen"].append(case)
    parts = {
        part: [case for case in of if arguments.only in case.name]
        for part, of in parts.items()
        if arguments.part in (part, "all")
    }
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        if arguments.processes:
            train_all([case for of in parts.values() for case in of], arguments.seeds, root, arguments.processes)
        for part, of in parts.items():
            print(f"\n## {part}\n")
            table(of, arguments.seeds, root, wrong=arguments.wrong)
        seconds = [json.loads(path.read_text(encoding="utf-8")) for path in root.glob(f"*/*/{DONE}")]
    print(f"\n{len(seconds)} runs, {sum(seconds) / 60:.1f} minutes of one core to train")


if __name__ == "__main__":
    main()
