"""Show the lr of every step of a recipe: python scripts/show_schedule.py scheduler=cosine warmup_fraction=0.1"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="show_schedule")
