"""A project of one's own: what `tunelab new` writes works, and what goes wrong in it is said in words."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from test_command import HEAVY, REPOSITORY, Outcome, in_process_of_its_own, options, refused, typed
from test_resume import assert_the_same_run, cut

import tunelab
from tunelab import own_code, project
from tunelab.errors import ConfigError
from tunelab.own_code import why_missing

ONE_EPOCH = ("experiment=first", "epochs=1")


@pytest.fixture(autouse=True)
def _no_trust_outlives_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_TRUST", "")


@pytest.fixture
def new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A new project, on Python's path; its package has the name of the test, which Python has not imported before."""
    folder = tmp_path / re.sub(r"\W+", " ", request.node.name).strip()
    project.write(folder)
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project whose first experiment has run for two epochs, into its folder `run`."""
    folder = tmp_path_factory.mktemp("own") / "my project"
    project.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNELAB_TRUST", "")
        patch.syspath_prepend(str(folder))
        outcome = said(folder, "experiment=first", "epochs=2", "hydra.run.dir=run")
        assert outcome.code == 0, outcome.err
        yield folder


def said(folder: Path, *arguments: str) -> Outcome:
    """What the project's own train.py says, typed in its folder."""
    return typed(folder, *arguments, script=str(folder / "train.py"))


def package(folder: Path) -> Path:
    (inside,) = folder.glob("*/model.py")
    return inside.parent


# ---- tunelab new


def test_a_new_project_has_the_files_of_the_template_under_its_own_name(tmp_path: Path) -> None:
    assert project.write(tmp_path / "My first net") == "my_first_net"
    found = {p.relative_to(tmp_path / "My first net"): p.read_text() for p in tmp_path.rglob("*") if p.is_file()}
    template = {p.relative_to(project.TEMPLATE): p.read_text() for p in project.files()}
    expected = {
        Path(str(path).replace("my_project", "my_first_net")): text.replace("my_project", "my_first_net")
        for path, text in template.items()
    }
    assert found == expected
    assert "my_first_net/model.py" in map(str, found)


def test_what_is_said_next_can_be_typed(tmp_path: Path) -> None:
    outcome = typed(tmp_path, "new", "it's new")
    assert shlex.split(outcome.out.split("Type next:")[1]) == [
        *("cd", "it's new"),
        *("python", "train.py", "experiment=first"),
    ]
    assert outcome.err == ""
    assert (tmp_path / "it's new" / "it_s_new" / "model.py").is_file()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("my project", "my_project"), ("My-Net 2", "my_net_2"), ("größe", "größe"), (" a..b ", "a_b"), ("x", "x")],
)
def test_a_package_is_named_after_its_folder(name: str, expected: str) -> None:
    assert project.package_name(name) == expected


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("2nd", "`new` must have a name that begins with a letter, got 2nd. Try my_2nd."),
        ("class", "`new` must have a name that begins with a letter, got class. Try my_class."),
        ("---", "`new` must have a name that begins with a letter, got ---. Try my_project."),
        ("torch", "`new` must not have the name of another package, got torch. Try my_torch."),
        ("Tunelab", "`new` must not have the name of another package, got tunelab. Try my_tunelab."),
        ("random", "`new` must not have the name of another package, got random. Try my_random."),
        ("train", "`new` must not have the name of another package, got train. Try my_train."),
    ],
)
def test_a_name_that_makes_no_package_is_refused(tmp_path: Path, name: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        project.write(tmp_path / name)
    assert str(refusal.value) == sentence
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "`new` must be given a folder. Type: python train.py new my_project"),
        (("--force",), "`new` must be given a folder. Type: python train.py new my_project"),
        (("my", "net"), "`new` must be given one folder, got 2. For a space type: python train.py new 'my net'"),
        (("full",), "`new` must name a new or empty folder, got full, which exists. Choose another."),
        (("file",), "`new` must name a new or empty folder, got file, which exists. Choose another."),
        (("file/net",), "`new` must name a folder that can be written, got file/net (Not a directory)."),
    ],
)
def test_where_no_project_can_be_made_is_said(tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine too")
    before = sorted(tmp_path.rglob("*"))
    assert refused(typed(tmp_path, "new", *arguments), 1).strip() == sentence
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_becomes_a_project_where_one_stands(tmp_path: Path) -> None:
    (tmp_path / "rings").mkdir()
    assert typed(tmp_path / "rings", "new", ".").code == 0
    assert (tmp_path / "rings" / "rings" / "model.py").is_file()


def test_the_help_of_new_and_of_everything_tells_of_it(tmp_path: Path) -> None:
    assert typed(tmp_path, "new", "--help").out.startswith("python train.py new <folder>")
    assert re.search(r"^  python train\.py new +A project with parts of your own", typed(tmp_path, "--help").out, re.M)


# ---- parts of one's own


def test_the_first_experiment_beats_guessing_and_is_scored_the_same_again(trained: Path) -> None:
    reported = json.loads((trained / "run" / "result.json").read_text())["test"]
    assert reported["test/accuracy"] > 0.6  # half of the points are inside
    again = said(trained, "evaluate", "run=run")
    assert re.findall(r"^(\S+) +([\d.]+) +\(the run reported ([\d.]+)\)$", again.out, re.M) == [
        (name, f"{value:.4f}", f"{value:.4f}") for name, value in reported.items()
    ]


def test_its_model_predicts_rows_of_a_csv(trained: Path) -> None:
    (trained / "points.csv").write_text("y,x\n0.1,0.2\n0.9,-0.9\n")
    outcome = said(trained, "predict", "run=run", "input=points.csv")
    assert outcome.code == 0, outcome.err
    written = pd.read_csv(trained / "points-predictions.csv")
    assert list(written.columns) == ["prediction", "p(outside)", "p(inside)"]
    own_code.trust("my_project")
    array = tunelab.load(trained / "run").predict([[0.2, 0.1], [-0.9, 0.9]])
    pd.testing.assert_frame_equal(written, array, rtol=1e-6)


def test_its_callback_writes_the_norm_of_the_weights(trained: Path) -> None:
    weights = torch.load(trained / "run" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    norm = torch.cat([w.flatten() for name, w in weights.items() if name.startswith("model.")]).norm().item()
    written = pd.read_csv(trained / "run" / "metrics.csv")["weights/norm"].dropna()
    assert len(written) == 2
    assert written.iloc[-1] == pytest.approx(norm, rel=1e-6)


def test_its_optimizer_moves_every_weight_by_lr_and_its_loss_is_that_of_guessing(trained: Path) -> None:
    from my_project.loss import Brier  # type: ignore[import-not-found]
    from my_project.optimizer import SignDescent  # type: ignore[import-not-found]

    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0, 0.0]))

    def closure() -> torch.Tensor:
        loss = weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert SignDescent([weight], lr=0.5).step(closure) == 13
    assert weight.tolist() == [2.5, -1.5, 0.0]
    assert Brier()(torch.zeros(7, 2), torch.ones(7, dtype=torch.long)) == 0.5
    assert Brier()(torch.tensor([[100.0, 0.0]]), torch.tensor([1])) == 2


def test_a_run_on_its_data_that_was_cut_short_and_resumed_is_the_uninterrupted_one(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("experiment=first", "epochs=3", "--config-dir", str(trained / "conf"))
    own_code.trust("my_project")
    whole = typed(tmp_path, *words, "hydra.run.dir=whole")
    assert whole.code == 0, whole.err
    cut(tmp_path, monkeypatch, 3, *words, "hydra.run.dir=parts")
    typed(tmp_path, "resume=parts")
    assert_the_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_the_search_of_its_readme_tries_each_of_its_parts_with_ours(trained: Path) -> None:
    (command,) = re.findall(r"^ {4}python train\.py (-m .*)", (trained / "README.md").read_text(), re.M)
    outcome = said(trained, *shlex.split(command.split("#")[0]), "epochs=1", "hydra.sweep.dir=sweep")
    assert outcome.code == 0, outcome.err
    chosen = [json.loads(path.read_text())["choices"] for path in sorted(trained.glob("sweep/*/run.json"))]
    tried = [(choices["model"], choices["optimizer"]) for choices in chosen]
    assert tried == [("net", "sign_descent"), ("net", "adamw"), ("mlp", "sign_descent"), ("mlp", "adamw")]


@pytest.mark.parametrize("group", ["model", "data", "optimizer", "loss", "callbacks", "experiment", "size"])
def test_its_help_lists_own_options_among_ours(trained: Path, group: str) -> None:
    own = sorted(p.stem for p in (trained / "conf" / group).glob("*.yaml"))
    lines = [line.replace("*", "").split() for line in said(trained, "--help").out.splitlines()]
    assert [group, *sorted([*options(group), *own])] in lines


def test_a_group_that_the_recipe_has_no_line_for_is_listed_with_the_plus_it_needs(new: Path) -> None:
    (new / "conf" / "backbone").mkdir()
    (new / "conf" / "backbone" / "frozen.yaml").write_text("layers: 3\n")
    assert ["+backbone", "frozen"] in [line.split() for line in said(new, "--help").out.splitlines()]


def test_its_own_options_are_among_what_was_meant(trained: Path) -> None:
    text = refused(said(trained, "optimizer=sign_desent", "loss=bryer"), 2)
    assert "Did you mean sign_descent" in text
    assert "Did you mean brier" in text


def test_the_commands_of_its_readme_are_accepted(trained: Path) -> None:
    text = (trained / "README.md").read_text()
    commands = [shlex.split(c.split("#")[0]) for c in re.findall(r"^ {4}python train\.py (.*)", text, re.M)]
    plain = [c for c in commands if not any("<" in word for word in c) and c[0] not in ("-m", "--help")]
    assert len(plain) == 2
    for words in plain:
        assert "my_project.data.Circle" in said(trained, *words, "--cfg", "job").out
    tools = {c[0] for c in commands if "=" not in c[0] and c[0][0] != "-"}
    assert tools == {"evaluate", "predict"}
    named = re.findall(r"`((?:my_project|conf)/[\w/.]+)`", text)
    assert [name for name in named if not (trained / name).exists()] == []


def test_the_file_of_its_readme_is_there_to_predict(trained: Path) -> None:
    (words,) = re.findall(r"^ {4}python train\.py (predict .*?) +#", (trained / "README.md").read_text(), re.M)
    shutil.copy(project.TEMPLATE / "points.csv", trained)
    outcome = said(trained, *words.replace("<folder>", "run").split(), "output=told.csv")
    assert outcome.code == 0, outcome.err
    assert len(pd.read_csv(trained / "told.csv")) == 3


def test_its_runs_are_not_for_git(new: Path) -> None:
    assert "outputs/" in (new / ".gitignore").read_text().splitlines()


def test_what_our_readme_shows_of_a_project_is_what_new_writes() -> None:
    section = (REPOSITORY / "README.md").read_text().split("## Your own parts")[1].split("\n## ")[0]
    block = [line.split(" #")[0].strip() for line in section.splitlines() if line.startswith("    ")]
    shown = {line for line in block if line.startswith("python train.py ") or "my_project" in line}
    written = {line.split(" #")[0].strip() for path in project.files() for line in path.read_text().splitlines()}
    assert shown - written == set()


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--help",), 0, "sign_descent"),
        (("model=nett",), 2, "Did you mean net"),
        (("experiment=first", "model._target_=my_project.model.Nett"), 1, "Did you mean Net?"),
    ],
)
def test_its_help_and_its_mistakes_import_neither_torch_nor_its_package(
    trained: Path, words: tuple[str, ...], code: int, text: str
) -> None:
    outcome = in_process_of_its_own(trained, *words, python=("-X", "importtime"), script=str(trained / "train.py"))
    lines = [line.rsplit("|", 1)[-1].strip() for line in outcome.err.splitlines() if "import time:" in line]
    assert (outcome.code, {line.split(".")[0] for line in lines} & {*HEAVY, "my_project"}) == (code, set())
    assert text in outcome.text


# ---- tools are words of any train.py


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ("evalute", "run=x"),
            "`evalute` must be a tool, or an override of the form key=value. Did you mean evaluate?",
        ),
        (("run=x", "evaluate"), "`evaluate` must come first, before what it is given: python train.py evaluate …"),
        (("epochs=1", "new"), "`new` must come first, before what it is given: python train.py new …"),
    ],
)
def test_a_tool_that_is_misspelt_or_misplaced_is_refused(tmp_path: Path, words: tuple[str, ...], sentence: str) -> None:
    assert refused(typed(tmp_path, *words), 2).strip() == sentence


def test_a_tool_by_its_word_is_the_script(trained: Path) -> None:
    own_code.trust("my_project")
    assert said(trained, "evaluate", "run=run").out == typed(trained, "run=run", script="scripts/evaluate.py").out
    assert said(trained, "evaluate", "--help").out.splitlines()[2] == "  python train.py evaluate run=<folder>"


# ---- trust


def test_a_model_of_ones_own_loads_in_python_once_its_package_is_trusted(trained: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        tunelab.load(trained / "run")
    assert len(refusal.value.mistakes) == 1  # one remedy for all that is of the package
    assert str(refusal.value).startswith("`model._target_` must be in a trusted package, got my_project.model.Net and ")
    assert 'in Python, tunelab.trust("my_project"); elsewhere set TUNELAB_TRUST=my_project.' in str(refusal.value)
    tunelab.trust("my_project")
    model = tunelab.load(trained / "run").task.model
    assert type(model).__module__ == "my_project.model"


def test_a_package_that_sounds_like_a_trusted_one_was_meant_to_be_it(trained: Path) -> None:
    text = refused(said(trained, *ONE_EPOCH, "model._target_=my_projekt.model.Net"), 1)
    assert "must be in a trusted package, got my_projekt.model.Net. Did you mean my_project?" in text


def test_trust_adds_to_what_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNELAB_TRUST", "a, b")
    own_code.trust("c", "a")
    assert own_code.trusted() == ["c", "a", "b"]


def test_one_package_may_be_trusted_without_brackets(new: Path) -> None:
    train = new / "train.py"
    train.write_text(train.read_text().replace(f'["{package(new).name}"]', f'"{package(new).name}"'))
    assert said(new, "experiment=first", "--cfg", "job").err == ""
    assert own_code.trusted() == [package(new).name]


# ---- what goes wrong in it


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("model.Nett", "my_project.model has no Nett. Did you mean Net?"),
        ("model.Xyzzy", "my_project.model has no Xyzzy. It has math, Callable, nn, Net."),
        ("modle.Net", "my_project has no modle. Did you mean model?"),
        ("model", "my_project.model is a module. Name a class in it: my_project.model.<class>."),
    ],
)
def test_a_class_that_is_not_there_is_refused_with_what_was_meant(trained: Path, target: str, why: str) -> None:
    text = refused(said(trained, *ONE_EPOCH, f"model._target_=my_project.{target}"), 1)
    assert f"`model._target_` must be there, got my_project.{target}: {why}" in text


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("Net = 1", ""),
        ("from somewhere import *", ""),
        ("def __getattr__(name): ...", ""),
        ("if True:\n    Net = 1", ""),
        ("import a.Net", "has no Net."),
        ("x = Net", ""),
        ("class Net(:", "is not Python in line 1: invalid syntax."),
        ("", "has no Net."),
    ],
)
def test_whether_a_class_is_there_is_read_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, why: str
) -> None:
    (tmp_path / "somepackage").mkdir()
    (tmp_path / "somepackage" / "part.py").write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (why_missing("somepackage.part.Net") == "") == (why == "")
    assert why in why_missing("somepackage.part.Net")


def test_a_package_that_python_does_not_find_is_named() -> None:
    assert why_missing("nowhere_to_be_found.model.Net").startswith("Python finds no nowhere_to_be_found from here.")


BREAKS = {
    "its constructor fails": (
        ("        hidden =", "        self.depth = self.layers\n        hidden ="),
        ["`model` must be given arguments that it takes: ", "It came from here:", "self.depth = self.layers"],
    ),
    "an import of it fails": (
        ("import math", "import math, nowhere"),
        ["No module named 'nowhere'", "import math, now"],
    ),
    "it has a slip of syntax": (("import math", "import math +"), ["is not Python in line 3: invalid syntax."]),
    "it refuses in words": (
        ("        hidden =", '        raise ConfigError("`model` must be another.")\n        hidden ='),
        ["`model` must be another."],
    ),
}


@pytest.mark.parametrize(("change", "expected"), BREAKS.values(), ids=BREAKS)
def test_a_part_that_cannot_be_built_is_said_with_the_line_of_ones_own(
    new: Path, change: tuple[str, str], expected: list[str]
) -> None:
    model = package(new) / "model.py"
    model.write_text(
        "from tunelab.errors import ConfigError\n" * ("Config" in change[1]) + model.read_text().replace(*change)
    )
    text = refused(said(new, *ONE_EPOCH), 1)
    assert [words for words in expected if words not in text] == []
    assert "site-packages" not in text
    assert ("It came from here" in text) == (len(expected) > 1)
    assert not list(new.glob("outputs/*"))


FAILURE = """
    def forward(self, inputs):
        if self.training:
            return super().forward(inputs[:, :1])
        return super().forward(inputs)
"""


def test_an_error_in_training_points_to_the_lines_of_ones_own(new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = package(new) / "model.py"
    model.write_text(model.read_text() + FAILURE)
    text = refused(said(new, *ONE_EPOCH, "hydra.run.dir=run"), 1)
    told = text[text.index("An error in your own code:") :].splitlines()
    assert [line.split('"')[1] for line in told if line.startswith("  File")] == [
        str(package(new) / "optimizer.py"),  # which asks for the loss
        str(model),
    ]
    assert "return super().forward(inputs[:, :1])" in text
    assert told[-2].startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x1 and 2x128)")
    assert len(told) < 12
    assert told[-2] in (new / "run" / "train.log").read_text()
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        said(new, *ONE_EPOCH)


# ---- a primary config of one's own


def test_a_recipe_of_ones_own_builds_on_ours(new: Path) -> None:
    lines = ["defaults:", "- train", "- override /data: circle", "- override /model: net", "- _self_", "epochs: 3"]
    (new / "conf" / "my_train.yaml").write_text("\n".join(lines))
    shown = said(new, "--config-name", "my_train", "--cfg", "job", "optimizer=sgd").out
    assert re.findall(r"^(?:epochs|lr): .*", shown, re.M) == ["epochs: 3", "lr: 0.1"]
    assert f"{package(new).name}.data.Circle" in shown


@pytest.mark.parametrize("line", ["train", "train@_here_", "/train"])
@pytest.mark.parametrize("flags", [("--cfg", "job"), ("--help",), ("-m", "lr=1,2")])
def test_one_of_the_same_name_cannot_build_on_ours_and_is_told_how(
    new: Path, line: str, flags: tuple[str, ...]
) -> None:
    (new / "conf" / "train.yaml").write_text(f"defaults:\n- {line}\n- _self_\nepochs: 3\n")
    text = refused(said(new, *flags), 1)
    assert "`train.yaml` must not lead back to itself in its defaults list." in text
    assert 'tunelab.main(config_name="my_train")' in text


def test_one_of_the_same_name_may_stand_in_its_place(new: Path) -> None:
    shutil.copy(tunelab.conf_folder() / "train.yaml", new / "conf" / "train.yaml")
    text = (new / "conf" / "train.yaml").read_text()
    (new / "conf" / "train.yaml").write_text(re.sub(r"^epochs: .*", "epochs: 3", text, flags=re.M))
    assert "epochs: 3\n" in said(new, "--cfg", "job", "model=net").out


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (
            "defaults:\n- overide /model: net\n",
            "`experiment/mine.yaml` must have override or optional before a group in its defaults, got overide. "
            "Did you mean override?",
        ),
        (
            "defaults:\n- override /model: nett\n",
            "`experiment/mine.yaml` must name an option of model in its defaults ",
        ),
        ("defaults:\n- override /modell: net\n", "got modell. Did you mean model?"),
        ("defaults:\n- override model: net\n", "got model. Did you mean /model?"),
        ("defaults:\n- /model: net\n", "got net. Write override /model: net."),
        ("epochs: [3\nlr: 1\n", "conf/experiment/mine.yaml` must be YAML, got in line 3: did not find expected"),
    ],
)
def test_a_mistake_in_an_experiment_file_names_the_file(new: Path, lines: str, sentence: str) -> None:
    (new / "conf" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{lines}")
    text = refused(said(new, "experiment=mine"), 2)
    assert sentence in text
    assert "nett" not in lines or text.strip().endswith("got nett. Did you mean net or resnet?")
