"""A study's inspector in a browser: `delta-transcoders serve STUDY`."""

from __future__ import annotations

import argparse
import importlib.util
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from delta_transcoders import signals
from delta_transcoders.command import run
from delta_transcoders.inspector.command import TRUST, open_quietly

HOST = "127.0.0.1"
PORT = 8731
NEEDED = ("starlette", "uvicorn")


def bound(port: int) -> socket.socket:
    """A socket on this machine's own address, before anything that takes seconds.

    Args:
        port: 0 for any that is free.

    Raises:
        OSError: the port is in use or not allowed; names it.
    """
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((HOST, port))
        found.listen(64)  # or a second server could be bound beside it
    except OSError as error:
        found.close()
        raise OSError(
            f"port {port} cannot be used ({error.strerror.lower()}): give another with --port, or --port 0 "
            "for a free one"
        ) from None
    return found


def _parsed(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Open a study in a page of this machine's browser: a prompt's answers side by side, a "
        "slider for the delta's weight, layers to replace, and features to drop. Other machines cannot reach "
        "it; other users of this one can, as long as it runs.",
        epilog=f"{TRUST} It needs Starlette and Uvicorn: pip install 'delta-transcoders[serve]'.",
    )
    parser.add_argument("study", metavar="STUDY", help="folder of a study, for example runs/tiny")
    parser.add_argument(
        "--port", type=int, default=PORT, help=f"of {HOST} (default {PORT}; 0 for any that is free)"
    )
    return parser.parse_args(args)


def main() -> None:
    given = _parsed()
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serve needs {' and '.join(missing)}: pip install 'delta-transcoders[serve]' (inspect does not)"
        )
    if not 0 <= given.port <= 65535:
        raise ValueError(f"--port is {given.port}, expected 0 to 65535")
    listening = bound(given.port)
    url = f"http://{HOST}:{listening.getsockname()[1]}/"
    print(f"opening {given.study} …", file=sys.stderr, flush=True)
    session = open_quietly(given.study)
    import uvicorn

    from delta_transcoders.inspector.server import application

    config = uvicorn.Config(
        application(session, url),
        log_config=None,
        log_level="critical",  # `server` shows errors itself
        access_log=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        server_header=False,
        limit_concurrency=64,
        timeout_graceful_shutdown=0,  # a stream may be running
    )
    print(f"{Path(given.study)} is at {url} (Ctrl-C ends it)", flush=True)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    except signals.Stopped:  # as Uvicorn hands signals on when it has ended
        print("ended", file=sys.stderr, flush=True)
        os._exit(0)  # nothing is left to be written, and taking the libraries down takes a second


if __name__ == "__main__":
    run(main)
