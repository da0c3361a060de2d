"""A transformer encoder for tables and sequences."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from tunelab.models.blocks import Encoder


class Transformer(nn.Module):
    """Tokens, an encoder over them, and a linear head.

    In a table each feature is a token of its own; in a sequence each step is one, made by a linear layer, with a
    learned vector for its place.

    Args:
        input_shape: (features,) of a table's row, or (tokens, features) of a sequence.
        output_size: Values per example.
        width: Values of a token, the hidden size.
        depth: Blocks, the layers.
        activation: Makes an activation.
        heads: Of each attention; None for the largest of 8, 4, 2 and 1 that divide the width into at least 8 values.
        mlp_ratio: Hidden units of a block, as a multiple of the width.
        dropout: Share of the units zeroed in training, in [0, 1).
        attention_dropout: Share of the attention weights zeroed in training, in [0, 1).
        stochastic_depth: Share of the examples that skip the last block in training, in [0, 1).
        pooling: class_token or mean.

    Reference:
        Vaswani et al. 2017, arXiv:1706.03762, section 3.1; Gorishniy et al. 2021, arXiv:2106.11959, section 3.3.
    """

    kinds = ("table", "sequence")

    def __init__(
        self,
        input_shape: tuple[int, ...],
        output_size: int,
        *,
        width: int,
        depth: int,
        activation: Callable[[], nn.Module],
        heads: int | None = None,
        mlp_ratio: float = 2.0,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        stochastic_depth: float = 0.0,
        pooling: str = "class_token",
    ) -> None:
        super().__init__()
        is_table = len(input_shape) == 1
        self.embedding = FeatureTokens(input_shape[0], width) if is_table else nn.Linear(input_shape[1], width)
        self.encoder = Encoder(
            input_shape[0],
            width=width,
            depth=depth,
            activation=activation,
            heads=heads,
            mlp_ratio=mlp_ratio,
            dropout=dropout,
            attention_dropout=attention_dropout,
            stochastic_depth=stochastic_depth,
            pooling=pooling,
            positions=not is_table,  # a feature's vector and bias say already which one it is
        )
        self.head = nn.Linear(width, output_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Args:
            inputs: Shape (batch, features) or (batch, tokens, features).

        Returns:
            Shape (batch, output_size).
        """
        tokens = self.embedding(inputs)  # (batch, tokens, width)
        outputs: Tensor = self.head(self.encoder(tokens))
        return outputs


class FeatureTokens(nn.Module):
    """A token for each feature of a table.

    token_j = x_j * vector_j + bias_j

    Args:
        features: Columns of the table.
        width: Values of a token.

    Reference:
        Gorishniy et al. 2021, arXiv:2106.11959, section 3.3.
    """

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(features, width)
        self.biases = nn.Embedding(features, width)
        for embedding in (self.vectors, self.biases):
            nn.init.uniform_(embedding.weight, -(width**-0.5), width**-0.5)

    def forward(self, rows: Tensor) -> Tensor:
        """Args:
            rows: Shape (batch, features).

        Returns:
            Shape (batch, features, width).
        """
        return rows.unsqueeze(2) * self.vectors.weight + self.biases.weight
