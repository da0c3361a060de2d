"""Train one model, or with -m several: python train.py optimizer=adamw lr=3e-4"""

from tunelab.command import main

if __name__ == "__main__":
    main()
