"""Code run in an interpreter of its own."""

import subprocess
import sys
from pathlib import Path


def printed_by(code):
    """What a fresh interpreter prints."""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
