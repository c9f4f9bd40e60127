"""What has to be installed before anything else of this package can be imported: the RecBole that it extends."""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

RECBOLE = "1.2.1"  # the code calls RecBole's own methods and replaces some of them, so another version is another program
INSTALL = f"pip install --no-deps recbole=={RECBOLE}"


def recbole_fault() -> str | None:
    """What is wrong with the installed RecBole, and the command that mends it; None where all is well.

    A RecBole without metadata (a checkout on PYTHONPATH) is taken as it is.
    """
    if find_spec("recbole") is None:
        return f"RecBole is not installed: {INSTALL}"
    try:
        found = version("recbole")
    except PackageNotFoundError:
        return None
    return None if found == RECBOLE else f"RecBole: found version {found}, expected {RECBOLE}: {INSTALL}"
