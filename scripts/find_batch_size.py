"""Find the batch size of a recipe, by speed and memory: python scripts/find_batch_size.py model=cnn"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="find_batch_size")
