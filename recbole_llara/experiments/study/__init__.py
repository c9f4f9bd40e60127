"""Several systems on the same rows and candidates, over seeds: ``recbole-llara study NAME [--key=value ...]``.

definition (a YAML file) -> arms (what is run) -> run (with what is finished already) -> summary (statistics) ->
tables, figures and a page.
"""

import logging
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study in this process; returns the exit status."""
    from recbole_llara.experiments.study.__main__ import main as run

    logging.captureWarnings(True)
    return run(argv)
