"""What a parameter is to weight decay and penalties: a bias, part of a norm, an embedding, or a weight."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrize import ParametrizationList

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
LISTS = (nn.ParameterList, nn.ParameterDict)
PLACES = {"pos", "position", "positions", "positional"}
TOKENS = {"token", "tokens", "embed", "embeds", "embedding", "embeddings"}
MATRICES = {"weight", "weights", "kernel", "kernels", "matrix"}


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[nn.Module]]]:
    """Yield each parameter of a model with its name and the modules around it, the outermost first.

    A parameter that is shared comes once for each of its names.
    """
    for name, parameter in model.named_parameters(remove_duplicate=False):
        paths = list(accumulate(name.split("."), "{}.{}".format))[:-1]
        yield name, parameter, [model, *(model.get_submodule(path) for path in paths)]


def kinds(name: str, parameter: nn.Parameter, modules: Sequence[nn.Module]) -> set[str]:
    """Return what a parameter is out of bias, norm and embedding; none of them for a matrix or a kernel.

    bias: fewer than two dimensions, or a name with bias in it, or a vector of a user's own that is written with more
        dimensions, such as (1, channels, 1, 1) of a layer scale
    norm: in a norm, or the magnitude of a weight norm
    embedding: in an embedding, or of a user's own with a name such as cls_token or pos_embed, or of shape
        (1, tokens, width), which is added to each example

    Args:
        name: Its path in the model.
        parameter: The parameter itself.
        modules: The modules around it, the outermost first.
    """
    owner = modules[-1]
    words = _words(name)
    own = type(owner) in (nn.Module, *LISTS) or not type(owner).__module__.startswith("torch.nn.")
    longer = sum(size > 1 for size in parameter.shape)
    vector = own and parameter.ndim > 2 and longer < 2 and not MATRICES & {*words}
    token = PLACES & {*words} or words[-1] in TOKENS or {"positions", "class_token"} & {*name.split(".")}
    added = parameter.ndim == 3 and parameter.shape[0] == 1 and not MATRICES & {*words}
    norm = any(isinstance(module, NORMS) for module in modules) or _is_magnitude(name, owner)
    embedding = any(isinstance(module, EMBEDDINGS) for module in modules) or (own and bool(token or added))
    bias = parameter.ndim < 2 or (not (norm or embedding) and ("bias" in words or vector))
    found = {"bias": bias, "norm": norm, "embedding": embedding}
    return {kind for kind, holds in found.items() if holds}


@cache
def _words(name: str) -> tuple[str, ...]:
    """The words of a parameter's own name; of a list's item those of the list."""
    last = next((part for part in reversed(name.split(".")) if not part.isdigit()), name)
    return tuple(word for word in re.split(r"[_\d]+", last.lower()) if word) or (last,)


def _is_magnitude(name: str, owner: nn.Module) -> bool:
    """Whether it is g of w = g v / ||v||, which scales like a norm's own scale."""
    last = name.rpartition(".")[2]
    if isinstance(owner, ParametrizationList):
        return last == "original0" and type(owner[0]).__name__ == "_WeightNorm"
    return last.endswith("_g") and f"{last[:-2]}_v" in owner._parameters  # as torch.nn.utils.weight_norm named them
