"""What a run says of how it began, what it warns of when it is run again, and that it gives the same bits then."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_command import Outcome, in_process_of_its_own, refused, typed

from tunelab import checkout, own_code, record
from tunelab.errors import RunFailed
from tunelab.record import code_hash, differences, fingerprints

SMALL = ("size=tiny", "epochs=2", "test=false", "logger=[csv]")
WARNING = r"It is (repeated|resumed) under other conditions, so the last bits may differ: (.*)\."


@pytest.fixture(autouse=True)
def _asked_anew() -> Iterator[None]:
    """Git is asked once in a process; here for each test."""
    yield
    checkout.look.cache_clear()
    checkout.seen.cache_clear()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, in which we stand."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(name, raising=False)
    (folder / "model.py").write_text("layers = 2\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "model.py")
    git(folder, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", "first")
    monkeypatch.chdir(folder)
    checkout.look.cache_clear()
    checkout.seen.cache_clear()
    return folder


def git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def told(outcome: Outcome) -> list[str]:
    """The differences that a command warned of; all in one line."""
    assert outcome.code == 0, outcome.text
    found = re.findall(WARNING, outcome.err)
    assert len(found) <= 1
    return found[0][1].split("; ") if found else []


def changed(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrites run.json as if the run had begun under other conditions."""
    path = folder / "run.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


# ---- the checkout


def test_a_clean_checkout_is_its_commit_and_not_dirty(project: Path) -> None:
    (project / "new.txt").write_text("git does not know it")
    assert checkout.seen() == {"commit": git(project, "rev-parse", "HEAD"), "dirty": False}


def test_a_changed_file_makes_a_checkout_dirty_below_its_top_too(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "model.py").write_text("layers = 3\n")
    (project / "below").mkdir()
    monkeypatch.chdir(project / "below")
    assert checkout.seen() == {"commit": git(project, "rev-parse", "HEAD"), "dirty": True}


def test_a_checkout_without_a_commit_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(tmp_path, "init", "--quiet")
    monkeypatch.chdir(tmp_path)
    assert checkout.seen() == {"commit": None, "dirty": False}


def test_outside_a_checkout_and_without_git_there_is_nothing_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert checkout.seen() is None
    monkeypatch.setattr(checkout, "STATUS", ("no-such-program",))
    checkout.look.cache_clear()
    checkout.seen.cache_clear()
    assert checkout.seen() is None


def test_a_checkout_too_large_to_look_through_has_its_commit_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "STATUS", ("sleep", "60", "#"))
    monkeypatch.setattr(checkout.subprocess, "Popen", _sleeping(subprocess.Popen))
    assert checkout.seen() == {"commit": git(project, "rev-parse", "HEAD"), "dirty": None}
    process = checkout.look()
    assert process is not None
    assert process.poll() == -9


def _sleeping(popen: Any) -> Any:
    """Popen, but git's look at the files never ends."""

    def start(command: list[str], **keywords: Any) -> Any:
        return popen(["sleep", "60"] if command[0] == "sleep" else command, **keywords)

    return start


def test_the_look_at_a_checkout_changes_nothing_in_it(project: Path) -> None:
    os.utime(project / "model.py", (1, 1))  # git would note the new time in its index
    before = (project / ".git" / "index").read_bytes()
    checkout.seen()
    assert (project / ".git" / "index").read_bytes() == before


# ---- what is recorded


def test_a_run_records_its_checkout_code_and_machine(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert typed(project, *SMALL, "hydra.run.dir=run").code == 0
    values = json.loads((project / "run" / "run.json").read_text())
    assert values["checkout"] == {"commit": git(project, "rev-parse", "HEAD"), "dirty": False}
    assert values["code"] == code_hash()
    assert values["machine"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert values["machine"]["host"] == os.uname().nodename
    assert values["environment"]["MKL_CBWR"] == "COMPATIBLE"
    assert values["versions"]["torch"] == torch.__version__
    assert values["threads"] == 1


def test_the_code_of_trusted_packages_is_recorded_whether_a_folder_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_folder" / "deep").mkdir(parents=True)
    (tmp_path / "own_folder" / "__init__.py").write_text("")
    (tmp_path / "own_folder" / "deep" / "net.py").write_text("width = 1")
    (tmp_path / "own_file.py").write_text("width = 1")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(own_code.VARIABLE, "own_folder,own_file,not_there")

    def hashes() -> dict[str, str | None]:
        return {name: record._hash_of(name) for name in own_code.trusted()}

    before = hashes()
    assert before["not_there"] is None
    (tmp_path / "own_folder" / "deep" / "net.py").write_text("width = 2")
    after = hashes()
    assert {name for name in before if before[name] != after[name]} == {"own_folder"}
    (tmp_path / "own_file.py").write_text("width = 2")
    assert hashes()["own_file"] != before["own_file"]
    assert hashes()["own_folder"] == after["own_folder"]


# ---- what differs

RECORD = {
    "threads": 1,
    "versions": {"torch": "2.13.0", "numpy": "2.4"},
    "machine": {"platform": "Linux-6", "host": "a", "cpu": "EPYC", "cpu_capability": "AVX512", "gpu": None},
    "environment": {},
    "code": "a" * 64,
    "own_code": {"mine": "b" * 64},
    "checkout": {"commit": "c", "dirty": False},
    "data": {"path": "4 bytes, crc32 bbbbbbbb"},
}


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("versions.torch", "2.12.0", ["torch 2.12.0 → 2.13.0"]),
        ("threads", 2, ["threads 2 → 1"]),
        ("machine.cpu_capability", "AVX2", ["CPU capability AVX2 → AVX512"]),
        ("machine.cpu", "Xeon", ["cpu Xeon → EPYC"]),
        ("machine.gpu", "H200", ["gpu H200 → none"]),
        ("environment.MKL_CBWR", "AUTO", ["MKL_CBWR AUTO → none"]),
        ("code", "d" * 64, ["code of tunelab dddddddd → aaaaaaaa"]),
        ("own_code.mine", "d" * 64, ["code of mine dddddddd → bbbbbbbb"]),
        ("own_code.other", "d" * 64, ["code of other dddddddd → none"]),
        ("checkout.dirty", True, ["uncommitted changes yes → no"]),
        ("data.path", "5 bytes, crc32 aaaaaaaa", ["data.path 5 bytes, crc32 aaaaaaaa → 4 bytes, crc32 bbbbbbbb"]),
        ("checkout", None, []),
        # these change no bit
        ("checkout.commit", "d", []),
        ("checkout.dirty", None, []),  # git took too long to say
        ("machine.host", "b", []),
        ("machine.platform", "Linux-5", []),
        ("versions.pandas", "2.0", []),
    ],
)
def test_a_difference_that_may_change_bits_is_named_with_what_was_and_what_is(
    key: str, value: Any, expected: list[str]
) -> None:
    before = copy.deepcopy(RECORD)
    *parents, name = key.split(".")
    node: Any = before
    for parent in parents:
        node = node[parent]
    node[name] = value
    assert differences(before, RECORD) == expected


def test_what_an_older_record_does_not_say_is_no_difference() -> None:
    assert differences({"command": "", "overrides": [], "choices": {}}, RECORD) == []
    assert differences(RECORD, RECORD) == []


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("original")
    assert typed(folder, *SMALL, "hydra.run.dir=run").code == 0
    return folder


@pytest.mark.parametrize("words", [("repeat=run",), ("resume=run", "epochs=3")], ids=["repeat", "resume"])
def test_under_other_conditions_a_run_warns_once_of_all_that_differs(
    tmp_path: Path, original: Path, words: tuple[str, ...]
) -> None:
    _copied(original, tmp_path)

    def other(values: dict[str, Any]) -> None:
        values["versions"]["torch"] = "2.0.1"
        values["machine"]["cpu_capability"] = "AVX2"
        values["threads"] = 8
        values["code"] = "f" * 64

    assert told(typed(tmp_path, *words)) == []
    _copied(original, tmp_path)
    changed(tmp_path / "run", other)
    assert told(typed(tmp_path, *words)) == [
        f"torch 2.0.1 → {torch.__version__}",
        f"CPU capability AVX2 → {torch.backends.cpu.get_cpu_capability()}",
        "threads 8 → 1",
        f"code of tunelab ffffffff → {code_hash()[:8]}",
    ]


@pytest.mark.slow
def test_a_table_that_was_changed_since_is_named(tmp_path: Path) -> None:
    rows = [f"{number % 7},{'abc'[number % 3]}\n" for number in range(90)]
    table = tmp_path / "rows.csv"
    table.write_text("size,kind\n" + "".join(rows))
    words = ("data=csv", "data.path=rows.csv", "data.target=kind", *SMALL, "hydra.run.dir=run")
    assert typed(tmp_path, *words).code == 0
    known = f"{table.stat().st_size} bytes, crc32 {zlib.crc32(table.read_bytes()):08x}"
    assert json.loads((tmp_path / "run" / "run.json").read_text())["data"] == {"path": known}
    assert told(typed(tmp_path, "repeat=run")) == []
    table.write_text("size,kind\n" + "".join(["5,a\n", *rows[1:]]))
    changed = f"{table.stat().st_size} bytes, crc32 {zlib.crc32(table.read_bytes()):08x}"
    for words in (("repeat=run",), ("resume=run", "epochs=3")):
        refused = typed(tmp_path, *words)
        assert refused.code == 1
        assert (
            f"that has changed: data.path {known} → {changed}; 90 examples in all; 1 not among them then" in refused.err
        )


def test_large_files_and_folders_are_known_by_their_size_and_when_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "READ_BYTES", 5)
    (tmp_path / "images" / "cats").mkdir(parents=True)
    (tmp_path / "small").write_bytes(b"12345")
    for seconds, name in enumerate(("images/cats/a", "images/cats/b", "large")):
        (tmp_path / name).write_bytes(b"123456")
        os.utime(tmp_path / name, (seconds, seconds))
    (tmp_path / "empty").mkdir()
    paths = {"path": "images", "val_path": "small", "test_path": "large"}
    told = fingerprints({key: str(tmp_path / name) for key, name in paths.items()})
    one, two = (datetime.fromtimestamp(seconds).astimezone().isoformat() for seconds in (1, 2))
    assert told == {
        "path": f"2 files, 12 bytes, newest of {one}",
        "val_path": f"5 bytes, crc32 {zlib.crc32(b'12345'):08x}",
        "test_path": f"6 bytes of {two}",
    }
    assert fingerprints({"path": "owner/name", "val_path": None, "test_path": str(tmp_path / "empty")}) == {}
    assert fingerprints({"_target_": "tunelab.data.BundledData"}) == {}


def _copied(original: Path, folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder / "run")], check=True)
    subprocess.run(["cp", "-r", str(original / "run"), str(folder / "run")], check=True)


@pytest.mark.slow
def test_a_resume_is_compared_with_the_part_before_it_and_not_with_the_first(tmp_path: Path, original: Path) -> None:
    _copied(original, tmp_path)
    assert told(typed(tmp_path, "resume=run", "epochs=3", "threads=2")) == ["threads 1 → 2"]
    assert told(typed(tmp_path, "resume=run", "epochs=4")) == []
    assert told(typed(tmp_path, "resume=run", "epochs=5", "threads=1")) == ["threads 2 → 1"]
    resumes = json.loads((tmp_path / "run" / "run.json").read_text())["resumes"]
    assert [resume.get("threads") for resume in resumes] == [2, None, 1]


@pytest.mark.parametrize("how", ["repeat", "resume"])
@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("overrides", 2, "2"),
        ("overrides", None, "null"),
        ("overrides", ["lr=1", 2], '["lr=1", 2]'),
        ("resumes", 5, "5"),
        ("resumes", ["a"], '["a"]'),
        ("choices", [], "[]"),
        ("command", {}, "{}"),
    ],
)
def test_a_record_of_another_kind_is_refused_in_words(
    tmp_path: Path, original: Path, how: str, key: str, value: Any, said: str
) -> None:
    _copied(original, tmp_path)
    changed(tmp_path / "run", lambda values: values.update({key: value}))
    text = refused(typed(tmp_path, f"{how}=run"), 1)
    assert "`run/run.json` must be as the run wrote it, but cannot be read: " in text
    assert f"it has {key}: {said}. Name the folder of another run." in text


@pytest.mark.parametrize("key", ["versions", "machine", "environment", "own_code", "data", "checkout", "threads"])
def test_what_cannot_be_compared_is_passed_over(key: str) -> None:
    assert [found for found in differences({**RECORD, key: [1]}, RECORD) if key != "threads"] == []


# ---- what was typed, on a resume


@pytest.mark.parametrize(
    ("words", "callbacks", "interval"),
    [
        (("callbacks=[lr]",), ["lr", "mine"], "step"),  # that of checkpoint goes with it
        pytest.param(
            ("callbacks.mine.logging_interval=epoch",), ["checkpoint", "lr", "mine"], "epoch", marks=pytest.mark.slow
        ),
        (("+callbacks.mine.logging_interval=epoch",), ["checkpoint", "lr", "mine"], "epoch"),
        (("~callbacks.mine", "callbacks=[checkpoint]"), ["checkpoint"], None),
        pytest.param(("logger=[csv]",), ["checkpoint", "lr", "mine"], "step", marks=pytest.mark.slow),
    ],
)
def test_an_added_callback_stays_on_a_resume_until_it_is_changed_or_left_out(
    tmp_path: Path, words: tuple[str, ...], callbacks: list[str], interval: str | None
) -> None:
    added = ("+callbacks.mine._target_=lightning.pytorch.callbacks.LearningRateMonitor",)
    chosen = (
        "callbacks=[checkpoint,lr]",
        "callbacks.checkpoint.every_seconds=2",
        "+callbacks.mine.logging_interval=step",
    )
    assert typed(tmp_path, *SMALL, *chosen, *added, "hydra.run.dir=run").code == 0
    assert typed(tmp_path, "resume=run", "epochs=3", *words).folder == "run"
    found = OmegaConf.load(tmp_path / "run" / "config.yaml").callbacks
    assert sorted(found) == callbacks
    assert OmegaConf.select(found, "mine.logging_interval") == interval
    assert OmegaConf.select(found, "checkpoint.every_seconds") == (2 if "checkpoint" in callbacks else None)


def test_a_run_that_fails_for_no_mistake_says_why_and_keeps_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RunFailed("The loss is nan since step 7.")

    monkeypatch.setattr("tunelab.run.train", failing)
    outcome = typed(tmp_path, *SMALL, "hydra.run.dir=run")
    assert (outcome.code, outcome.text.strip()) == (1, "The loss is nan since step 7.")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["train.log"]


# ---- the same bits

RECIPE = ("size=tiny", "epochs=2", "threads=1", "model=cnn", "augmentation=light", "regularization=[mixup]")


def bits(folder: Path) -> tuple[str, dict[str, torch.Tensor]]:
    weights = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return (folder / "metrics.csv").read_text(), weights


@pytest.mark.slow
def test_a_run_has_the_same_bits_in_a_process_of_its_own_and_after_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_process_of_its_own(tmp_path, *RECIPE, "hydra.run.dir=alone").code == 0
    others = [
        ("model=cnn", "size=tiny", "epochs=1", "threads=2", "seed=3"),
        ("size=tiny", "epochs=1", "trainer.precision=bf16-mixed", "optimizer=muon"),
        ("data=diabetes", "size=tiny", "epochs=1", "trainer.deterministic=true"),
        ("size=tiny", "lr=1e30", "epochs=1", "optimizer=sgd"),
    ]
    codes = [typed(tmp_path, *words, f"hydra.run.dir=other{number}").code for number, words in enumerate(others)]
    assert codes == [0, 0, 0, 1]
    with monkeypatch.context() as patch:  # one that fails in the middle of an epoch, where random numbers are drawn
        patch.setattr(torch.optim.AdamW, "step", _failing)
        assert "OSError: no more" in typed(tmp_path, *RECIPE, "hydra.run.dir=failed").text
    torch.rand(7)
    assert typed(tmp_path, *RECIPE, "hydra.run.dir=after").code == 0
    assert in_process_of_its_own(tmp_path, "repeat=alone", "hydra.run.dir=again").code == 0
    metrics, weights = bits(tmp_path / "alone")
    for name in ("after", "again"):
        other_metrics, other_weights = bits(tmp_path / name)
        assert other_metrics == metrics, name
        assert other_weights.keys() == weights.keys()
        assert all(torch.equal(other_weights[key], weights[key]) for key in weights), name


def _failing(*_: Any, **__: Any) -> None:
    raise OSError("no more")
