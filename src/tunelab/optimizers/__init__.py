"""Parameter groups, and the algorithms that torch and pytorch-optimizer lack or whose step they leave to the user."""

from tunelab.optimizers.groups import parameter_groups

__all__ = ["parameter_groups"]
