"""Score a finished run's checkpoint again: python scripts/evaluate.py run=<folder>"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="evaluate")
