"""A trial's recipe is what Hydra composes of the same overrides, however they are typed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from tunelab import catalogue, conf_folder
from tunelab.config import plain, recipe_of
from tunelab.errors import ConfigError
from tunelab.sweep.checks import refuse_mistakes
from tunelab.sweep.recipes import Recipes
from tunelab.sweep.samplers import Grid
from tunelab.sweep.space import read_space


@pytest.fixture(scope="module")
def loader() -> Iterator[Any]:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_folder()), job_name="train"):
        found = GlobalHydra.instance().config_loader()
        compose, known = found.load_configuration, dict[tuple[str, ...], Any]()

        def once(config_name: str, overrides: list[str], run_mode: RunMode) -> Any:  # a tenth of a second each
            if (key := tuple(overrides)) not in known:
                known[key] = compose(config_name, overrides, run_mode)
            return known[key]

        found.load_configuration = once
        yield found


@pytest.fixture
def recipes(loader: Any) -> Callable[..., Recipes]:
    """recipes(*overrides): what makes the recipes of a search."""

    def made(*overrides: str) -> Recipes:
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
        return Recipes(loader, "train", read_space(parsed, catalogue.groups(loader), 0), [])

    return made


@contextmanager
def hydra_of(cfg: Any) -> Iterator[None]:
    before = HydraConfig.instance().cfg
    HydraConfig.instance().set_config(cfg)
    try:
        yield
    finally:
        HydraConfig.instance().cfg = before


def composed(loader: Any, overrides: list[str]) -> dict[str, Any]:
    """What Hydra and OmegaConf make of a command line, as a trial has it."""
    cfg = loader.load_configuration("train", overrides, RunMode.RUN)
    with hydra_of(cfg):
        values = plain(recipe_of(cfg), resolve=True)
    values["trainer"]["enable_progress_bar"] = False
    return values | {"test": False, "threads": values["threads"] or 1, "data": values["data"]}


SPACES = {
    "groups": ["optimizer=adamw,momentum", "optimizer.momentum=choice(0.5)", "data=iris,digits", "lr=1e-4", "epochs=3"],
    "members": ["regularization=choice([mixup,l1],[])", "regularization.mixup.alpha=0.1,1.0", "callbacks=lr"],
    "lists and dicts": [
        "optimizer.betas=[0.9,0.99],[0.8,0.95]",
        "parameter_groups.rules=[{match:head.*,lr:0.1}],[]",
        "+trainer.extra={a:1,b:[x]}",
        "~callbacks.lr",
    ],
    "null, truth and interpolations": ["fold=null,0/5", "compile=true", "warmup_steps=${size.depth},3"],
    "texts": [
        "+trainer.note='a b=c,d','it\\'s \"x\"',plain,'',' ','null','1','C:\\x','/tmp/a b=c,d.csv',/tmp/x.csv,'é'"
    ],
    "an experiment": ["experiment=iris_mlp,wine_mlp", "size.width=8,16"],
    "ranges": ["epochs=range(1,3)", "dropout=range(0.1,0.4,0.2)", "seed=shuffle(range(0,2))", "name=run-${seed}"],
}


@pytest.mark.parametrize("typed", SPACES.values(), ids=SPACES)
def test_a_trials_recipe_is_what_hydra_composes_of_its_overrides(
    loader: Any, recipes: Callable[..., Recipes], typed: list[str]
) -> None:
    makes = recipes(*typed)
    swept = {str(knob.element) for knob in makes.space.knobs}
    fixed = [override for override in typed if override.partition("=")[0] not in swept]
    grid = Grid()
    grid.space = makes.space
    every = list(grid.combinations(makes.active))
    for values in (
        every if "note" in typed[0] else (every[0], every[-1])
    ):  # a composition by Hydra is a tenth of a second
        made = makes.recipe(values)
        assert made.overrides == [*fixed, *(makes.space[key].override(value) for key, value in values.items())]
        assert made.values == composed(loader, made.overrides)


def test_a_choice_of_texts_is_the_text_that_was_quoted(recipes: Callable[..., Recipes]) -> None:
    typed = "data.target='a b=c,d',\"it's\",'say \"x\"','C:\\x',' '"
    makes = recipes("data=csv", "data.path=/x.csv", typed)
    labels = list(makes.space["data.target"].texts)
    assert labels == ["a b=c,d", "it's", 'say "x"', "C:\\x", " "]
    assert [makes.recipe({"data.target": label}).values["data"]["target"] for label in labels] == labels


def test_every_option_is_followed_as_omegaconf_resolves_it(loader: Any, recipes: Callable[..., Recipes]) -> None:
    for model in ("transformer", "resnet"):
        makes = recipes(f"model={model}", "loss=cross_entropy,focal", "optimizer=muon,schedule_free", "init=lsuv")
        for options in (
            {"loss": "focal", "optimizer": "muon"},
            {"loss": "cross_entropy", "optimizer": "schedule_free"},
        ):
            made = makes.recipe(options)
            assert made.values == composed(loader, made.overrides)
            assert made.choices["optimizer"] == options["optimizer"]


def test_a_trial_changes_nothing_of_the_next(recipes: Callable[..., Recipes]) -> None:
    makes = recipes("lr=0.1,0.2", "+trainer.extra={a:1},{b:2}", "optimizer.betas=[0.9,0.99],[0.8,0.95]")
    both = [makes.recipe({k.key: k.values()[place] for k in makes.space.knobs}) for place in (0, 1)]
    both[0].values["trainer"]["extra"]["a"] = "changed"
    assert [recipe.values["trainer"]["extra"] for recipe in both] == [{"a": "changed"}, {"b": 2}]
    again = makes.recipe({k.key: k.values()[0] for k in makes.space.knobs})
    assert again.values["trainer"]["extra"] == {"a": 1}
    assert again.values["optimizer"]["betas"] == [0.9, 0.99]


def test_a_key_has_an_effect_where_a_chosen_part_has_or_reads_it(recipes: Callable[..., Recipes]) -> None:
    makes = recipes(
        "optimizer=adamw,momentum",
        "regularization=choice([l1],[mixup],[])",
        "optimizer.momentum=0.5,0.8",
        "regularization.mixup.alpha=0.1,1.0",
        "lr=0.1,0.2",
    )
    groups = {"optimizer", "regularization"}
    assert makes.active({"optimizer": "adamw", "regularization": "[l1]"}) == {*groups, "lr"}
    assert makes.active({"optimizer": "momentum", "regularization": "[]"}) == {*groups, "lr", "optimizer.momentum"}
    mixed = makes.active({"optimizer": "adamw", "regularization": "[mixup]"})
    assert mixed == {*groups, "lr", "regularization.mixup.alpha"}
    dial = recipes("loss=cross_entropy,focal", "label_smoothing=0.0,0.1")
    assert dial.active({"loss": "cross_entropy"}) == {"loss", "label_smoothing"}
    assert dial.active({"loss": "focal"}) == {"loss"}


def test_the_compositions_of_a_search_are_one_per_choice_of_options(recipes: Callable[..., Recipes]) -> None:
    makes = recipes("optimizer=adamw,sgd", "lr=interval(0.1,0.2)")
    for place in range(20):
        makes.recipe({"optimizer": ("adamw", "sgd")[place % 2], "lr": 0.1 + place / 1000})
    assert makes._compose.cache_info().misses == 2


@pytest.mark.parametrize(
    ("typed", "own"),
    [
        (["lr=tag(log,interval(1e-5,1e-1))"], {"lr": 1e-3}),
        (["optimizer=sgd,adamw", "lr=interval(1e-4,0.1)"], {"optimizer": "adamw", "lr": 1e-3}),
        (["regularization=choice([l1],[])", "regularization.l1.strength=0.1,0.2"], {"regularization": "[]"}),
        (["callbacks=[finite,lr],[throughput,lr,updates,dead_units,gradients,finite,checkpoint]"], {"callbacks": 1}),
        (["optimizer.betas=[0.9,0.999],[0.8,0.9]"], {"optimizer.betas": "[0.9,0.999]"}),
        (["batch_size=32,64", "fold=null,0/5"], {"batch_size": 64, "fold": None}),
        (["optimizer.lr=0.001,0.1"], {"optimizer.lr": 0.001}),
        (["compile=true,false", "epochs=range(10,40,10)"], {"compile": False, "epochs": 30}),
    ],
)
def test_the_recipes_own_values_are_found_in_the_space(
    recipes: Callable[..., Recipes], typed: list[str], own: dict[str, Any]
) -> None:
    makes = recipes(*typed)
    if "callbacks" in own:
        own = {"callbacks": list(makes.space["callbacks"].texts)[1]}
    assert makes.own_values() == own
    assert makes.outside() == []
    base = composed(makes.loader, [])
    found = makes.recipe(own).values
    assert {key: found[key] for key in base if key != "callbacks"} == {
        k: v for k, v in base.items() if k != "callbacks"
    }
    assert found["callbacks"] == base["callbacks"]  # as dicts are: in any order


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("lr=interval(0.1,0.2)", "lr=0.001 is not in interval(0.1,0.2)"),
        ("optimizer=sgd,lion", "optimizer=adamw is not in sgd,lion"),
        ("batch_size=32,full", "batch_size=64 is not in 32,full"),
        ("fold=0/5,1/5", "fold=null is not in 0/5,1/5"),
        ("compile=1,2", "compile=false is not in 1,2"),
    ],
)
def test_own_values_that_are_not_searched_are_named(recipes: Callable[..., Recipes], typed: str, said: str) -> None:
    makes = recipes(typed)
    assert makes.own_values() is None
    assert makes.outside() == [said]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["data=digits,diabetes"],
            "`objective` must be the same in all trials of a search, got val/accuracy and val/rmse",
        ),
        (["loss=cross_entropy,mse"], "With loss=mse: "),
        (["label_smoothing=0.1,0.2", "loss=focal,hinge"], "`label_smoothing` must be read by a chosen part"),
        (["optimizer=adamw,sgd", "optimizer.momentun=0.1,0.2"], "`optimizer.momentun` must be a key of optimizer"),
        (["optimizer=adamw,momentum", "optimizer.momentum=0.9,x"], "With optimizer.momentum=x: "),
        (["epochs=interval(1,5)"], "`epochs` must be a whole number"),
        (["lr=interval(0,0.1)"], "`lr` must be greater than 0"),
        (["dropout=interval(0.1,1.0)"], "`dropout` must be less than 1"),
        (["model=transformer", "size.width=64,100", "model.heads=3,7"], "With size.width=64: "),
    ],
)
def test_what_is_wrong_in_every_trial_is_said_before_the_first(
    recipes: Callable[..., Recipes], typed: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_mistakes(recipes(*typed))
    assert said in "\n".join(caught.value.mistakes)


@pytest.mark.parametrize(
    "typed",
    [
        ["data=digits,diabetes", "objective=val/loss"],
        ["data=digits,iris", "seed=0,1", "threads=1,2"],
        ["size.width=96,100", "model=vit", "data=digits", "model.heads=2,3"],  # each fits one of the others
        ["data=csv", "data.target=a,b", "data.path=/a.csv,/b.csv"],
    ],
)
def test_what_is_right_in_one_combination_is_not_refused(recipes: Callable[..., Recipes], typed: list[str]) -> None:
    refuse_mistakes(recipes(*typed))


def test_ten_knobs_of_ten_choices_are_checked_by_their_choices_alone(recipes: Callable[..., Recipes]) -> None:
    many = "1e-5,1e-4,1e-3,2e-3,3e-3,4e-3,5e-3,6e-3,7e-3,8e-3"
    keys = ("lr", "weight_decay", "optimizer.eps", "dropout", "label_smoothing", "warmup_fraction")
    makes = recipes(*(f"{key}={many}" for key in keys))
    tried: list[object] = []
    own = makes.recipe
    makes.recipe = lambda values: tried.append(values) or own(values)  # type: ignore[method-assign, func-returns-value]
    refuse_mistakes(makes)
    assert len(tried) == 60


def test_an_added_key_has_an_effect_with_the_parts_that_take_it(recipes: Callable[..., Recipes]) -> None:
    made = recipes("optimizer=adamw,sgd,rmsprop", "+optimizer.nesterov=true,false", "+callbacks.x.y=1,2")
    assert made.active({"optimizer": "adamw"}) == {"optimizer", "callbacks.x.y"}
    assert made.active({"optimizer": "sgd"}) == {"optimizer", "callbacks.x.y", "optimizer.nesterov"}
    assert made.active({"optimizer": "rmsprop"}) == {"optimizer", "callbacks.x.y"}


def test_an_added_key_that_none_takes_is_refused(recipes: Callable[..., Recipes]) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_mistakes(recipes("optimizer=adamw,sgd", "+optimizer.momentun=0.1,0.9"))
    assert refused.value.mistakes[0].startswith(
        "`optimizer.momentun` must be an argument of AdamW, got momentun. It has"
    )


def test_a_mistake_that_all_values_have_in_common_is_said_once(recipes: Callable[..., Recipes]) -> None:
    with pytest.raises(ConfigError) as refused:
        refuse_mistakes(recipes("lr=0.1,0.01", "objective=val/los"))
    (mistake,) = refused.value.mistakes
    assert mistake.startswith("`objective` must be a metric that this run logs, got val/los.")
