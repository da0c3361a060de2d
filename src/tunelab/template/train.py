"""Train, or run a tool: python train.py experiment=first"""

import tunelab

if __name__ == "__main__":
    tunelab.main(config_path="conf", trust=["my_project"])
