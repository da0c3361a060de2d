"""The command line: what it accepts, refuses and prints, and what it leaves on the disk."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from tunelab import conf_folder

REPOSITORY = Path(__file__).parents[1]
GROUPS = sorted(p.name for p in conf_folder().iterdir() if p.is_dir() and p.name != "hydra")
TINY = ("size=tiny", "epochs=1")


@dataclass(frozen=True)
class Outcome:
    """What a command ended with."""

    code: Any
    out: str
    err: str

    @property
    def text(self) -> str:
        """All that it said."""
        return self.out + self.err

    @property
    def folder(self) -> str:
        """The run folder that it printed."""
        return str(re.findall(r"^run folder +(.+)$", self.out, flags=re.MULTILINE)[-1])


def typed(folder: Path, *arguments: str, script: str = "train.py") -> Outcome:
    """Runs one of our commands in this process, with `folder` as its working directory."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    known = {reference() for reference in logging._handlerList}  # type: ignore[attr-defined]
    with (
        contextlib.chdir(folder),
        mock.patch.object(sys, "argv", [script, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_path(str(REPOSITORY / script), run_name="__main__")
        except SystemExit as stop:
            code = stop.code or 0
        finally:
            for handler in {reference() for reference in logging._handlerList} - known:  # type: ignore[attr-defined]
                handler.close()
            root.handlers[:] = handlers
            root.setLevel(level)
            GlobalHydra.instance().clear()
    return Outcome(code, out.getvalue(), err.getvalue())


def in_process_of_its_own(
    folder: Path, *arguments: str, python: tuple[str, ...] = (), script: str = "train.py"
) -> Outcome:
    """The same in a new Python with one thread."""
    command = [sys.executable, *python, str(REPOSITORY / script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    return Outcome(done.returncode, done.stdout, done.stderr)


def refused(outcome: Outcome, code: int) -> str:
    """What a refused command said: in words, without a traceback."""
    assert outcome.code == code, outcome.text
    assert "Traceback" not in outcome.text
    return outcome.text


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (conf_folder() / group).glob("*.yaml"))


# ---- unknown options and keys


@pytest.mark.parametrize("group", GROUPS)
def test_an_unknown_option_is_refused_with_those_of_its_folder_and_the_nearest(tmp_path: Path, group: str) -> None:
    wrong = f"{options(group)[0]}x"
    text = refused(typed(tmp_path, f"{group}={wrong}"), 2)
    assert f"`{group}` must be one of {', '.join(options(group))}, got {wrong}." in text
    assert re.search(rf"Did you mean .*\b{options(group)[0]}\b", text)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("lrr=3", "`lrr` must be a key of the recipe, got lrr. Did you mean lr?"),
        ("dropoutt=0.1", "`dropoutt` must be a key of the recipe, got dropoutt. Did you mean dropout?"),
        ("optimiser=sgd", "`optimiser` must be a key of the recipe, got optimiser. Did you mean optimizer?"),
        ("model.widht=8", "`model.widht` must be a key of model, got widht. Did you mean model.width?"),
        ("betas=[0.9,0.98]", "`betas` must be a key of the recipe, got betas. Did you mean optimizer.betas?"),
        ("learning_rate=0.1", "`learning_rate` must be a key of the recipe, got learning_rate. Did you mean lr?"),
        ("data.Val_Fraction=0.1", "got Val_Fraction. Did you mean data.val_fraction or data.test_fraction?"),
        ("model=MLP", "got MLP. Did you mean mlp?"),
        ("activation=ReLU", "got ReLU. Did you mean relu or prelu or elu?"),
        ("optimizer=adamm", "got adamm. Did you mean adam or adamw or "),
        ("task.optimizer.epss=1", "must be set where it stands, not in a copy. Write optimizer.epss instead."),
        ("xyzzy=1", "`xyzzy` must be a key of the recipe, got xyzzy. See --help for what there is."),
        ("+xyzzy=1", "`xyzzy` must be a key of the recipe; no part reads it."),
        ("regularization=[l1,l3]", "`regularization` must be one of"),
        ("hydra/sweeper=tpe", "`hydra/sweeper` must be one of basic, optuna, tunelab"),
    ],
)
def test_an_unknown_key_is_refused_with_what_was_probably_meant(tmp_path: Path, argument: str, sentence: str) -> None:
    composes = argument.startswith("+")  # and is refused for its content, not for its syntax
    assert sentence in refused(typed(tmp_path, argument), 1 if composes else 2)


def test_all_mistakes_of_a_command_line_are_said_at_once(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "optimizer=adan", "lrr=3", "model.widht=3", "loss=mes"), 2)
    for wrong, meant in (("adan", "adam"), ("lrr", "lr"), ("widht", "model.width"), ("mes", "mse")):
        assert re.search(rf"got {wrong}\. Did you mean .*\b{meant}\b", text)


def test_an_unknown_option_is_refused_beside_a_name_and_a_folder_of_the_users_own(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "optimizer=adammw", "name=mine", "hydra.run.dir=run"), 2)
    assert "got adammw. Did you mean" in text


def test_a_dial_is_not_mistaken_for_a_group_of_hydra(tmp_path: Path) -> None:
    assert "hydra/" not in refused(typed(tmp_path, "dropoutt=0.1"), 2)


def test_an_unknown_option_in_a_multirun_is_refused_before_a_job_starts(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "-m", "optimizer=sgd,adan"), 2)
    assert re.search(r"`optimizer` must be one of .*, got adan\. Did you mean adam", text)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_key_in_a_multirun_is_refused_before_a_job_starts(tmp_path: Path) -> None:
    assert "got lrr. Did you mean lr?" in refused(typed(tmp_path, "-m", "lrr=0.1,0.2"), 2)
    assert list(tmp_path.iterdir()) == []


def test_a_value_out_of_range_in_a_multirun_is_refused_before_a_job_starts(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "-m", "lr=1e-2,-1", *TINY), 1)
    assert "`lr` must be greater than 0, got -1. Try lr=0.001." in text
    assert list(tmp_path.rglob("run.json")) == []


# ---- syntax


@pytest.mark.parametrize("argument", ["lr=0.1,0.2", "optimizer=sgd,adam", "seed=range(1,4)"])
def test_several_values_without_m_are_refused_with_the_flag_to_add(tmp_path: Path, argument: str) -> None:
    text = refused(typed(tmp_path, argument), 2)
    assert f"`{argument}` must have one value, or be searched: add -m for a run of each." in text


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ("lr", "Write lr=<value>."),
        ("optimizer=sgd,", "Quote the value: 'optimizer=\"sgd,\"'."),
        ("name=run (2)", "Quote the value: 'name=\"run (2)\"'."),
        ("lr=[1,2", "Quote the value: 'lr=\"[1,2\"'."),
    ],
)
def test_what_is_no_override_is_refused_with_how_to_write_it(tmp_path: Path, argument: str, remedy: str) -> None:
    text = refused(typed(tmp_path, argument), 2)
    assert f"`{argument}` must be an override of the form key=value. {remedy}" in text


def test_every_syntax_error_of_a_command_line_is_said_at_once(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "lr", "epochs"), 2)
    assert text.splitlines() == [
        f"`{w}` must be an override of the form key=value. Write {w}=<value>." for w in ("lr", "epochs")
    ]


@pytest.mark.parametrize("argument", ["experiment=null", "~experiment", "debug=null"])
def test_a_group_of_nothing_chosen_may_be_said_to_be_nothing(
    tmp_path: Path, argument: str, compose: Callable[..., Any]
) -> None:
    outcome = typed(tmp_path, "--cfg", "job", argument, "name=test")
    assert OmegaConf.create(outcome.out) == compose(), outcome.err


@pytest.mark.parametrize("argument", ["optimizer=null", "model=null", "~data"])
def test_a_part_that_every_run_needs_cannot_be_left_out(tmp_path: Path, argument: str) -> None:
    group = re.sub(r"\W|null", "", argument)
    assert f"`{group}" in refused(typed(tmp_path, argument), 1)


@pytest.mark.parametrize("argument", ["~logger", "logger=null", "logger=none", "callbacks=null", "~regularization"])
def test_none_of_a_group_that_takes_several_is_written_in_brackets(tmp_path: Path, argument: str) -> None:
    group = re.sub(r"\W|null|none", "", argument)
    assert refused(typed(tmp_path, argument), 2).strip() == (
        f"`{argument}` must be a list of options. For none of them type {group}=[]."
    )


def test_several_of_a_group_that_takes_several_are_written_in_brackets(tmp_path: Path) -> None:
    assert refused(typed(tmp_path, "regularization=dropout,mixup"), 2).strip() == (
        "`regularization=dropout,mixup` must have one value, or be searched: type 'regularization=[dropout,mixup]', "
        "in quotes, for all of them in one run, or add -m for a run of each."
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--lr", "0.1"), "`--lr` must be written without dashes: write lr=0.1."),
        (("--lr=0.1", "size=tiny"), "`--lr=0.1` must be written without dashes: write lr=0.1."),
        (("--batch-size", "32"), "`--batch-size` must be written without dashes: write batch_size=32."),
        (("--name", "my run"), "`--name` must be written without dashes: write name='my run'."),
        (("--verbose", "size=tiny"), "`--verbose` must be written without dashes: write verbose=<value>."),
        (("lr", "=", "0.1"), "`lr = 0.1` must be one word: write lr=0.1 without blanks."),
        (("size=tiny", "lr=", "0.1"), "`lr= 0.1` must be one word: write lr=0.1 without blanks."),
        (("lr", "=0.1"), "`lr =0.1` must be one word: write lr=0.1 without blanks."),
    ],
)
def test_the_way_of_other_programs_is_refused_with_ours(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    assert sentence in refused(typed(tmp_path, *words), 2)


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        (
            'parameter_groups.rules={match: "head.*", lr: 0.1}',
            '`parameter_groups.rules` must be a list, got {match: "head.*", lr: 0.1}. '
            "Write it in brackets: 'parameter_groups.rules=[{match: \"head.*\", lr: 0.1}]'.",
        ),
        ("trainer=[1]", "`trainer` must be one option, got 1."),
        ("parameter_groups=[1]", "`parameter_groups` must be a group of keys, got [1]. Set them one by one: "),
    ],
)
def test_a_list_in_the_place_of_keys_and_the_reverse_are_refused(tmp_path: Path, argument: str, sentence: str) -> None:
    assert sentence in refused(typed(tmp_path, argument), 2)


@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("model.width=${size.widht}", "got size.widht. Did you mean size.width"),
        ("lr=${foobarbaz}", "`lr` must refer to a key that there is, got foobarbaz. See --help for what there is."),
    ],
)
def test_a_reference_that_leads_nowhere_is_refused(
    tmp_path: Path, sweep: tuple[str, ...], argument: str, sentence: str
) -> None:
    assert sentence in refused(typed(tmp_path, *sweep, argument), 1)


# ---- what is printed


def test_help_lists_every_group_with_every_option(tmp_path: Path) -> None:
    lines = [line.replace("*", "").split() for line in typed(tmp_path, "--help").out.splitlines()]
    for group in GROUPS:
        assert [group, *options(group)] in lines


def test_help_marks_what_is_chosen(tmp_path: Path) -> None:
    text = typed(tmp_path, "--help", "optimizer=sgd", "regularization=[l1,dropout]", "data=diabetes", "lr=0.25").out
    marked = {line.split()[0]: re.findall(r"(\w+)\*", line) for line in text.splitlines() if line.strip()}
    assert marked["optimizer"] == ["sgd"]
    assert marked["regularization"] == ["dropout", "l1"]
    assert marked["data"] == ["diabetes"]
    assert marked["task"] == ["regression"]  # which the data brings
    assert marked["loss"] == ["mse"]
    assert re.search(r"^ +lr +0\.25$", text, flags=re.MULTILINE)


def test_help_lists_every_dial_with_its_value(tmp_path: Path) -> None:
    text = typed(tmp_path, "--help").out
    page = yaml.safe_load((conf_folder() / "train.yaml").read_text())
    dials = {key for key, value in page.items() if not isinstance(value, (dict, list))}
    assert dials <= set(re.findall(r"^  (\w+) +\S", text, flags=re.MULTILINE))


@pytest.mark.parametrize("words", [(), ("-m",), ("sweep=tpe",), ("-m", "sweep=tpe", "lr=1,2")], ids=" ".join)
def test_help_says_how_to_search(tmp_path: Path, words: tuple[str, ...]) -> None:
    text = typed(tmp_path, *words, "--help").out
    page = yaml.safe_load((conf_folder() / "train.yaml").read_text())
    assert set(re.findall(r"^  sweep\.(\w+) +\S+  +\S", text, flags=re.MULTILINE)) == set(page["sweep"])
    assert re.search(r"^  sweep\.n_jobs +1 +trials at once$", text, flags=re.MULTILINE)


def test_help_for_a_command_line_that_does_not_compose_says_why_in_words(tmp_path: Path) -> None:
    assert "got adan. Did you mean adam" in refused(typed(tmp_path, "--help", "optimizer=adan"), 2)


def test_cfg_job_prints_the_recipe_and_makes_no_folder(tmp_path: Path, compose: Callable[..., Any]) -> None:
    outcome = typed(tmp_path, "--cfg", "job", "optimizer=sgd", "lr=0.2", "name=test")
    assert OmegaConf.create(outcome.out) == compose("optimizer=sgd", "lr=0.2")
    assert list(tmp_path.iterdir()) == []


def test_the_end_of_a_run_says_the_score_the_folder_and_how_to_look_at_it(tmp_path: Path) -> None:
    outcome = typed(tmp_path, *TINY)
    best, score = re.search(
        r"best val/accuracy +([\d.]+) in epoch 1 of 1\s+test/accuracy +([\d.]+)", outcome.out
    ).groups()  # type: ignore[union-attr]
    result = yaml.safe_load((tmp_path / outcome.folder / "result.json").read_text())
    assert best == f"{result['objective']['best']:.4f}"
    assert score == f"{result['test']['test/accuracy']:.4f}"
    assert f"tensorboard --logdir {outcome.folder}\n" in outcome.out


def test_the_lines_at_the_end_begin_in_one_column_and_one_thread_is_one(tmp_path: Path) -> None:
    for objective in ("val/loss", "val/accuracy"):
        outcome = typed(tmp_path, "data=wine", "threads=1", f"objective={objective}", *TINY)
        lines = [line for line in outcome.out.splitlines() if line.strip()]
        assert [line.split("  ")[0] for line in lines[-4:]] == ["run folder", "look at it", "what to try", "more"]
        assert len({re.match(r"\S+(?: \S+)* {2,}", line).end() for line in lines}) == 1  # type: ignore[union-attr]
        assert "· 1 thread\n" in outcome.err


@pytest.mark.slow
def test_lines_of_hydra_and_of_the_tools_are_plain_and_apart_from_what_is_asked_for(
    tmp_path: Path, run_folder: Path
) -> None:
    swept = in_process_of_its_own(tmp_path, "-m", "hydra/sweeper=basic", "data=wine", "seed=1,2", *TINY)
    assert "Launching 2 jobs locally\n" in swept.err
    assert "HYDRA]" not in swept.text
    shutil.copytree(run_folder, tmp_path / "run")
    before = sorted((tmp_path / "run").rglob("*"))
    script = (
        "import logging, tunelab, tunelab.predictor\n"
        "tunelab.predictor.evaluate = lambda *_, **__: logging.getLogger('tunelab').info('heard') or {'a': 1}\n"
        "tunelab.main(tool='evaluate')"
    )
    command = [sys.executable, "-c", script, "run=run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert (done.stderr, done.stdout) == ("heard\n", f"{'a':16} 1.0000\n")
    assert sorted((tmp_path / "run").rglob("*")) == before


# ---- what is left on the disk


@pytest.mark.parametrize(
    "arguments", [("lr=-1",), ("lrr=3",), ("lr=1,2",), ("resume=nowhere",), ("loss=mse",), ("--help",)]
)
def test_a_mistake_leaves_nothing_on_the_disk(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    typed(tmp_path, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ("data=breast_cancer", "model=cnn"),
            "`model` must take the data's kind, got CNN for a table: it takes image.",
        ),
        (("batch_size=5000",), "`batch_size` must be at most the 1437 training examples, got 5000."),
        (("warmup_steps=23", *TINY), "`warmup_steps` must be less than the 23 steps of the run, got 23."),
        (
            ("data.dataset=irys",),
            "`data.dataset` must be one of digits, breast_cancer, diabetes, iris, wine, got irys.",
        ),
        (("model=cnn", "model.normalization=layer"), "`model.normalization` must be none or batch for the cnn"),
        (
            ("parameter_groups.undecayed=[biass]",),
            "`parameter_groups.undecayed` must be 'bias', 'norm' or 'embedding', got biass.",
        ),
        (("task.spelling=1",), "spelling"),
        (("+optimizer.nesterov2=true",), "nesterov2"),
        (("~model.width",), "width"),
        (("model.dropout=1.5",), "1.5"),
        (("optimizer.lr=-1",), "-1"),
        (("activation=elu", "activation.alpha=x"), "alpha"),
    ],
)
def test_what_only_data_and_parts_can_refuse_is_said_in_words_and_leaves_no_run_folder(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    text = refused(typed(tmp_path, *arguments), 2 if arguments[0].startswith("task.") else 1)
    assert sentence in text
    assert list(tmp_path.glob("outputs/*")) == []


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("++optimizer.betaz=1", "must be a key that the part takes, got betaz. Did you mean optimizer.betas?"),
        (
            "+data.shuffel=1",
            "`data.shuffel` must be a key that the part takes, got shuffel. Did you mean data.shuffle?",
        ),
    ],
)
def test_an_added_key_that_its_part_does_not_take_is_refused(tmp_path: Path, argument: str, sentence: str) -> None:
    assert sentence in refused(typed(tmp_path, argument, *TINY), 1)
    assert list(tmp_path.rglob("run.json")) == []


def test_a_typed_run_folder_is_used(tmp_path: Path) -> None:
    outcome = typed(tmp_path, "hydra.run.dir=here/there", *TINY)
    assert outcome.folder == "here/there"
    assert (tmp_path / "here" / "there" / "result.json").is_file()
    assert not (tmp_path / "outputs").exists()


def test_a_typed_run_folder_may_exist_while_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert typed(tmp_path, "hydra.run.dir=here", *TINY).folder == "here"


def test_a_typed_run_folder_with_files_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "notes.txt").write_text("mine")
    text = refused(typed(tmp_path, "hydra.run.dir=here", *TINY), 1)
    assert f"`hydra.run.dir` must be a new or empty folder, got {tmp_path}/here, which has files in it." in text
    assert "resume=<folder>" in text
    assert [p.name for p in (tmp_path / "here").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("where", ["file/run", "file"])
def test_a_run_folder_that_cannot_be_made_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("")
    text = refused(typed(tmp_path, f"hydra.run.dir={where}", *TINY), 1)
    assert re.search(
        rf"`hydra\.run\.dir` must be a folder.*{tmp_path}/{where}.*(Try hydra\.run\.dir=|Choose another)", text
    )


@pytest.mark.slow
def test_runs_begun_in_the_same_second_get_a_folder_each(tmp_path: Path) -> None:
    outcomes = [typed(tmp_path, *TINY) for _ in range(4)]  # 0.3 s each: at least two of them share a second
    assert len({outcome.folder for outcome in outcomes}) == 4
    assert len(list(tmp_path.glob("outputs/digits-mlp/*/result.json"))) == 4


AWKWARD = ["it's my run (2), a=b", 'say "so"', "lr=0.1,0.2", "back\\slash [x]{y} $HOME 100% größe", "end\\"]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    outcome = typed(folder, *TINY, "hydra.run.dir=run")
    assert outcome.folder == "run", outcome.err
    return folder / "run"


@pytest.mark.parametrize("name", AWKWARD)
def test_paths_need_no_quotes_whatever_is_in_them(tmp_path: Path, run_folder: Path, name: str) -> None:
    shutil.copytree(run_folder, tmp_path / name)
    for outcome in (typed(tmp_path, f"repeat={name}"), typed(tmp_path, f"resume={name}", "epochs=2")):
        assert outcome.code == 0, outcome.text
    assert yaml.safe_load((tmp_path / name / "result.json").read_text())["epochs"] == 2
    rows = tmp_path / f"{name}.csv"
    header = ",".join(yaml.safe_load((run_folder / "data_spec.json").read_text())["feature_names"])
    rows.write_text(f"{header}\n{','.join(['0'] * 64)}\n")
    for script, more in (("evaluate", []), ("predict", [f"input={name}.csv", f"output={name}.out"])):
        outcome = typed(tmp_path, f"run={name}", *more, script=f"scripts/{script}.py")
        assert outcome.code == 0, outcome.text
    assert (tmp_path / f"{name}.out").read_text().count("\n") == 2  # the header and one prediction


@pytest.mark.parametrize("name", ["my run", "run (2)", "a=b"])
def test_a_typed_run_folder_needs_no_quotes_either(tmp_path: Path, name: str) -> None:
    outcome = typed(tmp_path, f"hydra.run.dir={name}", *TINY)
    assert outcome.code == 0, outcome.err
    assert outcome.folder == name


@pytest.mark.parametrize("name", [f"{name}.csv" for name in AWKWARD])
def test_a_file_of_data_needs_no_quotes_either(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a,b\n1,2\n")
    outcome = typed(tmp_path, "--cfg", "job", "data=csv", f"data.path={name}", "data.target=b")
    assert OmegaConf.create(outcome.out).data.path == name, outcome.err


def test_files_of_data_that_are_swept_stay_apart(tmp_path: Path) -> None:
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("a,b\n1,2\n")
    text = refused(typed(tmp_path, "data=csv", "data.path=a.csv,b.csv", "data.target=b"), 2)
    assert "`data.path=a.csv,b.csv` must have one value, or be searched: add -m for a run of each." in text


def test_the_recipe_of_a_run_that_was_resumed_is_said_as_a_shell_takes_it(tmp_path: Path, run_folder: Path) -> None:
    shutil.copytree(run_folder, tmp_path / "run")
    record = json.loads((run_folder / "run.json").read_text())
    words = ["name=it's mine", "regularization=[l1,dropout]", 'parameter_groups.rules=[{match: "head.*", lr: 0.1}]']
    record |= {"overrides": words, "resumes": [{"overrides": ["epochs=2"]}]}
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    text = refused(typed(tmp_path, "repeat=run"), 1)
    assert shlex.split(text.split("type: ")[1]) == ["python", "train.py", *words]


@pytest.mark.parametrize("kept", ["study.journal", "study.json"])
def test_a_trial_of_a_search_is_no_run_to_resume(tmp_path: Path, run_folder: Path, kept: str) -> None:
    shutil.copytree(run_folder, tmp_path / "study" / "6")
    (tmp_path / "study" / kept).touch()
    text = refused(typed(tmp_path, "resume=study/6/checkpoints/last.ckpt", "epochs=2"), 1)
    assert "`resume` must not change a study, got study/6, which is trial 6 of a search." in text
    assert re.search(r"For a run of its own type: .* size=tiny( .*)? threads=\d+ epochs=2$", text, flags=re.MULTILINE)
    assert "To go on with the search type: " in text


def test_a_failed_resume_leaves_the_resumed_folder_as_it_was(tmp_path: Path) -> None:
    typed(tmp_path, *TINY, "callbacks=[]", "hydra.run.dir=run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*.[jyc]*") if p.is_file()}
    text = refused(typed(tmp_path, "resume=run", "epochs=3"), 1)
    assert "`resume` must be a run with its last.ckpt, got run. This run left none. Train it with callbacks=[" in text
    assert {p: p.read_bytes() for p in before if p.exists()} == before


# ---- a process of its own


HEAVY = {"torch", "lightning", "torchmetrics", "pandas", "sklearn", "optuna", "tensorboard"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--help",), 0, "optimizer"),
        (("--cfg", "job"), 0, "lr: 0.001"),
        (("lr=-1",), 1, "`lr` must be greater than 0, got -1. Try lr=0.001."),
        (("optimizer=adan",), 2, "got adan. Did you mean adam"),
        (("resume=nowhere",), 1, "`resume` must be a run's folder, got nowhere, which does not exist."),
    ],
)
def test_what_needs_no_training_imports_no_torch(
    tmp_path: Path, arguments: tuple[str, ...], code: int, said: str
) -> None:
    outcome = in_process_of_its_own(tmp_path, *arguments, python=("-X", "importtime"))
    imported = {
        line.rsplit("|", 1)[-1].strip().split(".")[0] for line in outcome.err.splitlines() if "import time:" in line
    }
    assert (outcome.code, imported & HEAVY) == (code, set())
    assert said in outcome.text


def test_the_command_works_word_for_word(tmp_path: Path) -> None:
    outcome = in_process_of_its_own(tmp_path, "optimizer=adamw", "lr=3e-4", "epochs=2")
    assert outcome.code == 0, outcome.err
    record = yaml.safe_load((tmp_path / outcome.folder / "run.json").read_text())
    assert record["overrides"] == ["optimizer=adamw", "lr=3e-4", "epochs=2"]
    assert re.fullmatch(r"python '?.*train\.py'? optimizer=adamw lr=3e-4 epochs=2", record["command"])
    assert re.findall(r"epoch \d/2", outcome.text) == ["epoch 1/2", "epoch 2/2"]


@pytest.mark.slow
def test_two_processes_begun_at_once_get_a_folder_each(tmp_path: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "train.py"), *TINY]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    time.sleep(1 - time.time() % 1)  # both within one second
    processes = [subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(timeout=600) for process in processes] == [0, 0]
    assert len(list(tmp_path.glob("outputs/digits-mlp/*/result.json"))) == 2
