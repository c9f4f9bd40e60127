"""Raw files to RecBole's atomic files; ``recbole-llara convert`` from a checkout: see ``recbole_llara.data.converters``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recbole_llara.data.converters import main

if __name__ == "__main__":
    sys.exit(main())
