"""Every optimizer file, step by step, beside its paper's rule written in numpy with the paper's own constants."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from conftest import options
from numpy.typing import NDArray
from omegaconf import OmegaConf
from scipy.optimize import minimize
from torch import nn

from tunelab.fitting import build

Array = NDArray[np.float64]
Rule = Callable[..., Array]
"""rule(weights, gradient, memory, step, lr, decay) -> the weights after a step, counted from 1."""

STEPS = 40
DECAY = 0.1


# ---- the rules, in float64, each with the constants of its paper or of its authors' own code


def _momentum(w, g, m, t, lr, decay, mu=0.9, nesterov=False):
    g = g + decay * w
    m["v"] = mu * m["v"] + g if t > 1 else g  # as torch and Sutskever et al. 2013, with the lr outside
    return w - lr * (g + mu * m["v"] if nesterov else m["v"])


def _sgd(w, g, m, t, lr, decay):
    return w - lr * (g + decay * w)


def _nesterov(w, g, m, t, lr, decay):
    return _momentum(w, g, m, t, lr, decay, nesterov=True)


def _adagrad(w, g, m, t, lr, decay):  # Duchi et al. 2011
    g = g + decay * w
    m["s"] = m["s"] + g**2
    return w - lr * g / (np.sqrt(m["s"]) + 1e-10)


def _rmsprop(w, g, m, t, lr, decay):  # Tieleman and Hinton 2012; torch's smoothing of 0.99
    g = g + decay * w
    m["v"] = 0.99 * m["v"] + 0.01 * g**2
    return w - lr * g / (np.sqrt(m["v"]) + 1e-8)


def _adadelta(w, g, m, t, lr, decay):  # Zeiler 2012, algorithm 1
    g = g + decay * w
    m["v"] = 0.9 * m["v"] + 0.1 * g**2
    step = np.sqrt(m["d"] + 1e-6) / np.sqrt(m["v"] + 1e-6) * g
    m["d"] = 0.9 * m["d"] + 0.1 * step**2
    return w - lr * step


def _moments(g, m, t, beta1=0.9, beta2=0.999):
    m["m"], m["v"] = beta1 * m["m"] + (1 - beta1) * g, beta2 * m["v"] + (1 - beta2) * g**2
    return m["m"] / (1 - beta1**t), m["v"] / (1 - beta2**t)


def _adam(w, g, m, t, lr, decay):  # Kingma and Ba 2015, algorithm 1
    mean, square = _moments(g + decay * w, m, t)
    return w - lr * mean / (np.sqrt(square) + 1e-8)


def _adamw(w, g, m, t, lr, decay, beta1=0.9, beta2=0.999, eps=1e-8):  # Loshchilov and Hutter 2019, algorithm 2
    mean, square = _moments(g, m, t, beta1, beta2)
    return w - lr * (mean / (np.sqrt(square) + eps) + decay * w)


def _adamax(w, g, m, t, lr, decay):  # Kingma and Ba 2015, algorithm 2
    g = g + decay * w
    m["m"] = 0.9 * m["m"] + 0.1 * g
    m["u"] = np.maximum(0.999 * m["u"], np.abs(g) + 1e-8)
    return w - lr / (1 - 0.9**t) * m["m"] / m["u"]


def _nadam(w, g, m, t, lr, decay):  # Dozat 2016, algorithm 2, with its schedule of the momentum
    g = g + decay * w
    mu, following = (0.9 * (1 - 0.5 * 0.96 ** (step * 0.004)) for step in (t, t + 1))
    product = m["product"] = mu * (m["product"] if t > 1 else 1.0)
    m["m"], m["v"] = 0.9 * m["m"] + 0.1 * g, 0.999 * m["v"] + 0.001 * g**2
    mean = following * m["m"] / (1 - product * following) + (1 - mu) * g / (1 - product)
    return w - lr * mean / (np.sqrt(m["v"] / (1 - 0.999**t)) + 1e-8)


def _radam(w, g, m, t, lr, decay):  # Liu et al. 2020, algorithm 2; rectified above 5, as its authors' code has it
    mean, square = _moments(g + decay * w, m, t)
    longest = 2 / (1 - 0.999) - 1
    length = longest - 2 * t * 0.999**t / (1 - 0.999**t)
    if length <= 5:
        return w - lr * mean
    rectified = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    # eps stands beside the root before its bias is taken out
    return w - lr * mean * np.sqrt(rectified) / (np.sqrt(square) + 1e-8 / np.sqrt(1 - 0.999**t))


def _lamb(w, g, m, t, lr, decay):  # You et al. 2020, algorithm 2, as pytorch-lamb: without debiasing, norms up to 10
    _moments(g, m, t)
    step = m["m"] / (np.sqrt(m["v"]) + 1e-6) + decay * w
    norm, length = min(10.0, np.linalg.norm(w)), np.linalg.norm(step)
    return w - lr * (norm / length if norm and length else 1.0) * step


def _lion(w, g, m, t, lr, decay):  # Chen et al. 2023, algorithm 2
    step = np.sign(0.9 * m["m"] + 0.1 * g)
    m["m"] = 0.99 * m["m"] + 0.01 * g
    return w - lr * (step + decay * w)


def _adafactor(w, g, m, t, lr, decay):  # Shazeer and Stern 2018, algorithms 4 and 5; eps as torch has it
    eps, share = np.finfo(np.float64).eps, t**-0.8
    if w.ndim > 1:
        m["row"] = (1 - share) * m["row"] + share * (g**2).mean(-1, keepdims=True)
        m["column"] = (1 - share) * m["column"] + share * (g**2).mean(-2, keepdims=True)
        square = m["row"] * m["column"] / np.maximum(m["row"].mean(-2, keepdims=True), eps)
    else:
        square = m["v"] = (1 - share) * m["v"] + share * g**2
    step = g / np.maximum(np.sqrt(square), eps)
    step = step / max(1.0, np.sqrt((step**2).mean()))
    rate = min(lr, 1 / np.sqrt(t)) * max(1e-3, np.sqrt((w**2).mean()))
    return w - rate * step - lr * decay * w


def _schedule_free(w, g, m, t, lr, decay, scale=None):  # Defazio et al. 2024, algorithm 1
    if t == 1:
        m["z"], m["x"], m["sum"], m["max"] = w, w, 0.0, 0.0
    m["v"] = 0.999 * m["v"] + 0.001 * g**2
    step = (g / (np.sqrt(m["v"] / (1 - 0.999**t)) + 1e-8) if scale is None else g) + decay * w
    m["max"] = max(m["max"], lr)  # as in their code, a warm-up's small steps weigh little in the average
    m["sum"] += m["max"] ** 2
    m["z"] = m["z"] - lr * step
    m["x"] = m["x"] + m["max"] ** 2 / m["sum"] * (m["z"] - m["x"])
    return 0.1 * m["z"] + 0.9 * m["x"]


def _schedule_free_sgd(w, g, m, t, lr, decay):
    return _schedule_free(w, g, m, t, lr, decay, scale=1.0)


def _muon(w, g, m, t, lr, decay):  # Jordan et al. 2024, with their five coefficients; AdamW for what is no matrix
    if w.ndim < 2:
        return _adamw(w, g, m, t, lr / 20, decay, 0.9, 0.95, 1e-10)  # adamw_lr is a twentieth in the file
    m["m"] = 0.95 * m["m"] + 0.05 * g
    step = (0.05 * g + 0.95 * m["m"]).reshape(len(w), -1)
    tall = len(step) > step.shape[1]
    x = step.T if tall else step
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    x = x.T if tall else x
    return (1 - lr * decay) * w - lr * np.sqrt(max(1, len(x) / x.shape[1])) * x.reshape(w.shape)


RULES: dict[str, Rule] = {
    "adadelta": _adadelta,
    "adafactor": _adafactor,
    "adagrad": _adagrad,
    "adam": _adam,
    "adamax": _adamax,
    "adamw": _adamw,
    "lamb": _lamb,
    "lion": _lion,
    "momentum": _momentum,
    "muon": _muon,
    "nadam": _nadam,
    "nesterov": _nesterov,
    "radam": _radam,
    "rmsprop": _rmsprop,
    "schedule_free": _schedule_free,
    "schedule_free_sgd": _schedule_free_sgd,
    "sgd": _sgd,
}
ASKING_AGAIN = {"lbfgs", "sam"}
"""Those whose step asks for more than one gradient: each has tests of its own below."""

TOLERANCE = {
    "lamb": 1e-6,  # adds eps to the length of the step, too
    "nadam": 1e-6,  # keeps the product of its momenta in float32
    "schedule_free": 1e-6,  # adds 1e-15 under the root, too
    "muon": 0.1,  # finds the orthogonal matrix in bfloat16, where gradients of four decades leave one digit
}
"""Of the way from the start, relative; 1e-10 for the others."""


def test_every_optimizer_file_has_a_reference_here():
    assert sorted({*RULES, *ASKING_AGAIN}) == options("optimizer")


# ---- step by step

SHAPES = ((4, 3), (3,), (2, 3, 2, 2))


def _gradients(shape: tuple[int, ...], seed: int) -> Array:
    """One for each step, of sizes over four decades; the second is zero, the third the same as the first."""
    random = np.random.default_rng(seed)
    sizes = 10 ** random.uniform(-3, 1, size=(STEPS, *[1] * len(shape)))
    found = sizes * random.normal(size=(STEPS, *shape))
    found[1], found[2] = 0.0, found[0]
    return found


def _rates(lr: float) -> list[float]:
    """A warm-up and a fall, as a schedule sets them."""
    return [lr * min(1, (t + 1) / 6) * (1 if t < 25 else 0.1) for t in range(STEPS)]


def _set_rates(optimizer: torch.optim.Optimizer, base: list[float], share: float) -> None:
    for group, lr in zip(optimizer.param_groups, base, strict=True):
        group["lr"] = share * lr


@pytest.mark.parametrize("decay", [0.0, DECAY])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("option", sorted(RULES))
def test_each_step_of_an_optimizer_file_is_that_of_its_paper(option, shape, decay, compose):
    cfg = compose(f"optimizer={option}")
    start, gradients = np.random.default_rng(7).normal(size=shape), _gradients(shape, 3)
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = build(cfg.optimizer)([parameter], weight_decay=decay)
    expected, memory = start, {name: np.zeros(()) for name in "smvudz"} | {"row": np.zeros(()), "column": np.zeros(())}
    base = [group["lr"] for group in optimizer.param_groups]
    for step, (gradient, lr) in enumerate(zip(gradients, _rates(cfg.lr), strict=True), 1):
        _set_rates(optimizer, base, lr / cfg.lr)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        before, expected = expected, RULES[option](expected, gradient, memory, step, lr, decay)
        moved, wanted = parameter.detach().numpy() - start, expected - start
        scale = np.abs(wanted).max() or 1.0
        error = np.abs(moved - wanted).max() / scale
        assert error < TOLERANCE.get(option, 1e-10), (step, error)
        assert step != 1 or not np.array_equal(before, expected)


@pytest.mark.parametrize("option", ["schedule_free", "schedule_free_sgd"])
def test_what_a_schedule_free_optimizer_is_scored_at_is_the_average_of_its_paper_after_each_step(option, compose):
    cfg = compose(f"optimizer={option}")
    start, gradients = np.random.default_rng(7).normal(size=(4, 3)), _gradients((4, 3), 3)
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = build(cfg.optimizer)([parameter], weight_decay=DECAY)
    expected, memory = start, {"v": np.zeros(())}
    for step, (gradient, lr) in enumerate(zip(gradients, _rates(cfg.lr), strict=True), 1):
        _set_rates(optimizer, [cfg.lr], lr / cfg.lr)
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
        expected = RULES[option](expected, gradient, memory, step, lr, DECAY)
        optimizer.eval()
        np.testing.assert_allclose(parameter.detach().numpy(), memory["x"], rtol=1e-8, atol=1e-10)
        optimizer.train()


def test_the_first_step_of_lamb_is_lr_times_the_norm_of_the_weights_and_those_above_ten_count_as_ten(compose):
    cfg = compose("optimizer=lamb")
    for norm, counted in ((0.5, 0.5), (4.0, 4.0), (60.0, 10.0)):
        start = torch.randn(8, 5, dtype=torch.float64)
        start *= norm / start.norm()
        parameter = nn.Parameter(start.clone())
        optimizer = build(cfg.optimizer)([parameter])
        for _ in range(3):
            before = parameter.detach().clone()
            parameter.grad = torch.randn(8, 5, dtype=torch.float64)
            optimizer.step()
            counted = min(10.0, before.norm().item())
            assert (parameter.detach() - before).norm().item() == pytest.approx(cfg.lr * counted, rel=1e-5)


def test_a_recorded_lamb_without_the_newer_keys_is_what_it_was(compose):
    cfg = compose("optimizer=lamb").optimizer
    keys = ("_target_", "_partial_", "betas", "eps")
    recorded = {key: cfg[key] for key in keys}
    parameter = nn.Parameter(torch.full((4,), 2.0, dtype=torch.float64))
    parameter.grad = torch.ones(4, dtype=torch.float64)
    build(OmegaConf.create(recorded))([parameter], lr=0.01, weight_decay=0.0).step()
    assert (2.0 - parameter.detach()).tolist() == pytest.approx([2.0 * 10 * 0.01] * 4, rel=1e-4)  # ten times too far


# ---- the rules that ask again


def _bowl() -> tuple[Callable[[Array], float], Callable[[Array], Array]]:
    """A function of twelve weights that is no quadratic, and its gradient."""
    random = np.random.default_rng(5)
    matrix, goal = random.normal(size=(20, 12)) / 3, random.normal(size=20)

    def value(w: Array) -> float:
        return float(np.log(np.cosh(matrix @ w - goal)).sum() + w @ w / 2)

    def slope(w: Array) -> Array:
        return matrix.T @ np.tanh(matrix @ w - goal) + w

    return value, slope


def _closure(parameter: nn.Parameter, asked: list[Array] | None = None) -> Callable[[], torch.Tensor]:
    value, slope = _bowl()

    def compute() -> torch.Tensor:
        at = parameter.detach().numpy().copy()
        if asked is not None:
            asked.append(at)
        parameter.grad = torch.tensor(slope(at))
        return torch.tensor(value(at), dtype=torch.float64)

    return compute


def _sam(w, m, t, lr, decay, slope, base, rho=0.05):  # Foret et al. 2021, algorithm 1
    g = slope(w)
    return base(w, slope(w + rho * g / np.linalg.norm(g)), m, t, lr, decay)


@pytest.mark.parametrize(("base", "rule", "lr"), [("sgd", _momentum, 0.03), ("adamw", _adamw, 1e-3)])
@pytest.mark.parametrize("decay", [0.0, DECAY])
def test_each_step_of_sam_is_that_of_its_paper(base, rule, lr, decay, compose):
    cfg = compose("optimizer=sam", f"optimizer.base={base}", f"lr={lr}")
    start = np.random.default_rng(7).normal(size=12)
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = build(cfg.optimizer)([parameter], weight_decay=decay)
    expected, memory = start, {name: np.zeros(()) for name in "mv"}
    for step in range(1, STEPS + 1):
        optimizer.step(_closure(parameter))
        expected = _sam(expected, memory, step, lr, decay, _bowl()[1], rule)
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-7, atol=1e-8)


def _two_loops(gradient: Array, steps: list[Array], changes: list[Array]) -> Array:
    """The direction of Nocedal and Wright 2006, algorithm 7.4, from the moves and the changes of the gradient."""
    q, kept = gradient.copy(), []
    for s, y in zip(reversed(steps), reversed(changes), strict=True):
        kept.append((s @ q) / (y @ s))
        q -= kept[-1] * y
    if steps:
        q *= (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for (s, y), alpha in zip(zip(steps, changes, strict=True), reversed(kept), strict=True):
        q += s * (alpha - (y @ q) / (y @ s))
    return -q


def test_the_directions_of_lbfgs_are_those_of_the_two_loop_recursion_over_ten_gradients(compose):
    cfg = compose("optimizer=lbfgs", "optimizer.line_search_fn=null", "optimizer.max_iter=1", "lr=0.5")
    start, (_, slope) = np.random.default_rng(7).normal(size=12), _bowl()
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = build(cfg.optimizer)([parameter])
    w, steps, changes = start, [], []
    for number in range(15):
        optimizer.step(_closure(parameter))
        gradient = slope(w)
        length = 0.5 * min(1.0, 1 / np.abs(gradient).sum()) if not number else 0.5
        move = length * _two_loops(gradient, steps[-10:], changes[-10:])
        steps.append(move)
        changes.append(slope(w + move) - gradient)
        w = w + move
        np.testing.assert_allclose(parameter.detach().numpy(), w, rtol=1e-6, atol=1e-9)


def test_each_direction_of_lbfgs_ends_where_the_strong_wolfe_conditions_hold(compose):
    cfg = compose("optimizer=lbfgs", "optimizer.max_iter=1")
    value, slope = _bowl()
    parameter = nn.Parameter(torch.tensor(np.random.default_rng(7).normal(size=12)))
    optimizer = build(cfg.optimizer)([parameter])
    for _ in range(12):
        before = parameter.detach().numpy().copy()
        optimizer.step(_closure(parameter))
        after = parameter.detach().numpy()
        move = after - before
        if np.abs(slope(before)).max() < 1e-6:
            break
        assert value(after) <= value(before) + 1e-4 * slope(before) @ move + 1e-12
        assert abs(slope(after) @ move) <= 0.9 * abs(slope(before) @ move) + 1e-12


def test_lbfgs_ends_where_scipys_does(compose):
    value, slope = _bowl()
    start = np.random.default_rng(7).normal(size=12)
    parameter = nn.Parameter(torch.tensor(start))
    optimizer = build(compose("optimizer=lbfgs").optimizer)([parameter])
    for _ in range(3):
        optimizer.step(_closure(parameter))
    reference = minimize(value, start, jac=slope, method="L-BFGS-B", options={"ftol": 1e-15, "gtol": 1e-10})
    assert value(parameter.detach().numpy()) == pytest.approx(reference.fun, rel=1e-9)
    np.testing.assert_allclose(parameter.detach().numpy(), reference.x, atol=1e-4)
