"""The verbs `serve` and `watch`."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from everstep.cli.common import load_run, log, prepare_server
from everstep.cli.run_verbs import DEVICE, TRUST
from everstep.errors import ConfigError, RunError

if TYPE_CHECKING:
    from everstep.runs.run import Run
    from everstep.ship.serving.hosted import Load
    from everstep.ship.serving.serving_limits import ServingLimits

RUNS = typer.Argument(metavar="RUN …", help="Folders of runs, or of exports.")
HOST = typer.Option("127.0.0.1", help="Address to listen at; only this machine reaches 127.0.0.1.")
PORT = typer.Option(8000, min=0, max=65535, help="Port; 0: any free one.")
TOKEN = typer.Option(
    None, metavar="FILE", help="File with the token that clients must send.", show_default="EVERSTEP_TOKEN"
)
STATE_KEY = typer.Option(
    None,
    metavar="FILE",
    help="File with the key that signs states of clients.",
    show_default="EVERSTEP_STATE_KEY, or a random one",
)
INSECURE = typer.Option(False, "--insecure", help="Allow other machines without a token.")


def serve(
    runs: list[Path] = RUNS,
    host: str = HOST,
    port: int = PORT,
    token_file: Path | None = TOKEN,
    insecure: bool = INSECURE,
    state_key_file: Path | None = STATE_KEY,
    threads: int = typer.Option(1, min=1, help="Threads of each computation."),
    workers: int = typer.Option(2, min=1, help="Predictions, scores and texts at once; steps of sessions are apart."),
    ttl: float = typer.Option(600, min=1, help="Seconds from the last use of a session to its end."),
    max_sessions: int = typer.Option(1000, min=1, help="Most sessions."),
    max_state: int = typer.Option(512, min=1, help="Most MiB of the states of all sessions."),
    max_body: int = typer.Option(1024, min=1, help="Most KiB of a request."),
    max_line: int = typer.Option(64, min=1, help="Most thousands of characters of a line."),
    max_tokens: int = typer.Option(4096, min=1, help="Most tokens of a generated text, and most steps of a feed."),
    timeout: float = typer.Option(60, min=0.1, help="Most seconds of an answer."),
    device: str = DEVICE,
    trust_code: bool = TRUST,
) -> None:
    """Serve runs over HTTP, with a page to try them.

    \b
      everstep serve runs/mine                              http://127.0.0.1:8000/
      everstep serve runs/mine runs/reviews --port 9000
      everstep serve runs/mine --host 0.0.0.0 --token-file token.txt
      curl http://127.0.0.1:8000/generate --json '{"prompt": "The", "length": 50}'

    \b
      /predict /score /generate     as the verbs of these names; generate also as server-sent events
      /sessions                     states of a model that the server keeps: create, feed steps, read, fork, delete
      /steps                        the same with a signed state that the client keeps
      /runs /health /ready /metrics /openapi.json

    SIGTERM and Ctrl-C end it after the requests in progress; SIGHUP loads the runs again, and sessions go on with the
    old ones.
    """
    import_server()
    prepare_server()
    import torch

    from everstep.ship.serving.serving_limits import ServingLimits

    torch.set_num_threads(threads)
    limits = ServingLimits(
        body=max_body << 10,
        line=1000 * max_line,
        seconds=timeout,
        workers=workers,
        tokens=max_tokens,
        sessions=max_sessions,
        session_bytes=max_state << 20,
        ttl=ttl,
    )

    def load(path: Path) -> Run:
        return load_run(path, trust_code, device, prepare_server)

    _started(runs, load, limits, host, port, token_file, insecure, state_key_file)


def watch(
    runs: list[Path] = RUNS,
    host: str = HOST,
    port: int = PORT,
    token_file: Path | None = TOKEN,
    insecure: bool = INSECURE,
) -> None:
    """Show the learning curves of runs in a page, while they train.

    \b
      everstep watch runs/mine                              http://127.0.0.1:8000/
      everstep watch runs/* --port 9000

    No model is loaded. A folder may still be empty: its curves appear when training writes them.
    """
    import_server()
    from everstep.ship.serving.serving_limits import ServingLimits

    for run in runs:
        if not run.is_dir():
            raise RunError(f"{run} {'is a file' if run.exists() else 'does not exist'}: expected the folder of a run.")
    _started(runs, None, ServingLimits(), host, port, token_file, insecure)


def import_server() -> None:
    """Raise unless the packages of the server are installed."""
    missing = [name for name in ("fastapi", "uvicorn", "httptools", "websockets") if find_spec(name) is None]
    if missing:
        raise ConfigError(f"serve needs {', '.join(missing)}: pip install 'everstep[serve]'")


def _started(
    runs: list[Path],
    load: Load | None,
    limits: ServingLimits,
    host: str,
    port: int,
    token_file: Path | None,
    insecure: bool,
    state_key_file: Path | None = None,
) -> None:
    from everstep.ship.serving.application import application
    from everstep.ship.serving.hosted import Catalogue
    from everstep.ship.serving.server import STATE_KEY as STATE_KEY_VARIABLE
    from everstep.ship.serving.server import bound, token_of
    from everstep.ship.serving.server import serve as run_server
    from everstep.ship.serving.service import Service

    token, key = token_of(token_file), token_of(state_key_file, STATE_KEY_VARIABLE)
    with bound(host, port, token, insecure) as listening:  # before the runs, which take longer

        def opened(batched: Any) -> Catalogue:
            return Catalogue(runs, load, batched, log)

        service = Service(opened, limits, log, None if key is None else key.encode())
        run_server(service, application(service, log, token, insecure), listening, log)
