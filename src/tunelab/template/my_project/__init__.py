"""Parts of our own, which conf/ names by `_target_`."""
