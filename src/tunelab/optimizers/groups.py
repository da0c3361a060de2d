"""Which parameters share an lr and a weight decay: one group per rule, not per tensor."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import accumulate
from math import prod
from typing import Any

from torch import nn

from tunelab.errors import ConfigError, did_you_mean
from tunelab.parameters import EMBEDDINGS, NORMS, kinds, named

Rule = Mapping[str, Any]


@dataclass
class _Place:
    """Where a parameter stands in the model: in several places if it is shared."""

    parameter: nn.Parameter
    paths: list[str] = field(default_factory=list)  # its own, and those of the modules around it
    modules: list[nn.Module] = field(default_factory=list)  # those around it, the model included
    kinds: set[str] = field(default_factory=set)  # out of bias, norm and embedding

    def types(self) -> set[str]:
        """Names of the classes of the modules around it, and of those that they inherit from."""
        return {
            kind.__name__ for module in self.modules for kind in type(module).__mro__ if kind not in (nn.Module, object)
        }

    def obeys(self, rule: Rule) -> bool:
        return ("match" not in rule or any(fnmatchcase(path, rule["match"]) for path in self.paths)) and (
            "type" not in rule or rule["type"] in self.types()
        )


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    lr: float | None = None,
    *,
    undecayed: Collection[str] = ("bias", "norm", "embedding"),
    rules: Sequence[Rule] = (),
    layer_decay: float = 1.0,
    matrices_apart: bool = False,
) -> list[dict[str, Any]]:
    """Splits the trainable parameters by what multiplies their weight decay and their lr.

    Args:
        model: Whose parameters; one that is shared counts once.
        weight_decay: What the first group decays by. With zero there is one group, unless the rest asks for more.
        lr: What the multipliers below multiply; None where the optimizer takes none, and then they are refused.
        undecayed: Kinds without decay, out of `bias`, `norm` and `embedding`, as `tunelab.parameters.kinds` tells them.
            Empty: everything decays.
        rules: Each has `match` (a pattern on the path of a parameter or of a module around it, such as `head.*`) or
            `type` (the class of a module around it) or both, and `lr` or `weight_decay` or both: multipliers, >= 0.
            Where several rules hold, their multipliers multiply. What does not decay still does not.
        layer_decay: The lr of a layer is this to the power of the layers above it, in (0, 1]. The head is the top; a
            layer is a block of a model that has blocks, else a child with a matrix and the vectors that follow it.
        matrices_apart: Whether `matrices` tells hidden layers' matrices and kernels, in groups of their own, from the
            rest: vectors, embeddings and the output layer (the module `head`, else the last Linear).

    Returns:
        Groups for an optimizer, each with a `name` of its own.

    Raises:
        ConfigError: If a rule matches nothing.

    Reference:
        Clark et al. 2020, arXiv:2003.10555, appendix A, for the lr by layer.
    """
    places = list(_places(model))
    _check(rules, places)
    levels = _levels(model) if layer_decay != 1 else {}
    top = max(levels.values(), default=0)
    output = _output_layer(model) if matrices_apart else set()

    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for place in places:
        if not place.parameter.requires_grad:
            continue
        own, level = place.kinds, levels.get(id(place.parameter), 0)
        held = [rule for rule in rules if place.obeys(rule)]
        spared = bool(weight_decay and own & set(undecayed))
        rest = matrices_apart and bool(own or id(place.parameter) in output)
        key = (rest, spared, level, *map(_words, held))
        if key not in groups:
            rate = layer_decay ** (top - level) * prod(rule.get("lr", 1.0) for rule in held)
            decay = 0.0 if spared else weight_decay * prod(rule.get("weight_decay", 1.0) for rule in held)
            words = ["undecayed" if spared else "decayed", *(["rest"] if rest else []), *map(_words, held)]
            words += [f"layer{level}"] if layer_decay != 1 else []
            groups[key] = {"name": "/".join(dict.fromkeys(words)), "params": [], "weight_decay": decay}
            groups[key] |= {"matrices": not rest} if matrices_apart else {}
            groups[key] |= {"lr": _multiplied(lr, rate)} if rate != 1 else {}
        groups[key]["params"].append(place.parameter)
    return [groups[key] for key in sorted(groups)]


def _places(model: nn.Module) -> Iterator[_Place]:
    """Each parameter once, in the order of registration."""
    places: dict[int, _Place] = {}
    for name, parameter, modules in named(model):
        place = places.setdefault(id(parameter), _Place(parameter))
        place.paths += accumulate(name.split("."), "{}.{}".format)
        place.modules += modules
        place.kinds |= kinds(name, parameter, modules)
    yield from places.values()


def _check(rules: Sequence[Rule], places: list[_Place]) -> None:
    """Refuses a rule that matches nothing."""
    for rule in rules:
        if any(place.obeys(rule) for place in places):
            continue
        paths = dict.fromkeys(path for place in places for path in place.paths)
        types = sorted({name for place in places for name in place.types() if not name.startswith("_")})
        match, kind = str(rule.get("match", "")).removesuffix(".*"), str(rule.get("type", ""))
        names = list(dict.fromkeys(path.split(".")[0] for path in paths)) if match else types
        raise ConfigError(
            f"`parameter_groups.rules` must each match a parameter of the model, got {_shown(rule)}."
            f"{did_you_mean(match, paths) or did_you_mean(kind, types)} "
            f"It has {', '.join(names[:8])}{' …' if len(names) > 8 else ''}."
        )


def _shown(rule: Rule) -> str:
    return ", ".join(f"{key}: {rule[key]}" for key in ("match", "type") if key in rule)


def _words(rule: Rule) -> str:
    return ":".join(str(rule[key]) for key in ("match", "type") if key in rule)


def _multiplied(lr: float | None, rate: float) -> float:
    if lr is None:
        raise ConfigError(
            "`parameter_groups` must not multiply the lr of an optimizer whose file has none. Write `lr: ${lr}` in it."
        )
    return lr * rate


def _output_layer(model: nn.Module) -> set[int]:
    """The parameters of the module `head`, or of the last Linear."""
    head = getattr(model, "head", None)
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    layer = head if isinstance(head, nn.Module) else linear[-1] if linear else None
    return {id(parameter) for parameter in layer.parameters()} if layer is not None else set()


def _levels(model: nn.Module) -> dict[int, int]:
    """The layer of each parameter, by its identity, counted from the bottom; what stands in no layer is at zero."""
    levels: dict[int, int] = {}
    level, begun = 0, False
    for layer in _layers(model, outermost=True):
        own = list(layer.parameters())
        if isinstance(layer, EMBEDDINGS):
            begun = True
            levels |= {id(parameter): 0 for parameter in own}
            continue
        if not isinstance(layer, NORMS) and any(parameter.ndim > 1 for parameter in own):
            level, begun = level + begun, True
        for parameter in own:
            levels.setdefault(id(parameter), level)  # a shared one belongs to the lowest
    return levels


def _layers(module: nn.Module, *, outermost: bool = False) -> Iterator[nn.Module]:
    """The layers and blocks of a model in their order, the head last; containers are opened, blocks are not."""
    children = dict(module.named_children())
    is_stack = type(module) in (nn.Sequential, nn.ModuleList, nn.ModuleDict) or {"blocks", "stages"} & set(children)
    if not children or not (outermost or is_stack):
        yield module
        return
    for name in sorted(children, key=lambda child: child == "head"):
        yield from _layers(children[name])
