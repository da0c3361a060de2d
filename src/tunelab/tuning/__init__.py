"""How one number of a recipe is chosen: each instrument measures the steps that a run of the recipe would make."""
