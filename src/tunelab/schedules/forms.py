"""The lr as a closed form of the step; `with_warmup` puts the warm-up before it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from tunelab.schedules.warmup import Factor, Timeline, share_done, warmup_length, with_warmup


def half_cosine(progress: float) -> float:
    """From 1 to 0 along half a cosine, as progress goes from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2


@with_warmup
def constant(timeline: Timeline) -> Factor | None:
    """The lr as given."""
    return None


@with_warmup
def step(timeline: Timeline, *, every_epochs: int, factor: float) -> Factor:
    """The lr falls by a factor every so many epochs.

    lr(t) = lr * factor ^ floor(epochs(t) / every_epochs)

    Args:
        timeline: Of the run.
        every_epochs: Epochs between two falls, counted from the start of the run.
        factor: What each fall multiplies by, in (0, 1).
    """
    return lambda t: factor ** (timeline.epochs(t) // every_epochs)


@with_warmup
def multistep(timeline: Timeline, *, milestone_fractions: Sequence[float], factor: float) -> Factor:
    """The lr falls by a factor at given points of the run.

    lr(t) = lr * factor ^ (number of milestones m with t >= step(m), and t > 0)

    Args:
        timeline: Of the run.
        milestone_fractions: Shares of the run's epochs, from its start, in (0, 1).
        factor: What each fall multiplies by, in (0, 1).
    """
    milestones = sorted(max(1, timeline.step_at(share)) for share in milestone_fractions)
    return lambda t: factor ** bisect_right(milestones, t)


@with_warmup
def exponential(timeline: Timeline, *, factor: float) -> Factor:
    """The lr falls a little at each step, by the same factor over each epoch.

    lr(t) = lr * factor ^ (epochs from w to t)

    Args:
        timeline: Of the run.
        factor: What each epoch after the warm-up multiplies by, in (0, 1).
    """
    return lambda t: factor ** timeline.epochs(max(t, timeline.warmup_steps), timeline.warmup_steps)


@with_warmup
def polynomial(timeline: Timeline, *, power: float, eta_min: float = 0.0) -> Factor:
    """The lr falls along a power of what is left of the run; with power 1 along a line.

    lr(t) = eta_min + (lr - eta_min) * (1 - (t - w) / (T - w)) ^ power

    Args:
        timeline: Of the run.
        power: > 0. Above 1 it falls fast first, below 1 late.
        eta_min: The lr at step T.
    """
    floor = timeline.floor(eta_min)
    return lambda t: floor + (1 - floor) * (1 - timeline.progress(t)) ** power


@with_warmup
def inverse_sqrt(timeline: Timeline, *, timescale_fraction: float) -> Factor:
    """The lr falls with the square root of the step, ever more slowly: it need not know where the run ends.

    lr(t) = lr * sqrt(s / (s + t - w)),  s = max(1, timescale_fraction * T)

    With s = w + 1 it is that of the first transformer.

    Args:
        timeline: Of the run.
        timescale_fraction: s as a share of the run, > 0: the lr has halved 3 s steps after the warm-up.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762, equation 3.
    """
    scale = max(1.0, timescale_fraction * timeline.total_steps)
    return lambda t: math.sqrt(scale / (scale + max(0, t - timeline.warmup_steps)))


@with_warmup
def warmup_stable_decay(timeline: Timeline, *, decay_fraction: float, eta_min: float = 0.0) -> Factor:
    """The lr stands, and falls along a line at the end of the run.

    lr(t) = eta_min + (lr - eta_min) * min(1, (T - t) / (decay_fraction * T))

    Args:
        timeline: Of the run.
        decay_fraction: Share of the run in which it falls, in (0, 1]; the warm-up is not shortened for it.
        eta_min: The lr at step T.

    Reference:
        Hu et al. 2024, arXiv:2404.06395, section 4, with a linear decay.
    """
    floor, total = timeline.floor(eta_min), timeline.total_steps
    start = max(timeline.warmup_steps, total - round(decay_fraction * total))
    return lambda t: 1 - (1 - floor) * share_done(t, start, total)


@with_warmup
def cosine(timeline: Timeline, *, eta_min: float = 0.0) -> Factor:
    """The lr falls along half a cosine from the end of the warm-up to the end of the run.

    lr(t) = eta_min + (lr - eta_min) * (1 + cos(pi * (t - w) / (T - w))) / 2

    Args:
        timeline: Of the run.
        eta_min: The lr at step T; a group with a multiple of the lr ends at the same multiple of it.

    Reference:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5, without restarts.
    """
    floor = timeline.floor(eta_min)
    return lambda t: floor + (1 - floor) * half_cosine(timeline.progress(t))


@with_warmup
def cosine_restarts(timeline: Timeline, *, cycles: int, growth: float, eta_min: float = 0.0) -> Factor:
    """The lr falls along half a cosine again and again, each time from the top.

    lr(t) = eta_min + (lr - eta_min) * (1 + cos(pi * (t - a_i) / (a_{i+1} - a_i))) / 2,  a_i <= t < a_{i+1}

    Args:
        timeline: Of the run.
        cycles: How many fill the run after the warm-up, >= 1; one is `cosine`.
        growth: How many times as long as the one before each is, >= 1.
        eta_min: The lr at the end of each.

    Reference:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5.
    """
    floor, start = timeline.floor(eta_min), timeline.warmup_steps
    lengths = [growth**number for number in range(cycles)]
    span = (timeline.total_steps - start) / sum(lengths)
    edges = [start + round(span * sum(lengths[:number])) for number in range(cycles + 1)]

    def factor(t: int) -> float:
        cycle = min(max(1, bisect_right(edges, t)), cycles)
        return floor + (1 - floor) * half_cosine(share_done(t, edges[cycle - 1], edges[cycle]))

    return factor


@with_warmup
def cyclic(timeline: Timeline, *, cycles: int, eta_min: float = 0.0) -> Factor:
    """The lr falls and rises along lines, and falls last. The momentum stays as it is.

    lr(t) = eta_min + (lr - eta_min) * |1 - (x mod 2)|,  x = (2 cycles - 1) * (t - w) / (T - w)

    It begins at the top, where the warm-up leaves it, and so ends at the bottom.

    Args:
        timeline: Of the run.
        cycles: Falls in the run, >= 1; one is `linear`.
        eta_min: The lr at the bottom of each.

    Reference:
        Smith 2017, arXiv:1506.01186, section 3, the triangular policy.
    """
    floor = timeline.floor(eta_min)
    return lambda t: floor + (1 - floor) * abs(1 - (2 * cycles - 1) * timeline.progress(t) % 2)


def one_cycle(
    optimizer: Optimizer,
    *,
    total_steps: int,
    steps_per_epoch: int,
    rise_fraction: float = 0.3,
    first_fraction: float = 0.04,
    eta_min: float = 0.0,
    warmup_steps: int = 0,
    warmup_fraction: float = 0.0,
) -> LRScheduler:
    """The lr rises along half a cosine and falls along another; the rise is its warm-up. The momentum stays as it is.

    lr(t) = lr * (1 - (1 - first_fraction) * (1 + cos(pi * t / w)) / 2)               for t < w
    lr(t) = eta_min + (lr - eta_min) * (1 + cos(pi * (t - w) / (T - w))) / 2          from there on

    Args:
        optimizer: Whose groups it moves.
        total_steps: Optimizer steps T of the whole run.
        steps_per_epoch: Optimizer steps of an epoch.
        rise_fraction: w as a share of the run, in [0, 1), where no warm-up is given.
        first_fraction: Share of the lr at the first step, in (0, 1].
        eta_min: The lr at step T.
        warmup_steps: w itself.
        warmup_fraction: w as a share of the run.

    Reference:
        Smith and Topin 2018, arXiv:1708.07120, section 3, with cosines in place of lines.
    """
    rise = warmup_length(total_steps, warmup_steps, warmup_fraction or (0 if warmup_steps else rise_fraction))
    timeline = Timeline(total_steps, steps_per_epoch, rise, optimizer.defaults.get("lr"))
    floor = timeline.floor(eta_min)

    def factor(t: int) -> float:
        if t < rise:
            return 1 - (1 - first_fraction) * half_cosine(t / rise)
        return floor + (1 - floor) * half_cosine(timeline.progress(t))

    return LambdaLR(optimizer, factor)
