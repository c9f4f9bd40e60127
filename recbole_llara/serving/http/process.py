"""What a process of the service is set to: its log, and where it counts together with others."""

import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

# The environment variable by which several processes count together; prometheus_client looks for it when it is imported.
METRICS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"


class JsonLines(logging.Formatter):
    """A line of JSON for each record: time, level, event, worker, and what the record tells beside.

    Of an exception it holds the kind and the places in the code, never its words.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "worker": record.process,
        }
        extra: Mapping[str, Any] = getattr(record, "told", {})
        told |= extra
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            places = traceback.extract_tb(error.__traceback__)
            told |= {"error": type(error).__name__, "at": [f"{place.filename}:{place.lineno} {place.name}" for place in places]}
        return json.dumps(told, ensure_ascii=False)


@contextmanager
def json_log() -> Iterator[None]:
    """Within, this process logs JSON lines to standard error, uvicorn's own messages too."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.getLogger().addHandler(handler)
    logging.getLogger(__package__).setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
