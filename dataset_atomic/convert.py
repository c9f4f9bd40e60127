"""Raw files to RecBole's atomic files, from a checkout: what ``recbole-llara convert`` does. See ``recbole_llara.data.converters``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recbole_llara.data.command import convert_main

if __name__ == "__main__":
    sys.exit(convert_main())
