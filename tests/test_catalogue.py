"""The catalogue: it is the folders, and it explains what does not compose."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import options
from hydra import initialize_config_dir
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from test_command import GROUPS

from tunelab import catalogue, conf_folder, help_page
from tunelab.errors import ConfigError


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), job_name="test"):
        yield GlobalHydra.instance().config_loader()


def explained(loader: ConfigLoader, *arguments: str) -> list[str]:
    return list(catalogue.mistakes(loader, "train", catalogue.parse(list(arguments))))


def test_the_groups_and_options_are_the_folders_and_files(loader: ConfigLoader) -> None:
    ours = {group: found for group, found in catalogue.groups(loader).items() if not group.startswith("hydra")}
    assert ours == {group: options(group) for group in GROUPS}


def test_hydras_own_groups_are_nested(loader: ConfigLoader) -> None:
    assert {"basic", "optuna"} <= set(catalogue.groups(loader)["hydra/sweeper"])


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("optimizer=sgd", ["sgd"]),
        ("regularization=[l1,dropout]", ["l1", "dropout"]),
        ("optimizer=sgd,adam", ["sgd", "adam"]),
        ("regularization=[l1],[],[l2,dropout]", ["l1", "l2", "dropout"]),
        ("optimizer=choice(sgd,adam)", ["sgd", "adam"]),
        ("experiment=null", []),
    ],
)
def test_the_options_that_an_override_names_are_found(argument: str, expected: list[str]) -> None:
    assert catalogue.chosen(catalogue.parse([argument])[0]) == expected


def test_a_command_line_without_mistakes_has_none_to_explain(loader: ConfigLoader) -> None:
    assert explained(loader, "optimizer=sgd", "lr=0.1", "size.width=8", "regularization=[l1]", "+trainer.x=1") == []


def test_a_key_of_a_part_chosen_on_the_command_line_is_known(loader: ConfigLoader) -> None:
    assert explained(loader, "optimizer=momentum", "optimizer.momentum=0.5") == []
    assert explained(loader, "optimizer=sgd", "optimizer.momentum=0.5") == [
        "`optimizer.momentum` must be a key of optimizer, got momentum. It has lr, weight_decay, fused."
    ]


def test_a_key_of_a_member_that_is_not_chosen_is_unknown(loader: ConfigLoader) -> None:
    said = explained(loader, "regularization=[l2]", "regularization.l1.strength=1")
    key = "`regularization.l1.strength` must be a key of regularization"
    assert said == [f"{key}, got l1. Add 'regularization=[l2,l1]'."]
    (said_of_the_default,) = explained(loader, "callbacks.histograms.every_epochs=2")
    assert said_of_the_default.endswith(",throughput,histograms]'.")


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("clipping.percentile", "Add clipping=percentile."),
        ("clipping.max_norm", "Add clipping=norm."),
        ("clipping.nothing", "See --help for what there is."),
        ("profiler.nothing", "See --help for what there is."),
    ],
)
def test_a_key_of_a_group_of_which_nothing_is_chosen_is_told_with_the_option_that_has_it(
    loader: ConfigLoader, key: str, remedy: str
) -> None:
    group, name = key.split(".")
    assert explained(loader, f"{key}=2") == [f"`{key}` must be a key of {group}, got {name}. {remedy}"]


def test_every_wrong_option_of_a_list_is_named(loader: ConfigLoader) -> None:
    said = explained(loader, "callbacks=[checkpoin,lr,gradient_norm]")
    assert [sentence.split(" got ")[1].split(".")[0] for sentence in said] == ["checkpoin", "gradient_norm"]
    assert all(
        sentence.startswith(f"`callbacks` must be one of {', '.join(options('callbacks'))},") for sentence in said
    )


def test_each_argument_that_is_no_override_has_its_own_sentence() -> None:
    with pytest.raises(ConfigError) as refusal:
        catalogue.parse(["lr", "optimizer=sgd", "size=[", "epochs"])
    assert [sentence.split("`")[1] for sentence in refusal.value.mistakes] == ["lr", "size=[", "epochs"]


def test_the_page_of_a_script_lists_its_own_dials(loader: ConfigLoader) -> None:
    page = help_page.of_tool(loader, "evaluate", ["part=val"], "tunelab evaluate", "Score it again: run=<folder>")
    assert page.splitlines() == [
        "Score it again.",
        "",
        "  tunelab evaluate run=<folder>",
        "",
        "Keys of this tool (value now)",
        "  run         null                                                 a run's folder",
        f"  checkpoint  {'best':51}  or last, or previous: the one before the last",
        "  part        val                                                  or val: of which examples",
        f"  changed     {'refuse':51}  "
        "data that is not what the run had; or unseen: score what the model has not met; or ignore",
        "  data        {'path': None, 'val_path': None, 'test_path': None}  where it is now, if it was moved",
    ]


def test_options_of_the_users_own_folder_stand_beside_ours(tmp_path: Path) -> None:
    (tmp_path / "optimizer").mkdir()
    (tmp_path / "optimizer" / "mine.yaml").write_text("_target_: torch.optim.SGD\n")
    (tmp_path / "train.yaml").write_text((conf_folder() / "train.yaml").read_text())
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), job_name="test"):
        found = catalogue.groups(GlobalHydra.instance().config_loader())
    assert found["optimizer"] == sorted([*options("optimizer"), "mine"])
