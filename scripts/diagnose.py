"""Say what is wrong with a run: python scripts/diagnose.py run=<folder>"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="diagnose")
