"""Train one model, or with -m several: python train.py optimizer=adamw lr=3e-4"""

import sys

try:
    from tunelab.command import main
except ModuleNotFoundError as error:
    sys.exit(f"{error.name} is not installed in this Python. Type `make train`, or first: . .venv/bin/activate")
except KeyboardInterrupt:
    sys.exit(130)

if __name__ == "__main__":
    main()
