"""Find a learning rate for a recipe: python scripts/find_lr.py model=cnn optimizer=sgd"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="find_lr")
