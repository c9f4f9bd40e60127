"""How fast a service over a finished run answers, by the number of its clients; and whether it keeps its memory over many requests.

    python tests/benchmarks/bench_serve.py --run=saved/RUN [--clients 1,16,64,128] [--seconds 30] [--soak 10000] [--soak_rate 0]
        [--workers 1] [--locust COMMAND] [--out serve.json] [options of serve] [--key=value ...]

locust asks (extra ``bench``): every client asks /recommend again as soon as it is answered. Told are the percentiles of what was
answered, users a second, the time of a core that an answer costs the service, and the answers that were no 200, of which 429 is the
queue's. Then come the requests of the soak, in ten parts, and the resident memory of the workers before them and after each. With
``--soak_rate`` the soak's clients ask so many questions a second together, as far as they are answered in time. The service and locust
share this machine.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import recbole_llara
from recbole_llara.config.yaml_files import parse_arguments
from recbole_llara.serving.http.command import build_parser

SEED = 0
PARTS = 10  # of a soak
CLIENTS = Path(__file__).resolve().parent / "serve_clients.py"


class Service:
    """The command, and the clients that ask it.

    Args:
        run: the folder of a finished run.
        words: options and keys of the command.
        ids: of items that histories are drawn from.
        locust: the command.
        scratch: a folder.
    """

    def __init__(self, run: Path, words: list[str], ids: list[str], locust: list[str], scratch: Path) -> None:
        self.ids, self.locust, self.scratch, self.stages = ids, locust, scratch, 0
        command = [sys.executable, "-m", "recbole_llara", "serve", f"--run={run}", "--port=0", "--no_page", *words]
        self.log = (scratch / "log.jsonl").open("wb")
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        told = self.process.stdout.readline().split()
        if not told:
            raise SystemExit((scratch / "log.jsonl").read_text(encoding="utf-8"))
        self.address = told[0]

    def ask(self, clients: int, seconds: int = 0, requests: int = 0, rate: float = 0.0) -> dict[str, Any]:
        """Ask for so long, or until so many answers came; at most so many questions a second (0 = any): what was answered."""
        self.stages += 1
        out, settings = self.scratch / f"{self.stages}.json", self.scratch / "settings.json"
        told = {"ids": self.ids, "requests": requests, "out": str(out), "seed": SEED + self.stages, "rate": rate / clients}
        settings.write_text(json.dumps(told), encoding="utf-8")
        command = [*self.locust, "-f", str(CLIENTS), "--headless", "--host", self.address.rstrip("/")]
        command += [
            "-u",
            str(clients),
            "-r",
            str(clients),
            "--exit-code-on-error",
            "0",
            "--only-summary",
            "--loglevel",
            "ERROR",
        ]
        command += ["--run-time", f"{seconds}s"] if seconds else []
        environment = {**os.environ, "BENCH": str(settings)}
        spent = self._processor_seconds()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode or not out.is_file():
            raise SystemExit(f'{self.locust[0]} failed: {done.stderr}; pip install "recbole-llara[bench]"')
        found = json.loads(out.read_text(encoding="utf-8"))
        answered = found["statuses"].pop("200", 0)
        if not answered:
            raise SystemExit(f"nothing was answered: {found['statuses']}")
        spent = 1000 * (self._processor_seconds() - spent) / answered
        p50, p95, p99 = np.percentile(found["milliseconds"], [50, 95, 99])
        rate = answered / found["seconds"] if found["seconds"] else float("nan")
        told = {"clients": clients, "answered": answered, "others": found["statuses"], "users_per_second": rate}
        told["processor_ms"] = spent
        return told | {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99}

    def memory_mb(self) -> float:
        """The resident memory of all workers."""
        return sum(child.memory_info().rss for child in self._children()) / 1e6

    def _processor_seconds(self) -> float:
        return sum(sum(child.cpu_times()[:2]) for child in self._children())

    def _children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> None:
        """Stop it, as a service manager does."""
        self.process.terminate()
        status = self.process.wait()
        self.process.stdout.close()
        self.log.close()
        if status:
            raise SystemExit(f"the service ended with {status}")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--clients", default="1,16,64,128", help="numbers of clients at once (default %(default)s)")
    parser.add_argument("--seconds", type=int, default=30, help="for each of them (default %(default)s)")
    parser.add_argument("--soak", type=int, default=10_000, help="requests; 0 = none (default %(default)s)")
    parser.add_argument("--soak_clients", type=int, default=16, help="clients that ask them (default %(default)s)")
    parser.add_argument(
        "--soak_rate", type=float, default=0.0, help="questions a second of all clients; 0 = any (default %(default)s)"
    )
    parser.add_argument("--workers", type=int, default=1, help="processes of the service (default %(default)s)")
    parser.add_argument("--locust", default=f"{sys.executable} -m locust", help="the command (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("serve.json"))
    arguments, words = parser.parse_known_args(argv)
    _, keys = build_parser().parse_known_args([f"--run={arguments.run}", *words])
    run = recbole_llara.load(arguments.run, **parse_arguments(keys))
    ids = run.names.ids[1 : run.retriever.n_known]
    found: dict[str, Any] = {"run": arguments.run.name, "workers": arguments.workers, "stages": []}
    told = "{clients:>4} clients: p50 {p50_ms:,.0f} ms, p95 {p95_ms:,.0f}, p99 {p99_ms:,.0f}, {users_per_second:.1f} users a second, {processor_ms:.0f} ms of a core each, others {others}\n"
    with tempfile.TemporaryDirectory() as scratch:
        options = [f"--workers={arguments.workers}", *words]
        service = Service(arguments.run, options, ids, arguments.locust.split(), Path(scratch))
        try:
            service.ask(1, requests=20)  # the first batches are slower
            for clients in map(int, arguments.clients.split(",")):
                found["stages"].append(service.ask(clients, seconds=arguments.seconds))
                sys.stdout.write(told.format(**found["stages"][-1]))
                sys.stdout.flush()
            if arguments.soak:
                memory, parts = [service.memory_mb()], []
                for part in range(PARTS):
                    requests = arguments.soak * (part + 1) // PARTS - arguments.soak * part // PARTS
                    parts.append(service.ask(arguments.soak_clients, requests=requests, rate=arguments.soak_rate))
                    memory.append(service.memory_mb())
                    sys.stdout.write(
                        told.format(**parts[-1]) + "      memory {:,.0f} MB, then {:,.0f} MB\n".format(*memory[-2:])
                    )
                    sys.stdout.flush()
                    found["soak"] = {"memory_mb": memory, "parts": parts}
                    arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
        finally:
            service.end()
    arguments.out.write_text(json.dumps(found, indent=2), encoding="utf-8")
    sys.stdout.write(f"written: {arguments.out}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
