"""Train and evaluate a model: ``python run_recbole_llara.py --model=LLaRA --dataset=ml-100k [--key=value ...]``."""

import sys

from recbole_llara.cli import main

if __name__ == "__main__":
    sys.exit(main())
