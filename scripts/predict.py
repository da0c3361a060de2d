"""Predictions for the rows of a csv: python scripts/predict.py run=<folder> input=<csv>"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="predict")
