"""What is measured of a step equals autograd or a loop over the same step, however the step is made."""

import csv
import math
import resource
from types import SimpleNamespace

import pytest
import torch
from conftest import options
from lightning import Callback
from lightning.pytorch.profilers import PassThroughProfiler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn import functional as F

from tunelab.callbacks import Clock, DeadUnits, Gradients, Throughput, Updates
from tunelab.callbacks.layers import layers, norms
from tunelab.fitting import build
from tunelab.prepare import complete

DATA = ("data=breast_cancer", "batch_size=32", "size.width=32", "size.depth=2", "logger=[csv]")  # 455 training examples
STEPS = 15  # an epoch
EVERY = ("epochs=1", "trainer.log_every_n_steps=1")


def _rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def _column(folder, metric):
    """Value by step."""
    return {int(row["step"]): float(row[metric]) for row in _rows(folder) if row.get(metric)}


def _columns(folder, prefix):
    """The columns whose name begins with it, without it."""
    names = {name for row in _rows(folder) for name in row if name.startswith(prefix)}
    return {name.removeprefix(prefix): _column(folder, name) for name in names}


def _norm(tensors):
    return math.sqrt(sum(value * value for tensor in tensors for value in tensor.double().flatten().tolist()))


class _Frozen(Callback):
    """Its layer does not learn."""

    def __init__(self, layer="hidden1"):
        self.layer = layer

    def on_fit_start(self, trainer, module):
        getattr(module.model, self.layer).requires_grad_(False)


# ---- layers


def test_a_layer_owns_a_matrix_a_kernel_or_a_table():
    model = nn.ModuleDict(
        {
            "linear": nn.Linear(2, 3),
            "convolution": nn.Conv1d(2, 3, 1),
            "embedding": nn.Embedding(4, 2),
            "attention": nn.MultiheadAttention(4, 2),
            "lstm": nn.LSTM(2, 3),
            "norm": nn.BatchNorm1d(3),
            "prelu": nn.PReLU(3),
            "relu": nn.ReLU(),
        }
    )
    model.positions = nn.Parameter(torch.zeros(1, 5, 4))  # of a container, and no weight
    found = layers(model)
    assert list(found) == ["linear", "convolution", "embedding", "attention", "attention.out_proj", "lstm"]
    assert [p.shape for p in found["linear"]] == [(3, 2), (3,)]
    assert [p.shape for p in found["attention"]] == [(12, 4), (12,)]
    assert list(layers(nn.Linear(2, 3))) == ["model"]


@pytest.mark.parametrize("model", options("model"))
def test_the_layers_of_a_model_are_its_linear_maps_convolutions_and_embeddings(model, compose):
    overrides = ["data=breast_cancer"] if model == "transformer" else []
    cfg = complete(compose(f"model={model}", "size=tiny", *overrides))
    shape = (30,) if model == "transformer" else (1, 8, 8)
    built = build(cfg.model)(input_shape=shape, output_size=2)
    kinds = (nn.Linear, nn.Conv2d, nn.Embedding)
    assert list(layers(built)) == [name for name, module in built.named_modules() if isinstance(module, kinds)]


def test_resnet18_has_a_curve_for_each_of_its_21_layers(compose):
    built = build(complete(compose("model=resnet18")).model)(input_shape=(3, 8, 8), output_size=10)
    assert len(layers(built)) == 21  # 18, and the convolutions of 3 shortcuts
    assert len(list(built.named_parameters())) == 62


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norms_are_taken_at_float32_or_better(dtype):
    tensors = [torch.randn(7, 3).to(dtype), torch.randn(5).to(dtype), torch.zeros(2).to(dtype)]
    expected = [_norm([tensor]) for tensor in tensors]
    assert norms(tensors).tolist() == pytest.approx(expected, rel=1e-6)
    assert norms(tensors).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


# ---- gradients


class _Norms(Callback):
    """The gradient of each layer and of all by autograd, on the same batch at the same weights."""

    def __init__(self):
        self.layers, self.totals = [], []

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        named = {name: p for name, p in module.model.named_parameters() if p.requires_grad}
        with trainer.precision_plugin.forward_context():
            loss = nn.functional.cross_entropy(module.model(batch[0]), batch[1])
            loss = loss + sum(regularizer.penalty(module.model) for regularizer in module._penalizing)
        gradients = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        owners = {name.rpartition(".")[0] for name, parameter in named.items() if parameter.ndim > 1}
        own = {layer: [g for name, g in gradients.items() if name.rpartition(".")[0] == layer] for layer in owners}
        self.layers.append({layer: _norm(found) for layer, found in own.items()})
        self.totals.append(_norm(gradients.values()))


WAYS = {
    "plain": [],
    "clipped by norm": ["clipping=norm", "clipping.max_norm=0.01"],
    "clipped by value": ["clipping=value", "clipping.clip_value=0.0001"],
    "penalised": ["regularization=[l2]", "regularization.l2.strength=0.1"],
    "more kinds of layers": ["activation=prelu", "model.normalization=layer"],
    "mixed precision": ["trainer.precision=bf16-mixed"],
    "double precision": ["trainer.precision=64-true"],
    "averaged": ["regularization=[ema]"],
    "sam, which asks twice": ["optimizer=sam", "optimizer.rho=0.5"],
    "lbfgs, which asks often": ["optimizer=lbfgs"],
}


@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS)
def test_gradient_norms_are_those_of_autograd_before_clipping(overrides, fit_with):
    seen = _Norms()
    fitted = fit_with([seen], *DATA, *EVERY, "callbacks=[gradients]", *overrides)
    totals = _column(fitted.folder, "gradients/norm")
    assert list(totals) == list(range(1, STEPS + 1))
    assert list(totals.values()) == pytest.approx(seen.totals, rel=1e-4)
    found = _columns(fitted.folder, "layers/gradient_norm/")
    assert found.keys() == seen.layers[0].keys() == {"hidden1", "hidden2", "head"}
    for layer, values in found.items():
        assert list(values.values()) == pytest.approx([norm[layer] for norm in seen.layers], rel=1e-4)


def test_a_frozen_layer_has_no_gradient_norm_and_the_others_theirs(fit_with):
    seen = _Norms()
    fitted = fit_with([_Frozen(), seen], *DATA, *EVERY, "callbacks=[gradients]")
    assert list(_column(fitted.folder, "gradients/norm").values()) == pytest.approx(seen.totals, rel=1e-4)
    found = _columns(fitted.folder, "layers/gradient_norm/")
    assert found.keys() == {"hidden2", "head"}
    assert list(found["head"].values()) == pytest.approx([norm["head"] for norm in seen.layers], rel=1e-4)


def test_gradient_norms_of_accumulated_gradients_are_those_of_the_step(fit_with):
    # the mean over the examples of a step, not the last batch alone
    class Accumulated(Callback):
        def __init__(self):
            self.gradients, self.norms, self.examples = [], [], 0

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            loss = nn.functional.cross_entropy(module.model(batch[0]), batch[1])
            gradients = torch.autograd.grad(loss, list(module.model.parameters()))
            self.gradients.append([len(batch[1]) * gradient for gradient in gradients])
            self.examples += len(batch[1])

        def on_before_optimizer_step(self, trainer, module, optimizer):
            of_step = zip(*self.gradients, strict=True)
            self.norms.append(_norm([sum(batches) / self.examples for batches in of_step]))
            self.gradients, self.examples = [], 0

    seen = Accumulated()
    fitted = fit_with([seen], *DATA, *EVERY, "trainer.accumulate_grad_batches=4", "callbacks=[gradients]")
    found = _column(fitted.folder, "gradients/norm")
    assert found == pytest.approx(dict(enumerate(seen.norms, start=1)), rel=1e-4)
    assert len(found) == 4  # 4 + 4 + 4 + 3 batches


def test_a_weight_that_two_layers_share_counts_once_in_the_total():
    task = SimpleNamespace(model=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    task.model[1].weight = task.model[0].weight
    task.model(torch.ones(2, 3)).sum().backward()
    written = {}
    logger = SimpleNamespace(log_metrics=lambda metrics, step: written.update(metrics))
    trainer = _trainer(loggers=[logger])
    callback = Gradients()
    callback.on_fit_start(trainer, task)
    callback.on_before_optimizer_step(trainer, task, None)
    callback.on_train_batch_end(trainer, task, None, None, 0)
    shared, first, second = (p.grad for p in (task.model[0].weight, task.model[0].bias, task.model[1].bias))
    assert written["gradients/norm"] == pytest.approx(_norm([shared, first, second]), rel=1e-6)
    assert written["layers/gradient_norm/0"] == pytest.approx(_norm([shared, first]), rel=1e-6)
    assert written["layers/gradient_norm/1"] == pytest.approx(_norm([shared, second]), rel=1e-6)


def _trainer(**more):
    values = {"log_every_n_steps": 1, "is_last_batch": True, "global_step": 1, "current_epoch": 0, "world_size": 1}
    more = {"is_global_zero": True, "loggers": [], "profiler": PassThroughProfiler()} | more
    return SimpleNamespace(**values | more)


@pytest.mark.parametrize("interval", [1, 4, 50])
def test_the_clipped_share_is_that_of_the_steps_since_the_last_write(interval, fit_with):
    seen, limit = _Norms(), 0.45
    overrides = ("clipping=norm", f"clipping.max_norm={limit}", f"trainer.log_every_n_steps={interval}", "epochs=2")
    fitted = fit_with([seen], *DATA, *overrides, "callbacks=[gradients]")
    due = [step for step in range(1, 2 * STEPS + 1) if step % interval == 0 or step % STEPS == 0]
    expected = {}
    for before, step in zip([0, *due], due, strict=False):
        over = [norm > limit for norm in seen.totals[before:step]]
        expected[step] = sum(over) / len(over)
    assert _column(fitted.folder, "gradients/clipped_share") == pytest.approx(expected, rel=1e-6)
    assert 0 < sum(norm > limit for norm in seen.totals) < 2 * STEPS  # else every share would be the same


def test_without_a_clipping_there_is_no_clipped_share(fit_with):
    fitted = fit_with([], *DATA, *EVERY, "callbacks=[gradients]")
    assert set(_rows(fitted.folder)[0]) == {
        *("step", "epoch", "gradients/norm", "train/loss", "val/loss", "val/accuracy", "best/val/accuracy"),
        *(f"layers/gradient_norm/{layer}" for layer in ("hidden1", "hidden2", "head")),
    }


@pytest.mark.parametrize("metric", ["gradients/norm", "layers/update_ratio/head", "layers/dead_share/activation1"])
@pytest.mark.parametrize("interval", [4, 50])
def test_a_monitor_writes_once_per_interval_and_at_each_epochs_end(metric, interval, fit):
    _, folder = fit(*DATA, "epochs=3", f"trainer.log_every_n_steps={interval}")
    due = [step for step in range(1, 3 * STEPS + 1) if step % interval == 0 or step % STEPS == 0]
    assert list(_column(folder, metric)) == due


# ---- updates


class _Weights(Callback):
    """The weights that train, before the first step and after each."""

    def __init__(self):
        self.after = {}

    def on_train_start(self, trainer, module):
        self._take(0, module)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        self._take(trainer.global_step, module)

    def _take(self, step, module):
        self.after[step] = {name: p.detach().clone() for name, p in module.model.named_parameters()}

    def ratio(self, step, layer):
        before, after = (self.after[s][f"{layer}.weight"].double() for s in (step - 1, step))
        return _norm([after - before]) / _norm([before])


STEPPING = {
    "adamw": ["optimizer=adamw"],
    "momentum, clipped": ["optimizer=momentum", "clipping=norm"],
    "muon": ["optimizer=muon"],
    "sam": ["optimizer=sam", "optimizer.rho=0.5"],
    "lbfgs": ["optimizer=lbfgs"],
    "schedule-free": ["optimizer=schedule_free", "scheduler=constant"],
    "ema": ["regularization=[ema]"],
    "swa": ["regularization=[swa]", "regularization.swa.start_fraction=0"],
    "accumulated": ["trainer.accumulate_grad_batches=4"],
    "mixed precision": ["trainer.precision=bf16-mixed"],
}


@pytest.mark.parametrize("overrides", STEPPING.values(), ids=STEPPING)
def test_the_update_ratio_is_that_of_the_weights_before_and_after_the_step(overrides, fit_with):
    weights = _Weights()
    # the averages stand in the model between the epochs
    fitted = fit_with([weights], *DATA, "epochs=3", "trainer.log_every_n_steps=1", "callbacks=[updates]", *overrides)
    found = _columns(fitted.folder, "layers/update_ratio/")
    assert found.keys() == {"hidden1", "hidden2", "head"}
    for layer, ratios in found.items():
        assert list(ratios) == list(range(1, fitted.trainer.global_step + 1))
        assert ratios == pytest.approx({step: weights.ratio(step, layer) for step in ratios}, rel=1e-3, abs=1e-9)


def test_a_frozen_layer_has_no_update_ratio(fit_with):
    fitted = fit_with([_Frozen()], *DATA, *EVERY, "callbacks=[updates]")
    assert _columns(fitted.folder, "layers/update_ratio/").keys() == {"hidden2", "head"}


def test_weights_of_zero_have_no_update_ratio(fit_with):
    fitted = fit_with([], *DATA, *EVERY, "callbacks=[updates]", "init=zeros", "optimizer=sgd", "lr=0.1")
    assert _columns(fitted.folder, "layers/update_ratio/") == {}  # and no gradient but the head's bias


def test_weights_are_copied_only_for_the_step_that_is_written(fit_with):
    class Copies(Callback):
        def __init__(self, updates):
            self.updates, self.held = updates, []

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.held.append(len(self.updates._before))

    updates = Updates()
    copies = Copies(updates)
    fit_with([updates, copies], *DATA, "epochs=1", "trainer.log_every_n_steps=7", "callbacks=[]")
    assert [step for step, held in enumerate(copies.held, start=1) if held] == [7, 14, 15]
    assert updates._before == ()


# ---- dead units


class _Dead(Callback):
    """Kills some units of the first layer, and finds them again by hand in the same batches."""

    def __init__(self, kind, bias, count, steps=(), first="hidden1"):
        self.function, self.bias, self.count, self.first = kind, bias, count, first
        self.shares = []

    def on_train_start(self, trainer, module):
        with torch.no_grad():
            getattr(module.model, self.first).bias[: self.count] = self.bias

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        layer = getattr(module.model, self.first)
        with torch.no_grad():
            if isinstance(layer, nn.Conv2d):
                outputs = F.conv2d(batch[0], layer.weight, layer.bias, layer.stride, layer.padding).movedim(1, -1)
            else:
                outputs = F.linear(batch[0].flatten(1), layer.weight, layer.bias)
        units = self.function(outputs).flatten(0, -2).T.tolist()
        self.shares.append(sum(max(unit) - min(unit) <= 1e-6 for unit in units) / len(units))


KILLING = {
    "relu": (torch.relu, -1e3, []),
    "sigmoid": (torch.sigmoid, 1e3, []),
    "tanh": (torch.tanh, -1e3, []),
    "elu": (F.elu, -1e3, []),
    "leaky_relu": (F.leaky_relu, -1e3, []),  # which has none
}


@pytest.mark.parametrize("activation", KILLING)
@pytest.mark.parametrize("more", [[], ["regularization=[ema]"], ["optimizer=sam"]], ids=["plain", "ema", "sam"])
def test_the_dead_share_is_that_of_the_units_with_one_answer_for_all_examples(activation, more, fit_with):
    function, bias, extra = KILLING[activation]
    seen = _Dead(function, bias, count=5)
    fitted = fit_with([seen], *DATA, *EVERY, "callbacks=[dead_units]", f"activation={activation}", *extra, *more)
    found = _columns(fitted.folder, "layers/dead_share/")
    assert found.keys() == {"activation1", "activation2"}
    assert list(found["activation1"].values()) == pytest.approx(seen.shares, abs=1e-6)
    assert seen.shares[0] >= (0 if activation == "leaky_relu" else 5 / 32)


def test_a_channel_is_dead_if_it_has_one_answer_at_all_places(fit_with):
    seen = _Dead(torch.relu, -1e3, count=2, first="conv0")
    overrides = (
        "data=digits",
        "size.width=32",
        "size.depth=2",
        "model=cnn",
        "model.normalization=none",
        "trainer.limit_train_batches=3",
    )
    fitted = fit_with([seen], *overrides, "logger=[csv]", *EVERY, "callbacks=[dead_units]")
    found = _columns(fitted.folder, "layers/dead_share/")
    assert list(found["activation0"].values()) == pytest.approx(seen.shares, abs=1e-6)
    assert found.keys() == {name for name, m in fitted.task.model.named_modules() if isinstance(m, nn.ReLU)}
    assert seen.shares[0] > 0


def test_the_units_of_tokens_are_their_features(fit_with):
    overrides = ("model=transformer", "activation=relu", "trainer.limit_train_batches=2")

    class Units(Callback):
        def on_fit_start(self, trainer, module):
            self.module = module.model.encoder.blocks[0].mlp
            with torch.no_grad():
                self.module[0].bias[:3] = -1e3

    units = Units()
    fitted = fit_with([units], *DATA, *EVERY, *overrides, "callbacks=[dead_units]")
    found = _columns(fitted.folder, "layers/dead_share/")["encoder.blocks.0.mlp.1"]
    assert list(found.values()) == pytest.approx([3 / units.module[0].out_features] * 2)


def test_of_accumulated_batches_the_last_is_looked_at(fit_with):
    seen = _Dead(torch.relu, -1e3, count=5)
    overrides = (*EVERY, "trainer.accumulate_grad_batches=4", "callbacks=[dead_units]", "lr=0.1")
    fitted = fit_with([seen], *DATA, *overrides)
    found = _column(fitted.folder, "layers/dead_share/activation1")
    assert list(found.values()) == pytest.approx([seen.shares[batch] for batch in (3, 7, 11, 14)], abs=1e-6)


@pytest.mark.parametrize(
    "overrides",
    [["batch_size=1", "trainer.limit_train_batches=3"], ["activation=softmax"]],
    ids=["a single example", "softmax"],
)
def test_where_no_unit_can_be_told_dead_nothing_is_written(overrides, fit_with):
    fitted = fit_with([], *DATA, *EVERY, "callbacks=[dead_units]", *overrides)
    assert _columns(fitted.folder, "layers/dead_share/") == {}


def test_an_attack_that_passes_its_own_batches_is_not_looked_at(fit_with):
    counts = {}

    class Passes(Callback):
        def on_train_batch_end(self, trainer, module, *_):
            counts.setdefault("uses", []).append([len(uses) for uses in dead._extremes.values()])

    dead = DeadUnits()
    # before it in the list, so that it sees what is not yet read
    fit_with([Passes(), dead], *DATA, *EVERY, "callbacks=[]", "regularization=[fgsm]")
    assert counts["uses"] == [[1, 1]] * STEPS


def test_hooks_are_there_only_for_the_batch_that_is_measured(fit_with):
    class Hooks(Callback):
        def __init__(self):
            self.before, self.after = [], []

        def count(self, module):
            return sum(len(m._forward_hooks) for m in module.model.modules())

        def on_train_batch_start(self, trainer, module, *_):
            self.before.append(self.count(module))

        def on_before_backward(self, trainer, module, loss):
            self.after.append(self.count(module))

    hooks = Hooks()
    fit_with([hooks], *DATA, "epochs=1", "trainer.log_every_n_steps=7", "callbacks=[dead_units]")
    assert [(step, count) for step, count in enumerate(hooks.before, start=1) if count] == [(7, 3), (14, 3), (15, 3)]
    assert hooks.after == [0] * STEPS


def test_a_compiled_model_is_not_looked_into():
    model, dead = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), DeadUnits()
    for compiled, hooks in ((True, 0), (False, 1)):
        task = SimpleNamespace(model=model, compiled=compiled)
        trainer = _trainer(accumulate_grad_batches=1)
        dead.on_fit_start(trainer, task)
        dead.on_train_batch_start(trainer, task, (torch.zeros(4, 3),), 0)
        assert len(model[1]._forward_hooks) == hooks


# ---- histograms


def _histograms(folder):
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0})
    events.Reload()
    return {
        tag: {event.step: event.histogram_value for event in events.Histograms(tag)}
        for tag in events.Tags()["histograms"]
    }


class _LastStep(Callback):
    """Weights after each epoch's last step and gradients before its clipping."""

    def __init__(self):
        self.weights, self.gradients = {}, {}

    def on_before_optimizer_step(self, trainer, module, optimizer):
        for name, p in module.model.named_parameters():
            if p.grad is not None:
                self.gradients[trainer.global_step + 1, name] = p.grad.clone()

    def on_train_batch_end(self, trainer, module, *_):
        for name, p in module.model.named_parameters():
            self.weights[trainer.global_step, name] = p.detach().clone()


def test_histograms_are_of_the_weights_and_unclipped_gradients_of_every_few_epochs(fit_with):
    seen = _LastStep()
    overrides = ("epochs=5", "callbacks=[histograms]", "callbacks.histograms.every_epochs=2", "logger=[tensorboard]")
    more = ("clipping=norm", "clipping.max_norm=1e-3", "model.normalization=batch", "regularization=[ema]")
    fitted = fit_with([seen, _Frozen("hidden2")], *DATA, *overrides, *more)
    found = _histograms(fitted.folder)
    names = {f"{layer}.{kind}" for layer in ("hidden1", "hidden2", "head") for kind in ("weight", "bias")}
    learning = {name for name in names if not name.startswith("hidden2")}
    assert found.keys() == {f"weights/{name}" for name in names} | {f"weight_gradients/{name}" for name in learning}
    for tag, drawn in found.items():
        kind, name = tag.split("/")
        assert list(drawn) == [2 * STEPS, 4 * STEPS]
        for step, histogram in drawn.items():
            values = (seen.weights if kind == "weights" else seen.gradients)[step, name].double()
            assert histogram.num == values.numel()
            assert (histogram.min, histogram.max) == pytest.approx((values.min().item(), values.max().item()))
            assert histogram.sum == pytest.approx(values.sum().item(), rel=1e-5, abs=1e-7)
            assert histogram.sum_squares == pytest.approx((values**2).sum().item(), rel=1e-5)


def test_histograms_leave_other_loggers_alone(fit_with):
    fitted = fit_with([], *DATA, "epochs=1", "callbacks=[histograms]")
    assert {name.split("/")[0] for name in _rows(fitted.folder)[0]} == {"step", "epoch", "train", "val", "best"}


# ---- throughput


def test_throughput_is_the_examples_of_an_epoch_by_the_time_of_its_steps(monkeypatch):
    now, written = 50.0, []
    monkeypatch.setattr("time.perf_counter", lambda: now)
    logger = SimpleNamespace(log_metrics=lambda metrics, step: written.append((step, metrics)))
    trainer, task = _trainer(world_size=2, loggers=[logger]), SimpleNamespace(device=torch.device("cpu"))
    callback, clock = Throughput(), Clock()
    clock.on_train_start(trainer, None)
    callback.on_train_start(trainer, task)
    for epoch in range(2):
        callback.on_train_epoch_start(trainer, task)
        for _ in range(3):
            now += 0.25 * (epoch + 1)
            trainer.global_step += 1
            for each in (callback, clock):
                each.on_train_batch_end(trainer, task, None, (torch.zeros(10, 1),), 0)
        now += 100.0  # a validation
        callback.on_train_epoch_end(trainer, task)
    clock.on_train_end(trainer, None)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert [(step, metrics["throughput/samples_per_second"]) for step, metrics in written] == [(4, 80.0), (7, 40.0)]
    assert written[-1][1]["throughput/memory_mb"] == pytest.approx(memory, rel=0.01)
    assert (clock.samples, clock.seconds) == (120, 202.25)


def test_throughput_is_in_tensorboard_and_not_among_the_metrics_that_a_repeat_must_equal(fit):
    _, folder = fit("data=breast_cancer", "size=tiny", "epochs=2")
    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    for metric in ("throughput/samples_per_second", "throughput/memory_mb"):
        assert len(events.Scalars(metric)) == 2
        assert metric not in _rows(folder)[0]
    _, without = fit("data=breast_cancer", "size=tiny", "epochs=2", "callbacks=[checkpoint]")
    events = EventAccumulator(str(without / "tensorboard"))
    events.Reload()
    assert "throughput/memory_mb" not in events.Tags()["scalars"]
