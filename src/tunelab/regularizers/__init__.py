"""What keeps a model from learning by heart, beside the dials (dropout, label smoothing) and the callbacks."""

from tunelab.regularizers.penalties import L1, L2

__all__ = ["L1", "L2"]
