"""What a recipe must satisfy: ranges, rules between keys, and the sentence for each that is broken."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel
from test_command import refused, typed

from tunelab import schema
from tunelab.catalogue import parse
from tunelab.config import plain, validate
from tunelab.errors import MOST_LINES, ConfigError, did_you_mean, show
from tunelab.rules import logged_metrics

Compose = Callable[..., DictConfig]

# (what is typed, the rule it breaks, what to type instead)
RANGES = [
    ("name=a/b", "be a folder's name without a slash", "name=my_run"),
    ("name=null", "be text", "name=my_run"),
    ("seed=-1", "be at least 0", "seed=0"),
    ("seed=4294967296", "be less than 4.29497e+09", "seed=0"),
    ("seed=1.5", "be a whole number", "seed=0"),
    ("threads=0", "be at least 1", "threads=2"),
    ("threads=2000", "be at most 1024", "threads=2"),
    ("epochs=0", "be at least 1", "epochs=30"),
    ("epochs=2.5", "be a whole number", "epochs=30"),
    ("epochs=true", "be a whole number", "epochs=30"),
    ("batch_size=0", "be at least 1 or be 'full'", "batch_size=64"),
    ("batch_size=-1", "be at least 1 or be 'full'", "batch_size=64"),
    ("batch_size=1.5", "be a whole number or be 'full'", "batch_size=64"),
    ("batch_size=fulll", "be a whole number or be 'full'", "batch_size=64"),
    ("lr=abc", "be a number", "lr=0.001"),
    ("lr=true", "be a number", "lr=0.001"),
    ("lr=null", "be a number", "lr=0.001"),
    ("lr=[0.1]", "be a number", "lr=0.001"),
    ("lr=nan", "be a finite number", "lr=0.001"),
    ("lr=inf", "be a finite number", "lr=0.001"),
    ("lr=0", "be greater than 0", "lr=0.001"),
    ("lr=-1", "be greater than 0", "lr=0.001"),
    ("weight_decay=-0.1", "be at least 0", "weight_decay=0.01"),
    ("weight_decay=inf", "be a finite number", "weight_decay=0.01"),
    ("dropout=1", "be less than 1", "dropout=0.2"),
    ("dropout=-0.1", "be at least 0", "dropout=0.2"),
    ("dropout=nan", "be a finite number", "dropout=0.2"),
    ("label_smoothing=1", "be less than 1", "label_smoothing=0.1"),
    ("warmup_steps=-1", "be at least 0", "warmup_steps=100"),
    ("warmup_fraction=1", "be less than 1", "warmup_fraction=0.05"),
    ("objective=null", "be text", "objective=val/loss"),
    ("objective_direction=up", "be 'minimize' or 'maximize'", "objective_direction=minimize"),
    ("test=1", "be true or false", "test=true"),
    ("size.width=0", "be at least 1", "size.width=128"),
    ("size.depth=0", "be at least 1", "size.depth=2"),
    ("model=cnn model.kernel_size=0", "be at least 1", "model.kernel_size=3"),
    (
        "callbacks=[histograms] callbacks.histograms.every_epochs=0",
        "be at least 1",
        "callbacks.histograms.every_epochs=1",
    ),
    ("profiler=pytorch profiler.rows=0", "be at least 1", "profiler.rows=15"),
    ("profiler=pytorch profiler.wait=-1", "be at least 0", "profiler.wait=1"),
    ("profiler=pytorch profiler.warmup=0.5", "be a whole number", "profiler.warmup=1"),
    ("profiler=pytorch profiler.active=0", "be at least 1", "profiler.active=3"),
    ("profiler=pytorch profiler.record_shapes=1", "be true or false", "profiler.record_shapes=true"),
    ("profiler=pytorch profiler.profile_memory=1", "be true or false", "profiler.profile_memory=true"),
    ("profiler=pytorch profiler.with_stack=1", "be true or false", "profiler.with_stack=true"),
    ("callbacks.checkpoint.every_seconds=-1", "be at least 0", "callbacks.checkpoint.every_seconds=1.0"),
    ("callbacks.dead_units.tolerance=-1", "be at least 0", "callbacks.dead_units.tolerance=1e-06"),
    ("model.normalization=group", "be 'none', 'batch' or 'layer'", "model.normalization=none"),
    ("optimizer.betas=[0.9]", "have 2 or more numbers", "optimizer.betas=[0.9,0.999]"),
    ("optimizer.betas=0.9", "be a list", "optimizer.betas=[0.9,0.999]"),
    ("optimizer=momentum optimizer.momentum=1", "be less than 1", "optimizer.momentum=0.9"),
    ("optimizer.eps=0", "be greater than 0", "optimizer.eps=1e-08"),
    ("scheduler.eta_min=-1", "be at least 0", "scheduler.eta_min=1e-05"),
    ("scheduler=step scheduler.every_epochs=0", "be at least 1", "scheduler.every_epochs=30"),
    ("scheduler=step scheduler.factor=1", "be less than 1", "scheduler.factor=0.1"),
    ("scheduler=plateau scheduler.patience=-1", "be at least 0", "scheduler.patience=10"),
    ("regularization=[l1] regularization.l1.strength=-1", "be at least 0", "regularization.l1.strength=0.0001"),
    (
        "regularization=[early_stopping] regularization.early_stopping.patience=0",
        "be at least 1",
        "regularization.early_stopping.patience=10",
    ),
    (
        "regularization=[early_stopping] regularization.early_stopping.min_delta=-1",
        "be at least 0",
        "regularization.early_stopping.min_delta=0.0",
    ),
    ("optimizer=rmsprop optimizer.alpha=1", "be less than 1", "optimizer.alpha=0.99"),
    ("optimizer=sam optimizer.rho=-1", "be at least 0", "optimizer.rho=0.05"),
    ("optimizer=adafactor optimizer.beta2_decay=1", "be at most 0", "optimizer.beta2_decay=-0.8"),
    ("optimizer=adafactor optimizer.d=0.5", "be at least 1", "optimizer.d=1.0"),
    ("optimizer=muon optimizer.adamw_lr=0", "be greater than 0", "optimizer.adamw_lr=0.001"),
    ("optimizer=muon optimizer.adamw_betas=[0.9]", "have 2 or more numbers", "optimizer.adamw_betas=[0.9,0.95]"),
    ("optimizer=muon optimizer.ns_steps=0", "be at least 1", "optimizer.ns_steps=5"),
    ("optimizer=sam optimizer.base=adam", "be 'sgd' or 'adamw'", "optimizer.base=sgd"),
    ("optimizer=lbfgs optimizer.max_iter=0", "be at least 1", "optimizer.max_iter=20"),
    ("optimizer=lbfgs optimizer.history_size=0", "be at least 1", "optimizer.history_size=10"),
    ("optimizer=lbfgs optimizer.line_search_fn=wolfe", "be 'strong_wolfe'", "optimizer.line_search_fn=strong_wolfe"),
    ("parameter_groups.layer_decay=0", "be greater than 0", "parameter_groups.layer_decay=0.8"),
    ("parameter_groups.matrices_apart=1", "be true or false", "parameter_groups.matrices_apart=true"),
    (
        "scheduler=multistep scheduler.milestone_fractions=0.5",
        "be a list",
        "scheduler.milestone_fractions=[0.5,0.75]",
    ),
    ("scheduler=polynomial scheduler.power=0", "be greater than 0", "scheduler.power=2.0"),
    ("scheduler=cyclic scheduler.cycles=0", "be at least 1", "scheduler.cycles=3"),
    ("scheduler=cosine_restarts scheduler.growth=0.5", "be at least 1", "scheduler.growth=2.0"),
    ("scheduler=inverse_sqrt scheduler.timescale_fraction=0", "be greater than 0", "scheduler.timescale_fraction=0.1"),
    ("scheduler=warmup_stable_decay scheduler.decay_fraction=0", "be greater than 0", "scheduler.decay_fraction=0.2"),
    ("scheduler=one_cycle scheduler.rise_fraction=1", "be less than 1", "scheduler.rise_fraction=0.3"),
    ("scheduler=one_cycle scheduler.first_fraction=0", "be greater than 0", "scheduler.first_fraction=0.04"),
    ("loss.class_weights=evenly", "be a list or be 'balanced'", "loss.class_weights=balanced"),
    ("loss=focal loss.gamma=-1", "be at least 0", "loss.gamma=2.0"),
    ("loss=hinge loss.margin=0", "be greater than 0", "loss.margin=1.0"),
    ("data=diabetes loss=huber loss.delta=0", "be greater than 0", "loss.delta=1.0"),
    ("clipping=norm clipping.max_norm=0", "be greater than 0", "clipping.max_norm=1.0"),
    ("clipping=norm clipping.norm_type=0", "be greater than 0", "clipping.norm_type=2.0"),
    ("clipping=value clipping.clip_value=0", "be greater than 0", "clipping.clip_value=0.5"),
    ("clipping=agc clipping.clip_factor=0", "be greater than 0", "clipping.clip_factor=0.01"),
    ("clipping=agc clipping.eps=0", "be greater than 0", "clipping.eps=0.001"),
    ("clipping=percentile clipping.percentile=101", "be at most 100", "clipping.percentile=90.0"),
    ("clipping=percentile clipping.window_steps=5", "be at least 10", "clipping.window_steps=100"),
    ("batch_growth=factor batch_growth.factor=1", "be greater than 1", "batch_growth.factor=1.5"),
    ("batch_growth=factor batch_growth.every_epochs=0", "be at least 1", "batch_growth.every_epochs=5"),
    ("batch_growth=factor batch_growth.maximum=0", "be at least 1", "batch_growth.maximum=1024"),
    ("batch_growth=factor batch_growth.by=epochs", "be 'batch_size' or 'accumulation'", "batch_growth.by=accumulation"),
    (
        "batch_growth=factor batch_growth.lr_rule=cubic",
        "be 'auto', 'linear', 'sqrt' or 'none'",
        "batch_growth.lr_rule=auto",
    ),
    ("batch_growth=schedule batch_growth.after_epochs=10", "be a list", "batch_growth.after_epochs=[10,20]"),
    ("batch_growth=schedule batch_growth.batch_sizes=128", "be a list", "batch_growth.batch_sizes=[128,256]"),
    ("data.val_fraction=1", "be less than 1", "data.val_fraction=0.1"),
    ("data.test_fraction=-0.1", "be at least 0", "data.test_fraction=0.1"),
    ("data.split_seed=-1", "be at least 0", "data.split_seed=0"),
    ("data.shuffle=1", "be true or false", "data.shuffle=true"),
    ("trainer.devices=1.5", "be a whole number", "trainer.devices=1"),
    ("trainer.accumulate_grad_batches=0", "be at least 1", "trainer.accumulate_grad_batches=1"),
    ("trainer.check_val_every_n_epoch=0", "be at least 1", "trainer.check_val_every_n_epoch=1"),
    ("trainer.log_every_n_steps=0", "be at least 1", "trainer.log_every_n_steps=50"),
    ("compile=1", "be true or false", "compile=true"),
    ("find_lr=1", "be true or false", "find_lr=true"),
    ("augmentation=light augmentation.crop_fraction=1", "be less than 1", "augmentation.crop_fraction=0.125"),
    ("augmentation=light augmentation.erase_fraction=1", "be less than 1", "augmentation.erase_fraction=0.2"),
    ("augmentation=light augmentation.jitter=-1", "be at least 0", "augmentation.jitter=0.2"),
    ("augmentation=light augmentation.noise=-1", "be at least 0", "augmentation.noise=0.05"),
    ("augmentation=light augmentation.probability=2", "be at most 1", "augmentation.probability=0.5"),
    ("augmentation=light augmentation.rotation_degrees=-1", "be at least 0", "augmentation.rotation_degrees=15.0"),
    ("augmentation=light augmentation.strength=-1", "be at least 0", "augmentation.strength=1.0"),
    ("data=csv data.path=x.csv data.target=y data.categorical=5", "be a list", "data.categorical=[postcode]"),
    ("data=csv data.path=x.csv data.target=y data.drop=5", "be a list", "data.drop=[id]"),
    ("data=csv data.path=x.csv data.target=y data.encoding=5", "be text", "data.encoding=utf-8"),
    ("data=csv data.path=x.csv data.target=y data.max_categories=0", "be at least 1", "data.max_categories=50"),
    ("data=csv data.path=x.csv data.target=y data.missing=5", "be a list", "data.missing=[unknown]"),
    ("data=csv data.path=x.csv data.target=y data.not_missing=5", "be a list", "data.not_missing=[None]"),
    (
        "data=csv data.path=x.csv data.target=y data.decimal=dot",
        "be 'point' or 'comma' or be a group of keys",
        "data.decimal=comma",
    ),
    (
        "data=csv data.path=x.csv data.target=y data.day_first=1",
        "be true or false or be a group of keys",
        "data.day_first=true",
    ),
    ("data=csv data.path=x.csv data.target=y data.ignore_case=1", "be true or false", "data.ignore_case=true"),
    ("data=csv data.path=x.csv data.target=y data.separator=ab", "be one character", "data.separator=';'"),
    (
        "data=csv data.path=x.csv data.target=y data.split_column=1.5",
        "be text or be a whole number",
        "data.split_column=part",
    ),
    ("data=csv data.path=x.csv data.target=y data.target=1.5", "be text or be a whole number", "data.target=price"),
    ("data=csv data.path=x.csv data.target=y data.path=5", "be text", "data.path=my_data"),
    ("data=csv data.path=x.csv data.target=y data.val_path=5", "be text", "data.val_path=val.csv"),
    ("data=csv data.path=x.csv data.target=y data.test_path=5", "be text", "data.test_path=test.csv"),
    ("data=blobs data.classes=1", "be at least 2", "data.classes=4"),
    ("data=blobs data.examples=3", "be at least 4", "data.examples=1000"),
    ("data=blobs data.noise=-1", "be at least 0", "data.noise=0.1"),
    ("data=blobs data.features=0", "be at least 1", "data.features=10"),
    ("data=waves data.tokens=1", "be at least 2", "data.tokens=24"),
    (
        "data=image_folder data.path=x data.class_folder=middle",
        "be 'first' or 'last'",
        "data.class_folder=last",
    ),
    ("data=image_folder data.path=x data.color=blue", "be 'rgb' or 'grey'", "data.color=rgb"),
    ("data=image_folder data.path=x data.image_size=0", "be at least 1", "data.image_size=32"),
    ("data=image_folder data.path=x data.in_memory=maybe", "be true or false or be 'auto'", "data.in_memory=auto"),
    ("data=image_folder data.path=x data.memory_limit_gb=0", "be greater than 0", "data.memory_limit_gb=4"),
    ("data=image_folder data.path=x data.workers=-1", "be at least 0", "data.workers=2"),
    ("init=xavier_normal init.gain=0", "be greater than 0", "init.gain=null"),
    ("init=normal init.std=0", "be greater than 0", "init.std=0.02"),
    ("init=pretrained init.path=5", "be text", "init.path=outputs/my_run"),
    ("init=pretrained init.path=x init.strict=1", "be true or false", "init.strict=false"),
    ("model=vit model.attention_dropout=1", "be less than 1", "model.attention_dropout=0.1"),
    ("model=vit model.heads=0", "be at least 1", "model.heads=4"),
    ("model=vit model.mlp_ratio=0", "be greater than 0", "model.mlp_ratio=2.0"),
    ("model=vit model.patch_size=0", "be at least 1", "model.patch_size=4"),
    ("model=vit model.pooling=max", "be 'class_token' or 'mean'", "model.pooling=mean"),
    ("model=resnet model.blocks=[]", "have 1 or more numbers", "model.blocks=[2,2,2,2]"),
    ("model=resnet model.bottleneck=1", "be true or false", "model.bottleneck=true"),
    ("model=resnet model.stages=0", "be at least 1", "model.stages=4"),
    ("model=resnet model.stem_kernel_size=0", "be at least 1", "model.stem_kernel_size=7"),
    ("model=resnet model.stem_padding=-1", "be at least 0", "model.stem_padding=3"),
    ("model=resnet model.stem_pool=1", "be true or false", "model.stem_pool=true"),
    ("model=resnet model.stem_stride=0", "be at least 1", "model.stem_stride=2"),
    ("model=resnet model.stride=0", "be at least 1", "model.stride=2"),
    ("model=cnn model.padding=-1", "be at least 0", "model.padding=1"),
    ("regularization=[mixup] regularization.mixup.alpha=0", "be greater than 0", "regularization.mixup.alpha=0.2"),
    ("regularization=[ema] regularization.ema.decay=1", "be less than 1", "regularization.ema.decay=0.99"),
    ("regularization=[fgsm] regularization.fgsm.epsilon=-1", "be at least 0", "regularization.fgsm.epsilon=0.1"),
    ("regularization=[pgd] regularization.pgd.fraction=2", "be at most 1", "regularization.pgd.fraction=0.5"),
    (
        "regularization=[elastic_net] regularization.elastic_net.l1_fraction=2",
        "be at most 1",
        "regularization.elastic_net.l1_fraction=0.5",
    ),
    (
        "regularization=[cutmix] regularization.cutmix.probability=2",
        "be at most 1",
        "regularization.cutmix.probability=0.5",
    ),
    (
        "regularization=[dropconnect] regularization.dropconnect.rate=1",
        "be less than 1",
        "regularization.dropconnect.rate=0.1",
    ),
    (
        "regularization=[swa] regularization.swa.start_fraction=1",
        "be less than 1",
        "regularization.swa.start_fraction=0.75",
    ),
    ("regularization=[pgd] regularization.pgd.step_size=0", "be greater than 0", "regularization.pgd.step_size=0.05"),
    ("regularization=[pgd] regularization.pgd.steps=0", "be at least 1", "regularization.pgd.steps=5"),
    ("trainer.accelerator=tpu", "be 'cpu', 'gpu' or 'auto'", "trainer.accelerator=cpu"),
    ("trainer.detect_anomaly=1", "be true or false", "trainer.detect_anomaly=true"),
    ("trainer.enable_progress_bar=1", "be true or false", "trainer.enable_progress_bar=false"),
    ("trainer.limit_test_batches=-1", "be at least 0", "trainer.limit_test_batches=1.0"),
    ("trainer.limit_train_batches=-1", "be at least 0", "trainer.limit_train_batches=1.0"),
    ("trainer.limit_val_batches=2.5", "be a whole number or be at most 1", "trainer.limit_val_batches=1.0"),
    (
        "trainer.precision=8",
        "be '32-true', '64-true', '16-mixed', 'bf16-mixed' or 'bf16-true'",
        "trainer.precision=bf16-mixed",
    ),
    ("model=resnet stochastic_depth=1", "be less than 1", "stochastic_depth=0.1"),
    ("fold=0.5", "be one of 0/k to k-1/k with k at least 2", "fold=0/5"),
    ("fold=0", "be one of 0/k to k-1/k with k at least 2", "fold=0/5"),
    ("fold=[0,5]", "be one of 0/k to k-1/k with k at least 2", "fold=0/5"),
    ("fold=3/3", "be one of 0/k to k-1/k with k at least 2", "fold=0/5"),
    (
        "trainer=ddp trainer.strategy=dp",
        "be 'auto', 'ddp', 'ddp_find_unused_parameters_true' or 'fsdp'",
        "trainer.strategy=ddp",
    ),
    ("trainer.deterministic=1", "be true or false", "trainer.deterministic=true"),
]
WITHOUT_A_RANGE = {"scheduler.monitor", "repeat", "resume"}  # any text
WITHOUT_A_RANGE |= {"parameter_groups.undecayed"}  # tested with the groups, as the rules are
WITHOUT_A_RANGE |= {f"parameter_groups.rules.{key}" for key in ("match", "type", "lr", "weight_decay")}

FILE = ("data.path=x.csv", "data.target=y")
SOURCES = [
    (
        "csv",
        FILE,
        "categorical day_first decimal drop encoding ignore_case max_categories missing not_missing separator "
        "split_column target path val_path test_path",
    ),
    ("blobs", (), "classes examples noise features"),
    ("waves", (), "tokens"),
    ("image_folder", ("data.path=x",), "class_folder color image_size in_memory memory_limit_gb workers"),
]
MODEL_KEYS = {
    "vit": "attention_dropout heads mlp_ratio patch_size pooling",
    "resnet": "blocks bottleneck stages stem_kernel_size stem_padding stem_pool stem_stride stride",
    "cnn": "padding",
}


def mistakes(cfg: DictConfig, *typed_keys: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as refusal:
        validate(cfg, typed_keys)
    return refusal.value.mistakes


@pytest.mark.parametrize(("words", "rule", "remedy"), RANGES, ids=[row[0] for row in RANGES])
def test_a_value_out_of_its_range_is_refused_with_the_rule_and_a_remedy(
    compose: Compose, words: str, rule: str, remedy: str
) -> None:
    key, value = words.split()[-1].split("=")
    assert mistakes(compose(*words.split()))[0] == f"`{key}` must {rule}, got {_spaced(value)}. Try {remedy}."


def test_a_number_of_a_list_out_of_its_range_is_named(compose: Compose) -> None:
    said = mistakes(compose("optimizer.betas=[0.9,1]"))
    assert said == ("`optimizer.betas` must be less than 1, got 1. Try optimizer.betas=[0.9,0.999].",)


@pytest.mark.parametrize("remedy", sorted({row[2] for row in RANGES}))
def test_every_remedy_for_a_range_is_itself_accepted(compose: Compose, remedy: str) -> None:
    group, _, _ = remedy.partition(".")
    part = {
        **{f"data.{key}": [f"data={name}", *where] for name, where, keys in SOURCES for key in keys.split()},
        **{f"model.{key}": [f"model={name}"] for name, keys in MODEL_KEYS.items() for key in keys.split()},
        "init.gain": ["init=xavier_normal"],
        "init.std": ["init=normal"],
        **{f"init.{key}": ["init=pretrained", "init.path=x"] for key in ("path", "strict")},
        "stochastic_depth": ["model=resnet"],
        "trainer.strategy": ["trainer=ddp"],
        "model.kernel_size": ["model=cnn"],
        "optimizer.momentum": ["optimizer=momentum"],
        "scheduler.every_epochs": ["scheduler=step"],
        "callbacks.histograms.every_epochs": ["callbacks=[histograms]"],
        **{
            f"profiler.{key}": ["profiler=pytorch"]
            for key in ("rows", "wait", "warmup", "active", "record_shapes", "profile_memory", "with_stack")
        },
        "scheduler.factor": ["scheduler=step"],
        "scheduler.patience": ["scheduler=plateau"],
        **{f"optimizer.{key}": ["optimizer=adafactor"] for key in ("beta2_decay", "d")},
        **{f"optimizer.{key}": ["optimizer=muon"] for key in ("adamw_lr", "adamw_betas", "ns_steps")},
        **{f"optimizer.{key}": ["optimizer=sam"] for key in ("rho", "base")},
        **{f"optimizer.{key}": ["optimizer=lbfgs"] for key in ("max_iter", "history_size", "line_search_fn")},
        "optimizer.alpha": ["optimizer=rmsprop"],
        "scheduler.milestone_fractions": ["scheduler=multistep"],
        "scheduler.power": ["scheduler=polynomial"],
        "scheduler.cycles": ["scheduler=cyclic"],
        "scheduler.growth": ["scheduler=cosine_restarts"],
        "scheduler.timescale_fraction": ["scheduler=inverse_sqrt"],
        "scheduler.decay_fraction": ["scheduler=warmup_stable_decay"],
        "scheduler.rise_fraction": ["scheduler=one_cycle"],
        "scheduler.first_fraction": ["scheduler=one_cycle"],
        "loss.gamma": ["loss=focal"],
        "loss.margin": ["loss=hinge"],
        "loss.delta": ["data=diabetes", "loss=huber"],
        "clipping.max_norm": ["clipping=norm"],
        "clipping.norm_type": ["clipping=norm"],
        "clipping.clip_value": ["clipping=value"],
        **{f"clipping.{key}": ["clipping=agc"] for key in ("clip_factor", "eps")},
        **{f"clipping.{key}": ["clipping=percentile"] for key in ("percentile", "window_steps")},
        **{f"batch_growth.{key}": ["batch_growth=schedule"] for key in ("after_epochs", "batch_sizes")},
    }
    key = remedy.split("=")[0]
    part |= {key: ["augmentation=light"]} if group == "augmentation" else {}
    part = {key: ["batch_growth=factor"]} | part if group == "batch_growth" else part
    member = [f"regularization=[{key.split('.')[1]}]"] if key.startswith("regularization.") else []
    cfg = compose(*part.get(key, []), *member, remedy)
    validate(cfg, [key])
    said = OmegaConf.select(cfg, key)
    assert show(said) == _spaced(remedy.split("=")[1]) or said == parse([remedy])[0].value()


def _spaced(value: str) -> str:
    return value.replace(",", ", ")


def leaves(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The keys of a schema that hold a value and not a group."""
    for name, field in model.model_fields.items():
        inner = re.findall(r"tunelab\.schema\.(\w+)", str(field.annotation))
        parts = [part for part in inner if part != "Direction"]
        if not parts:
            yield prefix + name
            continue
        part = getattr(schema, parts[0])
        member = "*." if "dict[" in str(field.annotation) else ""
        yield from leaves(part, f"{prefix}{name}.{member}")


def test_every_key_of_the_schema_has_its_range_tested() -> None:
    tested = {row[0].split()[-1].split("=")[0] for row in RANGES}
    tested = {re.sub(r"^(regularization|callbacks)\.\w+\.", r"\1.*.", key) for key in tested}
    assert tested == set(leaves(schema.Recipe)) - WITHOUT_A_RANGE


@pytest.mark.parametrize(
    "words", ["batch_size=full", "threads=null", "threads=1", "seed=4294967295", "lr=1", "dropout=0.999", "test=false"]
)
def test_a_value_at_the_edge_of_its_range_is_accepted(compose: Compose, words: str) -> None:
    key, value = words.split("=")
    cfg = compose(words)
    validate(cfg, [key])
    assert show(cfg[key]) == value


def test_all_mistakes_are_said_at_once_but_at_most_eight_lines_and_how_many_more(compose: Compose) -> None:
    wrong = ["seed=-1", "threads=0", "epochs=0", "batch_size=0", "lr=-1", "weight_decay=-1", "dropout=1"]
    wrong += ["label_smoothing=2", "warmup_steps=-1", "warmup_fraction=1", "size.width=0"]
    with pytest.raises(ConfigError) as refusal:
        validate(compose(*wrong))
    keys = [re.match(r"`([\w.]+)`", mistake)[1] for mistake in refusal.value.mistakes]  # type: ignore[index]
    assert keys == [word.split("=")[0] for word in wrong]
    lines = str(refusal.value).splitlines()
    assert lines == [*refusal.value.mistakes[:MOST_LINES], "and 3 more"]
    assert len(lines) == 8 + 1


def test_eight_mistakes_are_all_shown() -> None:
    assert str(ConfigError(*"abcdefgh")).splitlines() == list("abcdefgh")


def test_ranges_unread_keys_and_targets_are_judged_together(compose: Compose) -> None:
    cfg = compose("lr=-1", "+lrr=2", "model._target_=os.system")
    starts = [mistake.split(" must ")[0] for mistake in mistakes(cfg, "lr", "lrr")]
    assert starts == ["`lr`", "`lrr`", "`model._target_`"]


# ---- rules between keys

CONTRADICTIONS = [
    (
        "warmup_steps=10 warmup_fraction=0.1",
        "`warmup_steps` and `warmup_fraction` must not be given together, got 10 and 0.1. Leave one of them out.",
    ),
    (
        "scheduler=plateau scheduler.monitor=val/acc",
        "`scheduler.monitor` must be a metric that this run logs, got val/acc. "
        "Try scheduler.monitor=val/loss or val/accuracy.",
    ),
    (
        "scheduler=plateau data.val_fraction=0",
        " must have validations to watch val/accuracy in, but there are none. "
        "Try data.val_fraction=0.1 and trainer.limit_val_batches=1.0",
    ),
    (
        "scheduler=plateau trainer.limit_val_batches=0",
        " must have validations to watch val/accuracy in, but there are none. "
        "Try data.val_fraction=0.1 and trainer.limit_val_batches=1.0",
    ),
    (
        "data=diabetes label_smoothing=0.1",
        "`label_smoothing` must be read by a chosen part, got label_smoothing=0.1, but none of them reads it. "
        "Leave it out, or choose loss=cross_entropy.",
    ),
    (
        "data=diabetes regularization=[label_smoothing]",
        "`label_smoothing` must be read by a chosen part, got label_smoothing=0.1, but none of them reads it. "
        "Leave it out, or choose loss=cross_entropy.",
    ),
    (
        "loss=mse",
        "`loss` must fit the task, got loss=mse with classification. "
        "Try loss=cross_entropy or loss=focal or loss=hinge.",
    ),
    (
        "data=diabetes loss=cross_entropy",
        "`loss` must fit the task, got loss=cross_entropy with regression. Try loss=mse or loss=mae or loss=huber.",
    ),
    (
        "task=regression",
        "`loss` must fit the task, got loss=cross_entropy with regression. Try loss=mse or loss=mae or loss=huber.",
    ),
    (
        "objective=val/acc",
        "`objective` must be a metric that this run logs, got val/acc. Try objective=val/loss or val/accuracy.",
    ),
    (
        "data=diabetes objective=val/accuracy",
        "`objective` must be a metric that this run logs, got val/accuracy. "
        "Try objective=val/loss or val/mae or val/rmse or val/r2.",
    ),
    (
        "regularization=[early_stopping] epochs=10",
        "`regularization.early_stopping.patience` must be shorter than the run, got patience=10 with epochs=10. "
        "Try regularization.early_stopping.patience=3.",
    ),
    (
        "scheduler.eta_min=0.001",
        "`scheduler.eta_min` must be less than lr, got eta_min=0.001, lr=0.001. Try scheduler.eta_min=1e-05.",
    ),
    (
        "lr=1e-4 scheduler.eta_min=1e-3",
        "`scheduler.eta_min` must be less than lr, got eta_min=0.001, lr=0.0001. Try scheduler.eta_min=1e-06.",
    ),
    (
        "data.val_fraction=0.5 data.test_fraction=0.5",
        "`data.val_fraction` + `data.test_fraction` must be less than 1, got 0.5 + 0.5. "
        "Try data.val_fraction=0.1 data.test_fraction=0.1.",
    ),
    (
        "model=cnn model.kernel_size=4",
        "`model.kernel_size` must be odd, got 4. Try model.kernel_size=5.",
    ),
    ("repeat=here resume=there", "`repeat` and `resume` must not be given together. Leave one of them out."),
]


@pytest.mark.parametrize(("words", "sentence"), CONTRADICTIONS, ids=[row[0] for row in CONTRADICTIONS])
def test_keys_that_contradict_each_other_are_refused_with_a_remedy(compose: Compose, words: str, sentence: str) -> None:
    keys = [word.split("=")[0] for word in words.split()]
    said = mistakes(compose(*words.split()), *keys)
    assert [sentence in mistake for mistake in said].count(True) == 1, said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("+trainer.gradient_clip_val=1e-6", {"gradient_clip_val": "1e-06. Try clipping=norm clipping.max_norm=1e-06."}),
        ("+trainer.gradient_clip_algorithm=norm", {"gradient_clip_algorithm": "norm. Try clipping=norm."}),
        (
            "+trainer.gradient_clip_val=0.5 +trainer.gradient_clip_algorithm=value",
            {
                "gradient_clip_val": "0.5. Try clipping=value clipping.clip_value=0.5.",
                "gradient_clip_algorithm": "value. Try clipping=value clipping.clip_value=0.5.",
            },
        ),
    ],
)
def test_lightnings_own_clipping_which_would_do_nothing_is_refused(
    compose: Compose, words: str, said: dict[str, str]
) -> None:
    expected = [
        f"`trainer.{key}` must be left out, as `clipping` has its place, got {rest}" for key, rest in said.items()
    ]
    assert list(mistakes(compose(*words.split()))) == expected


@pytest.mark.parametrize(
    "words",
    [
        "+trainer.gradient_clip_val=0.5 ~task.clipping",  # a task of the user's own
        "+trainer.gradient_clip_val=null +trainer.max_steps=60",
        "+trainer.max_time=00:01:00:00 +trainer.val_check_interval=5",
    ],
)
def test_what_lightning_does_of_its_own_is_left_to_it(compose: Compose, words: str) -> None:
    validate(compose(*words.split()))


def test_plateau_patience_longer_than_the_run_is_refused(compose: Compose) -> None:
    said = mistakes(compose("scheduler=plateau", "scheduler.patience=30", "epochs=20"))
    assert re.search(r"`scheduler\.patience` must be shorter than the run, got patience=30 with epochs=20\.", said[0])


def test_early_stopping_without_validations_is_refused(compose: Compose) -> None:
    said = mistakes(compose("regularization=[early_stopping]", "data.val_fraction=0"))
    assert re.search(r"early_stopping.*must have validations.*val_fraction", said[0])


def test_contradictions_too_are_said_together(compose: Compose) -> None:
    said = mistakes(compose("warmup_steps=1", "warmup_fraction=0.1", "scheduler.eta_min=1", "objective=val/x"))
    assert [re.findall(r"`([\w.]+)`", mistake)[0] for mistake in said] == [
        "objective",
        "warmup_steps",
        "scheduler.eta_min",
    ]


def test_a_zero_label_smoothing_with_mse_is_no_contradiction(compose: Compose) -> None:
    cfg = compose("data=diabetes")
    validate(cfg)
    assert (cfg.label_smoothing, cfg.loss._target_) == (0.0, "torch.nn.MSELoss")


def test_a_zero_that_the_user_typed_for_what_nothing_reads_is_refused(compose: Compose) -> None:
    said = mistakes(compose("data=diabetes", "label_smoothing=0.0"), "data", "label_smoothing")
    assert "`label_smoothing` must be read by a chosen part, got label_smoothing=0.0" in said[0]


def test_the_logged_metrics_are_the_loss_and_those_of_the_task(compose: Compose) -> None:
    values = plain(compose("data=diabetes"), resolve=True)
    assert logged_metrics(values) == ["val/loss", "val/mae", "val/rmse", "val/r2"]


def test_an_objective_that_is_never_logged_is_refused_at_the_command_line_with_those_that_are(tmp_path: Path) -> None:
    assert "Try objective=val/loss or val/accuracy." in refused(typed(tmp_path, "objective=val/f1"), 1)


def test_a_warmup_as_long_as_the_run_is_refused_with_both_numbers(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "size=tiny", "epochs=2", "warmup_steps=46"), 1)  # 1437 examples in 64s: 23 steps
    assert "`warmup_steps` must be less than the 46 steps of the run, got 46. Try warmup_steps=2" in text


def test_a_warmup_one_step_shorter_than_the_run_is_accepted(tmp_path: Path) -> None:
    assert typed(tmp_path, "size=tiny", "epochs=2", "warmup_steps=45").code == 0


# ---- with a config folder of the user's own


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder for --config-dir, with a model that has no dropout and an experiment for sgd."""
    conf = tmp_path / "own"
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "dry.yaml").write_text(
        "_target_: tunelab.models.MLP\n_partial_: true\nwidth: ${size.width}\ndepth: 1\nactivation: ${activation}\n"
    )
    (conf / "experiment").mkdir()
    (conf / "experiment" / "slow.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer: sgd\n  - override /size: tiny\nepochs: 1\nlr: 0.003\n"
    )
    return conf


@pytest.mark.parametrize("words", [("dropout=0.1",), ("regularization=[dropout]",), ("regularization=[l1,dropout]",)])
def test_dropout_with_a_model_that_does_not_read_it_is_refused(
    tmp_path: Path, own: Path, words: tuple[str, ...]
) -> None:
    text = refused(typed(tmp_path, "--config-dir", str(own), "model=dry", *words), 1)
    value = "0.1" if words == ("dropout=0.1",) else "0.2"
    assert f"`dropout` must be read by a chosen part, got dropout={value}, but none of them reads it." in text
    assert "Leave it out, or choose model=mlp." in text


def test_a_model_that_does_not_read_dropout_runs_without_it(tmp_path: Path, own: Path) -> None:
    outcome = typed(tmp_path, "--config-dir", str(own), "model=dry", "size=tiny", "epochs=1")
    assert outcome.code == 0, outcome.err
    assert "digits · dry tiny" in outcome.text


def test_the_lr_of_an_experiment_is_refused_for_another_optimizer(tmp_path: Path, own: Path) -> None:
    text = refused(typed(tmp_path, "--config-dir", str(own), "experiment=slow", "optimizer=adam"), 1)
    assert (
        "`lr` must be given when an experiment's optimizer is changed, got lr=0.003, which slow has for sgd. "
        "Try lr=0.001, the own lr of adam." in text
    )


@pytest.mark.parametrize(
    ("words", "lr"),
    [
        (("optimizer=adam", "lr=0.002"), "adam lr 0.002"),
        (("optimizer=sgd",), "sgd lr 0.003"),
        ((), "sgd lr 0.003"),
    ],
)
def test_the_lr_of_an_experiment_is_kept_for_its_own_optimizer_and_may_be_given(
    tmp_path: Path, own: Path, words: tuple[str, ...], lr: str
) -> None:
    outcome = typed(tmp_path, "--config-dir", str(own), "experiment=slow", *words)
    assert outcome.code == 0, outcome.err
    assert f" · {lr} · " in outcome.text


def test_a_multirun_over_optimizers_does_not_slip_an_experiments_lr_past(tmp_path: Path, own: Path) -> None:
    text = refused(typed(tmp_path, "-m", "--config-dir", str(own), "experiment=slow", "optimizer=sgd,adam"), 1)
    assert "`lr` must be given when an experiment's optimizer is changed, got lr=0.003, which slow has for sgd." in text


def test_a_config_dir_that_is_none_is_refused(tmp_path: Path) -> None:
    text = refused(typed(tmp_path, "--config-dir", "nowhere", "lr=0.1"), 2)
    assert "`--config-dir` must be a folder, got nowhere" in text


def test_the_nearest_words_are_named_and_strangers_are_not() -> None:
    assert did_you_mean("adan", ["adam", "adamw", "sgd"]) == " Did you mean adam or adamw?"
    assert did_you_mean("xyz", ["adam", "adamw", "sgd"]) == ""


def test_values_are_shown_as_they_are_typed() -> None:
    values: list[Any] = [None, True, 0.5, "full"]
    assert [show(value) for value in values] == ["null", "true", "0.5", "full"]
