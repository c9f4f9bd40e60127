"""What the service counts, as Prometheus reads it.

Several workers behind one port write to the folder that ``METRICS_FOLDER`` names, and whichever is asked tells the sums of all.
Without it a process tells its own.
"""

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from recbole_llara.serving.http.process import METRICS_FOLDER

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # upper bounds of the latency's buckets
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)  # (questions) upper bounds of the batch sizes' buckets


class Metrics:
    """Counters of one application.

    Args:
        run: the folder's name of the run that is served.
        model: its model.
        system: what answers, such as ``LLaRA + SASRec``.
    """

    def __init__(self, run: str, model: str, system: str) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "recbole_llara_requests", "Requests answered.", ["route", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "recbole_llara_request_seconds", "From a request to its answer.", ["route"], buckets=SECONDS, registry=registry
        )
        self._rejected = Counter("recbole_llara_rejected", "Questions refused because too many waited.", registry=registry)
        self._batches = Histogram("recbole_llara_batch_size", "Questions answered at once.", buckets=SIZES, registry=registry)
        self._length = Gauge(
            "recbole_llara_queue_length",
            "Questions that wait or are being answered.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        info = Gauge(
            "recbole_llara_run_info", "The run.", ["run", "model", "system"], multiprocess_mode="max", registry=registry
        )
        info.labels(run, model, system).set(1)

    def observe_request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request was answered."""
        self._requests.labels(route, method, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if status == 429:
            self._rejected.inc()

    def observe_batch(self, size: int) -> None:
        """So many questions are answered at once."""
        self._batches.observe(size)

    def tell_length(self, length: int) -> None:
        """So many questions wait or are being answered."""
        self._length.set(length)

    def text(self) -> bytes:
        """All of it, in Prometheus's text format 0.0.4."""
        registry = self._registry
        if folder := os.environ.get(METRICS_FOLDER):
            registry = CollectorRegistry()
            MultiProcessCollector(registry, folder)
        return generate_latest(registry)
