"""What models share: branches skipped at random, attention, and the encoder of tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention


class StochasticDepth(nn.Module):
    """Leaves a residual branch out for some of the examples while training; its expectation stays.

    y = x * keep / (1 - rate),  keep ~ Bernoulli(1 - rate), one draw for each example

    Args:
        rate: Share of the examples for which the branch is left out, in [0, 1).

    Reference:
        Huang et al. 2016, arXiv:1603.09382, section 3.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Args:
            branch: Shape (batch, …).

        Returns:
            The same shape.
        """
        if not self.training or not self.rate:
            return branch
        keep = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - self.rate)
        return branch * keep / (1 - self.rate)

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_rates(rate: float, depth: int) -> list[float]:
    """The stochastic depth of each residual block: grows linearly to `rate` at the last.

    rate_l = rate * l / depth,  l = 1 … depth

    Reference:
        Huang et al. 2016, arXiv:1603.09382, equation 4.
    """
    return [rate * number / depth for number in range(1, depth + 1)]


def default_heads(width: int) -> int:
    """The largest of 8, 4 and 2 heads that divide the width and leave each at least 8 values; else one."""
    return next((heads for heads in (8, 4, 2) if width % heads == 0 and width // heads >= 8), 1)


class Attention(nn.Module):
    """Each token becomes a mean of all tokens' values, weighted by how its query fits their keys.

    y = softmax(q k^T / sqrt(head_size)) v, for each head; then a linear layer over the heads

    Query, key and value are layers of their own: an init then sees the true fans, where one fused matrix would look
    three times as wide as it is. The key has no bias, which softmax would take no notice of: it adds the same to a
    query's fit with every key.

    Args:
        width: Values of a token; divisible by `heads`.
        heads: Independent attentions, each over width / heads of the values.
        dropout: Share of the weights zeroed in training, in [0, 1).

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.2.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args:
            tokens: Shape (batch, tokens, width).

        Returns:
            The same shape.
        """
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (batch, heads, tokens, head_size)
            for layer in (self.query, self.key, self.value)
        )
        mixed = scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        attended: Tensor = self.out(mixed.transpose(1, 2).flatten(2))  # (batch, tokens, width)
        return attended


class EncoderBlock(nn.Module):
    """Attention and two linear layers, each a residual branch with its norm in front.

    Args:
        width: Values of a token.
        heads: See `Attention`.
        mlp_ratio: Units between the two linear layers, as a multiple of the width.
        activation: Makes the activation between them.
        dropout: Share of the hidden units, and of what each branch adds, zeroed in training.
        attention_dropout: See `Attention`.
        drop_rate: See `StochasticDepth`.

    Reference:
        Xiong et al. 2020, arXiv:2002.04745, figure 1b.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        mlp_ratio: float,
        activation: Callable[[], nn.Module],
        dropout: float,
        attention_dropout: float,
        drop_rate: float,
    ) -> None:
        super().__init__()
        hidden = max(1, int(width * mlp_ratio))
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, attention_dropout)
        self.attention_dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), activation(), nn.Dropout(dropout), nn.Linear(hidden, width), nn.Dropout(dropout)
        )
        self.drop = StochasticDepth(drop_rate)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args:
            tokens: Shape (batch, tokens, width).

        Returns:
            The same shape.
        """
        tokens = tokens + self.drop(self.attention_dropout(self.attention(self.attention_norm(tokens))))
        outputs: Tensor = tokens + self.drop(self.mlp(self.mlp_norm(tokens)))
        return outputs


class Encoder(nn.Module):
    """Tokens, with their positions and a class token in front, through blocks and a norm to one vector.

    Args:
        tokens: How many there are, without the class token.
        width: Values of a token.
        depth: Blocks.
        activation: Makes an activation.
        heads: Of each attention; None for what suits the width.
        mlp_ratio: See `EncoderBlock`.
        dropout: See `EncoderBlock`; of the tokens that enter, too.
        attention_dropout: See `Attention`.
        stochastic_depth: Share of the examples that skip the last block; less in those before it.
        pooling: `class_token`, which the vector is read from, or `mean` over the tokens, without one.
        positions: Whether each place has a learned vector, added to its token.
    """

    def __init__(
        self,
        tokens: int,
        *,
        width: int,
        depth: int,
        activation: Callable[[], nn.Module],
        heads: int | None,
        mlp_ratio: float,
        dropout: float,
        attention_dropout: float,
        stochastic_depth: float,
        pooling: str,
        positions: bool,
    ) -> None:
        super().__init__()
        self.pooling = pooling
        # embeddings: looked up, so without a fan for an init to see, and without weight decay
        self.class_token = nn.Embedding(1, width) if pooling == "class_token" else None
        self.positions = nn.Embedding(tokens + (pooling == "class_token"), width) if positions else None
        for embedding in (self.class_token, self.positions):
            if embedding is not None:
                # about as large as a token made of standardised inputs, or places are hardly told apart for hundreds
                # of steps: with the customary 0.02, ten epochs on digits end at 0.85 instead of 0.98
                nn.init.normal_(embedding.weight, std=0.5)
        self.dropout = nn.Dropout(dropout)
        block = partial(EncoderBlock, width, heads or default_heads(width), mlp_ratio=mlp_ratio, activation=activation)
        self.blocks = nn.Sequential(
            *(
                block(dropout=dropout, attention_dropout=attention_dropout, drop_rate=rate)
                for rate in drop_rates(stochastic_depth, depth)
            )
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Args:
            tokens: Shape (batch, tokens, width).

        Returns:
            Shape (batch, width).
        """
        if self.class_token is not None:
            first = self.class_token.weight.expand(len(tokens), 1, -1)
            tokens = torch.cat([first, tokens], dim=1)  # (batch, 1 + tokens, width)
        if self.positions is not None:
            tokens = tokens + self.positions.weight
        tokens = self.norm(self.blocks(self.dropout(tokens)))
        return tokens[:, 0] if self.class_token is not None else tokens.mean(dim=1)
