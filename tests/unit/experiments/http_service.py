"""A real HTTP service on a study, on a free port, in a thread of this process."""

import contextlib
import json
import socket
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass, field

import uvicorn

from mixopt.experiments.external import ExternalStudy
from mixopt.experiments.server import build_app

NAMES = ("web", "code", "books")
TOKEN = "a-token-of-the-tests-0123456789"


def a_study(directory=None, *, optimizer="random", search=None, **fields):
    defaults = {"domains": NAMES, "ladder": {"small": 1, "large": 10}, "objective": "mean(loss/*)"}
    return ExternalStudy.create(
        directory, **{**defaults, "search": {"optimizer": optimizer, **(search or {})}, **fields}
    )


@dataclass(frozen=True)
class Reply:
    """What the service answered."""

    code: int
    text: str
    headers: dict = field(default_factory=dict)

    @property
    def data(self):
        return json.loads(self.text)


@dataclass(frozen=True)
class Service:
    """Where it listens, and how to call it without our own client."""

    url: str
    token: str | None

    def send(self, path, body=None, *, method=None, headers=None):
        """Send raw bytes, or nothing, and return the answer whatever its status."""
        own = {"Content-Type": "application/json"} if body is not None else {}
        own |= {"Authorization": f"Bearer {self.token}"} if self.token else {}
        request = urllib.request.Request(self.url + path, body, {**own, **(headers or {})}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return Reply(answer.status, answer.read().decode(), dict(answer.headers))
        except urllib.error.HTTPError as error:
            return Reply(error.code, error.read().decode(), dict(error.headers))

    def get(self, path, **options):
        return self.send(path, **options)

    def post(self, path, body, **options):
        return self.send(path, json.dumps(body).encode(), **options)

    @property
    def address(self):
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)


@contextlib.contextmanager
def served(study, *, token=None, **options):
    """Serve a study until the block ends."""
    app = build_app(study, token=token, **options)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # A listening socket keeps early connections waiting, so nobody has to.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Service(f"http://127.0.0.1:{listener.getsockname()[1]}", token)
        finally:
            server.should_exit = True
            thread.join()
