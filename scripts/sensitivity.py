"""Which knob matters: python scripts/sensitivity.py lr=1e-4,1e-3,1e-2 batch_size=32,64,128 seeds=3"""

from tunelab.command import main

if __name__ == "__main__":
    main(tool="sensitivity")
