"""How a `-m` searches: a study of trials that run side by side, are pruned, survive a kill and are explained."""

from tunelab.sweep.search import search

__all__ = ["search"]
