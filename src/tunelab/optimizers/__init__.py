"""Parameter groups; the algorithms are torch's own."""

from tunelab.optimizers.groups import parameter_groups

__all__ = ["parameter_groups"]
