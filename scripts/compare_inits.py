"""Compare inits by their signal and first epochs: python scripts/compare_inits.py model=mlp size.depth=20"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="compare_inits")
