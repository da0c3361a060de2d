"""What a training step costs in the bare PyTorch loop, in Lightning and in tunelab, on scikit-learn's digits.

    python benchmarks/step_overhead.py [--model mlp|cnn|resnet] [--repeats 5] [--epochs …] [--only CONTENDER,CONTENDER]

Every contender trains the same model (mlp 64-128-10, or the cnn or resnet of size small) on the same 1,437 digits, in
batches of 64, with AdamW, on one thread. A repeat runs each of them once, in a process of its own, every other repeat
in reverse, so that a slow minute of the machine meets all alike. The clock runs from the end of the first epoch to the
end of the last and so covers validations and checkpoints, but neither imports nor set-up.

A ratio is the median over the repeats of what it is in each: the machine's slow minutes cancel in it. The processor's
time stands beside that on the wall. It is that of all threads, also of those that write while the step goes on, and
leaves out the time in which others had the machine.

Progress bars really draw: the output of each process is a pseudo-terminal of 120 columns, read as a screen would read
it. (Lightning draws rich's bar wherever rich is installed.) A repeat counts only if all steps were made, the loss over
the whole training part fell far enough, a contender left all its files, and its bar drew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import pty
import statistics
import subprocess
import sys
import tempfile
import termios
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

EPOCHS = {"mlp": 40, "cnn": 12, "resnet": 4}  # of 23 steps
ERASE_LINE = "\x1b[2K"  # what a progress bar writes before it draws anew
LEAST_DRAWINGS = 3

Measured = dict[str, list[dict[str, float]]]
"""For each contender what each repeat found: microseconds per step by `wall` and `cpu`, and the last loss."""


@dataclass(frozen=True)
class Contender:
    """One row of the table; step_contenders.py says what it does."""

    title: str
    files: tuple[str, ...] = ()  # patterns of what it leaves in its folder
    draws: bool = False  # a progress bar


ORDINARY_FILES = ("events.out.*", "checkpoints/last.ckpt", "checkpoints/epoch=*.ckpt")
TUNELAB_FILES = ("tensorboard/events.*", "metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt", "result.json")
CONTENDERS = {
    "bare": Contender("bare loop"),
    "bare_fused": Contender("bare loop, fused AdamW"),
    "ordinary": Contender("Lightning the ordinary way, everything on", ORDINARY_FILES, draws=True),
    "lean": Contender("Lightning, everything off"),
    "lean_fused": Contender("Lightning, everything off, fused AdamW"),
    "tunelab_off": Contender("tunelab, everything off"),
    "tunelab_unmonitored": Contender("tunelab, on but for the three monitors", TUNELAB_FILES, draws=True),
    "tunelab_gradients": Contender("tunelab, on, of the monitors gradients alone", TUNELAB_FILES, draws=True),
    "tunelab_on": Contender("tunelab, everything on (the defaults)", TUNELAB_FILES, draws=True),
}


@dataclass(frozen=True)
class Ratio:
    """Of one contender's time per step to another's, with the most that it should be for some models."""

    of: str
    to: str
    most: dict[str, float]


RATIOS = (
    Ratio("tunelab_on", "bare", {"mlp": 2.2, "cnn": 1.15, "resnet": 1.03}),
    Ratio("tunelab_on", "lean_fused", {"mlp": 1.25}),
    Ratio("tunelab_gradients", "tunelab_unmonitored", {"mlp": 1.05, "resnet": 1.01}),
    Ratio("tunelab_on", "tunelab_unmonitored", {}),
)


def measure(name: str, model: str, epochs: int) -> dict[str, float]:
    """Trains one contender in a process of its own, and checks what it left."""
    contender = CONTENDERS[name]
    script = Path(__file__).with_name("step_contenders.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(script), name, "--model", model, "--epochs", str(epochs), "--folder", folder]
        status, written = run_in_terminal(command)
        missing = [pattern for pattern in contender.files if not any((Path(folder) / "run").glob(pattern))]
        drawings = written.count(ERASE_LINE)
        if status or missing or contender.draws != (drawings >= LEAST_DRAWINGS):
            found = f"exit code {status}, {drawings} drawings of a bar, missing files {missing}"
            raise SystemExit(f"{written}\n{name} did not do its work: {found}. Its output stands above.")
        measured: dict[str, float] = json.loads((Path(folder) / "measured.json").read_text(encoding="utf-8"))
    return measured


def run_in_terminal(command: list[str]) -> tuple[int, str]:
    """Runs a command on one thread in a pseudo-terminal; its exit code, and all that a screen would have got."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 120))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    written = bytearray()
    with contextlib.suppress(OSError):  # Linux's way to say that the other side has closed
        while piece := os.read(screen, 65536):
            written += piece
    os.close(screen)
    return process.wait(), written.decode(errors="replace")


def repeat(names: list[str], model: str, epochs: int, repeats: int) -> Measured:
    """Runs every contender as often, in turn, and says so as it goes on."""
    measured: Measured = {name: [] for name in names}
    for number in range(repeats):
        for name in names if number % 2 == 0 else reversed(names):
            found = measure(name, model, epochs)
            measured[name].append(found)
            times = f"{found['wall']:8.0f} µs on the wall {found['cpu']:8.0f} µs of the processor"
            line = f"repeat {number + 1}/{repeats}  {name:<20} {times}  loss {found['loss']:.3f}"
            print(line, file=sys.stderr, flush=True)
    return measured


def ratios(measured: Measured, of: str, to: str, clock: str) -> list[float]:
    """Of the times per step of two contenders, one for each repeat."""
    return [a[clock] / b[clock] for a, b in zip(measured[of], measured[to], strict=True)]


def middle(values: list[float], form: str) -> str:
    """Their median, and in brackets their quartiles, or of fewer than four the least and the largest."""
    ordered = sorted(values)
    if len(ordered) >= 4:
        low, _, high = statistics.quantiles(ordered, n=4, method="inclusive")
    else:
        low, high = ordered[0], ordered[-1]
    return f"{statistics.median(ordered):{form}} ({low:{form}}–{high:{form}})"


def table(measured: Measured) -> str:
    """The comparison in Markdown."""
    lines = ["| contender | µs per step | × bare loop | µs of the processor |", "| --- | ---: | ---: | ---: |"]
    for name, found in measured.items():
        wall, cpu = ([one[clock] for one in found] for clock in ("wall", "cpu"))
        times = f"{statistics.median(ratios(measured, name, 'bare', 'wall')):.2f}" if "bare" in measured else ""
        lines.append(f"| {CONTENDERS[name].title} | {middle(wall, ',.0f')} | {times} | {middle(cpu, ',.0f')} |")
    return "\n".join(lines)


def ratio_table(measured: Measured, model: str) -> str:
    """The ratios that have a limit, and that of two contenders measured alone."""
    wanted = [ratio for ratio in RATIOS if {ratio.of, ratio.to} <= set(measured)]
    if not wanted and len(measured) == 2:
        of, to = measured
        wanted = [Ratio(of, to, {})]
    lines = ["| ratio | on the wall | of the processor | at most |", "| --- | ---: | ---: | ---: |"]
    for ratio in wanted:
        wall, cpu = (middle(ratios(measured, ratio.of, ratio.to, clock), ".3f") for clock in ("wall", "cpu"))
        titles = f"{CONTENDERS[ratio.of].title} / {CONTENDERS[ratio.to].title}"
        lines.append(f"| {titles} | {wall} | {cpu} | {ratio.most.get(model, '')} |")
    return "\n".join(lines) if wanted else ""


def machine() -> str:
    """Where it was measured."""
    linux = Path("/proc/cpuinfo")
    lines = linux.read_text(encoding="utf-8").splitlines() if linux.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    versions = f"torch {version('torch')}, lightning {version('lightning')}, Python {platform.python_version()}"
    return f"{cpu}, {os.cpu_count()} cores, of which 1 thread is used · {versions}, {platform.system()}"


def main() -> None:
    parser = argparse.ArgumentParser(description="What a training step costs.")
    parser.add_argument("--model", choices=list(EPOCHS), default="mlp")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, help=f"by default {EPOCHS}; fewer may not reach the loss asked for")
    parser.add_argument("--only", default=",".join(CONTENDERS), help="contenders, separated by commas")
    arguments = parser.parse_args()
    model, repeats, names = arguments.model, arguments.repeats, arguments.only.split(",")
    epochs = EPOCHS[model] if arguments.epochs is None else arguments.epochs
    if epochs < 2 or repeats < 1:
        parser.error(f"needs --epochs 2 and --repeats 1 at least, got {epochs} and {repeats}")
    if unknown := [name for name in names if name not in CONTENDERS]:
        parser.error(f"--only takes some of {', '.join(CONTENDERS)}, got {', '.join(unknown)}")
    measured = repeat(names, model, epochs, repeats)
    only = f" --only {arguments.only}" if len(names) < len(CONTENDERS) else ""
    command = f"python benchmarks/step_overhead.py --model {model} --repeats {repeats} --epochs {epochs}{only}"
    spread = "Medians; in brackets the quartiles (of fewer than four repeats, the least and the largest)."
    parts = [table(measured), ratio_table(measured, model), f"{spread} {machine()}\n`{command}`"]
    print("\n\n".join(part for part in parts if part))


if __name__ == "__main__":
    main()
