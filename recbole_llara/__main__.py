"""``python -m recbole_llara``."""

import sys

from recbole_llara.cli import main

if __name__ == "__main__":
    sys.exit(main())
