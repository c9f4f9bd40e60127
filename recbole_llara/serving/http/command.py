"""``recbole-llara serve``: a finished run behind one port, for as long as the command runs."""

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from recbole_llara.serving.command import run_parser
from recbole_llara.utils.errors import UserError, exit_status

TOKEN = "RECBOLE_LLARA_TOKEN"  # the environment variable
_EPILOG = f"""\
  --run=saved/LLaRA-ml-100k-... --compare saved/SASRec-ml-100k-... saved/TALLRec-ml-100k-...
  {TOKEN}=... recbole-llara serve --run=saved/LLaRA-ml-100k-... --host=0.0.0.0 --workers=2
Routes: POST /recommend, POST /rank, GET and POST /items, /health, /metrics, /openapi.json; / is a page. A JSON line for each request
goes to standard error. After SIGTERM or Ctrl-C, accepted questions are answered, then the service ends.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    what = "Serve a finished run over HTTP; --key=value overrides the runs' own keys."
    parser = run_parser("serve", what, "the folder of a finished run; its recommender proposes candidates", _EPILOG)
    parser.add_argument(
        "--compare",
        nargs="+",
        action="extend",
        default=[],
        metavar="RUN",
        help="more runs of the same items, shown on the page only",
    )
    parser.add_argument(
        "--items",
        metavar="FILE",
        help="an .item file of items that came, were renamed or removed after training; POST /items writes it, a restart reads it",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default %(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0 = any free port (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes; each loads the runs (default %(default)s)")
    parser.add_argument(
        "--queue", type=int, default=64, help="questions that a worker takes at a time; more get 429 (default %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=16, help="questions answered at once, at most (default %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=30.0, help="seconds in which a request is answered, else 504 (default %(default)s)"
    )
    parser.add_argument(
        "--batch_wait", type=float, default=0.005, help="seconds that a batch waits for more questions (default %(default)s)"
    )
    parser.add_argument("--no_page", action="store_true", help="leave out the page, and with it the runs' test rows")
    parser.add_argument(
        "--behind_gateway",
        action="store_true",
        help=f"your own gateway checks who asks: accept any host name, and any --host without {TOKEN}",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is that of ``exit_status``, 0 after a signal."""
    arguments, keys = build_parser().parse_known_args(argv)
    return exit_status("recbole-llara", lambda: _serve(arguments, keys), "stopped at once")


def _serve(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f'serve: {error}; pip install "recbole-llara[serve]"') from error
    from recbole_llara.config.yaml_files import parse_arguments
    from recbole_llara.serving.http.workers import Served, supervise

    host, port = arguments.host, arguments.port
    for name, least in (("workers", 1), ("queue", 1), ("batch", 1), ("batch_wait", 0)):
        if not getattr(arguments, name) >= least:
            raise UserError(f"{name}: found {getattr(arguments, name)}, expected at least {least}")
    if not 0 < arguments.timeout < float("inf"):
        raise UserError(f"timeout: found {arguments.timeout}, expected seconds, more than 0")
    if arguments.no_page and arguments.compare:
        raise UserError("compare: those runs are shown on the page; leave out --no_page or --compare")
    parse_arguments(keys)  # what is wrong with them is said before any process is started
    served = Served(
        runs=(arguments.run, *arguments.compare),
        words=tuple(keys),
        host=host,
        queue=arguments.queue,
        batch=arguments.batch,
        timeout=arguments.timeout,
        batch_wait=arguments.batch_wait,
        token=_token(host, arguments.behind_gateway),
        gateway=arguments.behind_gateway,
        page=not arguments.no_page,
        items=arguments.items,
    )
    try:  # before anything is loaded
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"port: {host}:{port} cannot be listened to ({error}); choose another --port or --host") from error
    name = f"[{host}]" if ":" in host else host
    told = f"http://{name}:{listener.getsockname()[1]}/  (Ctrl-C ends it)\n"

    def tell() -> None:
        sys.stdout.write(told)
        sys.stdout.flush()

    supervise(served, listener, arguments.workers, tell)


def _token(host: str, behind_gateway: bool) -> str | None:
    """The bearer token of the environment; without one only this machine, or a gateway, may ask."""
    from recbole_llara.serving.http.guard import LOOPBACK

    token = os.environ.get(TOKEN)
    if token is not None and (not token or not all("!" <= character <= "~" for character in token)):
        raise UserError(f"{TOKEN}: expected visible ASCII characters without blanks, at least one")
    if token is None and host not in LOOPBACK and not behind_gateway:
        raise UserError(
            f"host: {host} may be reached from other machines; set the environment variable {TOKEN} to a secret that requests "
            "bring as a bearer token, or say --behind_gateway where a gateway of yours checks who asks"
        )
    return token
