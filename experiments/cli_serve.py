"""The verb `serve`: ask and tell over HTTP, until it is stopped."""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from typing import Annotated

import typer

from .cli_external import AcceptOption
from .cli_options import DirectoryOption, JsonOption, StudyArgument, emit_json

logger = logging.getLogger(__name__)

TOKEN_VARIABLE = "MIXOPT_TOKEN"  # nosec B105: the name of a variable
_SHORTEST_TOKEN = 16  # characters; far too many to guess over a network
_REMEDY = 'make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'


def serve(
    study: StudyArgument,
    host: Annotated[str, typer.Option("--host", help="Address to listen at; others than loopback need a token.")] = (
        "127.0.0.1"
    ),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0 takes a free one.")
    ] = 8765,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file", help=f"File that holds the token of the clients; default the variable {TOKEN_VARIABLE}."
        ),
    ] = None,
    directory: DirectoryOption = None,
    accept_changes: AcceptOption = False,
    as_json: JsonOption = False,
) -> None:
    """Serve suggest, tell, predict, status and recommendation over HTTP until interrupted."""
    from mixopt.errors import ConfigError

    from .external import ExternalStudy
    from .gate import is_loopback
    from .server import build_app

    token = _token(token_file)
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"--host: {host} is reachable by others, so clients need a token; give --token-file or set {TOKEN_VARIABLE}, "
            f"or listen at 127.0.0.1; {_REMEDY}"
        )
    opened = ExternalStudy.open(study, directory, accept_changes=accept_changes)
    with _listening(host, port) as listener:
        app = build_app(opened, token=token)
        url = _url(listener)
        if as_json:
            emit_json({"url": url, "study": opened.config.name, "token_needed": token is not None})
        else:
            typer.echo(f"{url}  serves {opened.config.name}; Ctrl-C stops it")
        if not is_loopback(host):
            logger.warning("listening url=%s; requests and token are not encrypted: put a TLS proxy in front", url)
        _run(app, listener)
    logger.info("serve stopped url=%s", url)


def _token(path: Path | None) -> str | None:
    """Return the token of a file or of the environment, or None; its value is never shown."""
    from mixopt.errors import ConfigError

    source, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if path is not None:
        source = "--token-file"
        try:
            token = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file: cannot read {path} ({type(error).__name__}); correct the path") from error
        if path.stat().st_mode & 0o077:
            logger.warning("token readable by others path=%s; run: chmod 600 %s", path, path)
    if token is None:
        return None
    if len(token) < _SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{source}: expected a token of at least {_SHORTEST_TOKEN} printable ASCII characters without spaces, "
            f"got {len(token)} characters; {_REMEDY}"
        )
    return token


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens, so that a port in use is known before anything is recorded."""
    from mixopt.errors import ConfigError, ResourceError

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except socket.gaierror as error:
        raise ConfigError(f"--host: {host!r} is no address of this machine; write for example 127.0.0.1") from error
    except OSError as error:
        raise ResourceError(
            f"cannot listen at {host}:{port} ({error.strerror}); choose another --port or --host"
        ) from error
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _run(app: object, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM: what runs is finished, then the command ends well."""
    import uvicorn

    logging.getLogger("uvicorn").handlers = logging.getLogger("mixopt").handlers
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for number in (signal.SIGINT, signal.SIGTERM):
        # Uvicorn raises the signal once more when it is done; a stopped server is no failure.
        signal.signal(number, signal.SIG_IGN)
    # Its access log would hold queries; the app logs requests itself.
    config = uvicorn.Config(app, log_config=None, access_log=False, server_header=False)  # type: ignore[arg-type]
    uvicorn.Server(config).run(sockets=[listener])
