"""``recbole-llara demo``: the page on this machine, for as long as the command runs."""

import argparse
import socket
import sys
from collections.abc import Sequence

from recbole_llara.serving.command import run_parser
from recbole_llara.utils.errors import UserError, exit_status


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is that of ``exit_status``."""
    what = "Ask finished runs side by side in a browser; --key=value goes over the runs' own keys, as --data_path."
    parser = run_parser("demo", what, "the folder of a finished run; its recommender proposes candidates")
    parser.add_argument("--compare", nargs="+", action="extend", default=[], metavar="RUN", help="more runs of the same items")
    parser.add_argument("--host", default="127.0.0.1", help="whom it listens to (default %(default)s: this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0 = any that is free (default %(default)s)")
    arguments, keys = parser.parse_known_args(argv)
    return exit_status("recbole-llara", lambda: _serve(arguments, keys), "stopped")


def _serve(arguments: argparse.Namespace, keys: Sequence[str]) -> None:
    try:
        import fastapi  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise UserError(f'demo: {error}; pip install "recbole-llara[demo]"') from error
    from recbole_llara.config.yaml_files import parse_arguments
    from recbole_llara.demo.app import DemoApi, create_app
    from recbole_llara.demo.runs import load_runs

    host, port = arguments.host, arguments.port
    try:  # before anything is loaded
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"port: {host}:{port} cannot be listened to ({error}); choose another --port or --host") from error
    with listener:
        app = create_app(DemoApi(load_runs([arguments.run, *arguments.compare], **parse_arguments(keys))), host)
        name = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"http://{name}:{listener.getsockname()[1]}/  (Ctrl-C ends it)\n")
        sys.stdout.flush()
        settings = uvicorn.Config(app, log_level="warning", server_header=False, limit_concurrency=256)
        uvicorn.Server(settings).run(sockets=[listener])
