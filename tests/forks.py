"""Commands in processes of their own that begin at once: forks of one that has imported torch."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]

SERVER = """
import json, os, runpy, signal, sys
import torch, lightning, tunelab.command, tunelab.run, torch.utils.tensorboard
import tensorboard.compat.proto.summary_pb2
torch.set_num_threads(1)

def begin(folder, script, arguments, before):
    os.setsid()
    os.chdir(folder)
    for number, name in ((0, os.devnull), (1, "out"), (2, "err")):
        path = name if name == os.devnull else str(said) + name
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [script, *arguments]
    exec(before, {})
    runpy.run_path(script, run_name="__main__")

print("ready", flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "poll" in asked:
        pid, status = os.waitpid(asked["poll"], os.WNOHANG)
        print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        continue
    said = asked.pop("said")
    pid = os.fork()
    if not pid:
        begin(**asked)
        break
    print(pid, flush=True)
"""


@dataclass
class Fork:
    """A command that runs, or has ended.

    Args:
        server: What forked it.
        pid: Its process, which leads a session of its own.
        said: How the files begin to which its stdout and stderr go.
    """

    server: Forks
    pid: int
    said: str
    code: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        if self.code is None:
            self.code = self.server.ask({"poll": self.pid})
        return self.code

    def wait(self, seconds: float = 600.0) -> int:
        """Its exit code, as soon as it has one."""
        until = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > until:
                self.kill()
                raise TimeoutError(f"It did not end within {seconds} seconds:\n{self.text}")
            time.sleep(0.005)
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends it a signal, if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    @property
    def text(self) -> str:
        """All that it has said."""
        return "".join(Path(self.said + name).read_text() for name in ("out", "err") if Path(self.said + name).exists())


class Forks:
    """A process that has imported torch and forks a command whenever it is asked to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
            text=True,
        )
        self.count = 0
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, what: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder: Path, *arguments: str, before: str = "", script: str = "train.py") -> Fork:
        """Begins a command.

        Args:
            folder: Its working directory.
            arguments: What is typed behind the script.
            before: Python that it executes first.
            script: Which.
        """
        self.count += 1
        said = f"{folder}.{self.count}."
        asked = {"folder": str(folder), "script": str(REPOSITORY / script), "arguments": arguments}
        return Fork(self, self.ask({**asked, "before": textwrap.dedent(before), "said": said}), said)

    def run(self, folder: Path, *arguments: str, before: str = "", script: str = "train.py") -> Fork:
        """A command that has ended."""
        fork = self.start(folder, *arguments, before=before, script=script)
        fork.wait()
        return fork


@contextmanager
def server() -> Iterator[Forks]:
    """Forks, while they are needed."""
    forks = Forks()
    try:
        yield forks
    finally:
        forks.process.kill()
        forks.process.communicate()
