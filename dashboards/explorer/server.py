"""The door: addresses to answers. It only reads; every answer is JSON, media or a file of `static/`.

A browser is kept from reading on behalf of other sites: the host it names must be this machine while only this
machine may connect (a name of somebody else's that leads here is refused), and nothing is ever sent across origins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboards.explorer import evaluation, graph, lineage, media, packs, quarantine, training
from dashboards.explorer.clips import Clips, Wish
from dashboards.explorer.root import Root, key_of
from infra.ledger import snapshot_of
from infra.types import PlaitError, Snapshot, UserError, without_secrets

STATIC = Path(__file__).parent / "static"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SAFE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
}
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Guard:
    """Lets GET and HEAD in, for a host that is ours, and puts the safe headers on every answer."""

    def __init__(self, app: ASGIApp, any_host: bool) -> None:
        self.app, self.any_host = app, any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = {name for name, _ in message["headers"]}
                added = [(n.encode(), v.encode()) for n, v in SAFE.items() if n.encode() not in given]
                message["headers"] = [*message["headers"], *added]
            await send(message)

        refused = self._refused(Request(scope))
        await (refused or self.app)(scope, receive, send_safely)

    def _refused(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return said(405, "the explorer only reads: ask with GET")
        host = request.headers.get("host", "")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        if not self.any_host and name not in LOOPBACK:
            return said(
                421, f"{host[:80]!r} is not this machine: open http://127.0.0.1 with the port that plait ui printed"
            )
        return None


def said(status: int, sentence: str) -> Response:
    """An error is one sentence."""
    return Response(json.dumps({"error": without_secrets(sentence)}), status, media_type="application/json")


def answered(document: Any) -> Response:
    """JSON without secrets; numbers that JSON cannot say are null."""
    document = _clean(document, evaluation.finite)
    text = json.dumps(document, default=str, allow_nan=False)
    if without_secrets(text) != text:
        text = json.dumps(_clean(document, lambda v: without_secrets(v) if isinstance(v, str) else v), default=str)
    return Response(text, media_type="application/json", headers={"cache-control": "no-store"})


def _clean(value: Any, by: Callable[[Any], Any]) -> Any:
    if isinstance(value, Mapping):
        return {str(by(k)): _clean(v, by) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(v, by) for v in value]
    return by(value)


# --- what is asked ---------------------------------------------------------------------------------------------


class Asked:
    """The parameters of an address, each one checked."""

    def __init__(self, request: Request) -> None:
        self.path: Mapping[str, str] = request.path_params
        self._query = request.query_params

    def text(self, name: str, default: str = "") -> str:
        """A text, as it was typed."""
        return self._query.get(name, default)

    def number(self, name: str, default: int) -> int:
        """A whole number."""
        text = self._query.get(name) or str(default)
        if not text.lstrip("-").isdecimal() or len(text) > 12:
            raise UserError(f"{name}={text[:40]} is no number: write {name}={default}")
        return int(text)

    def page(self, limit: int) -> tuple[int, int]:
        """Offset and limit."""
        return self.number("offset", 0), self.number("limit", limit)

    def descending(self) -> bool:
        """The order."""
        return self.text("order") == "down"

    def ranges(self) -> tuple[tuple[str, float, float], ...]:
        """`range=name:low:high`, as often as wanted; an empty end is open."""
        found: list[tuple[str, float, float]] = []
        for text in self._query.getlist("range"):
            try:
                name, low, high = text.split(":")
                found.append((name, float(low or "-inf"), float(high or "inf")))
            except ValueError:
                raise UserError(
                    f"range={text[:60]} is no range: write range=flow:0.1:2, an empty end is open"
                ) from None
        return tuple(found)


View = Callable[[Root, Asked], Any]


def _wish(asked: Asked) -> Wish:
    offset, limit = asked.page(48)
    return Wish(
        sort=asked.text("sort"), descending=asked.descending(), offset=offset, limit=limit, fate=asked.text("fate"),
        kind=asked.text("kind"), words=asked.text("words"), ranges=asked.ranges(),
    )  # fmt: skip


def _answers(root: Root, asked: Asked) -> Any:
    chosen = {name: asked.text(name) for name in evaluation.FILTERS}
    step = asked.number("step", 0) if asked.text("step") else None
    return evaluation.answers(root, chosen, step, asked.text("verdict"), *asked.page(24))


VIEWS: dict[str, View] = {
    "/api/state": lambda root, _: root.fresh("state", lambda: graph.state(root)),
    "/api/runs": lambda root, a: graph.runs(root, *a.page(50)),
    "/api/runs/{run}": lambda root, a: graph.run(root, a.path["run"]),
    "/api/clips": lambda root, a: Clips(root).page(_wish(a)),
    "/api/clips/about": lambda root, _: Clips(root).about(),
    "/api/clips/histogram": lambda root, a: Clips(root).histogram(a.text("score")),
    "/api/clips/{key}": lambda root, a: Clips(root).one(a.path["key"]),
    "/api/quarantine": lambda root, _: quarantine.faults(root),
    "/api/quarantine/{stage}": lambda root, a: quarantine.units(
        root, a.path["stage"], a.text("class"), a.text("trace"), *a.page(50)
    ),
    "/api/quarantine/{stage}/{unit}": lambda root, a: quarantine.error(root, a.path["stage"], key_of(a.path["unit"])),
    "/api/packs": lambda root, a: packs.page(root, a.text("sort", "order"), a.descending(), *a.page(40)),
    "/api/packs/{key}": lambda root, a: packs.one(root, a.path["key"]),
    "/api/tokenizers": lambda root, _: training.tokenizers(root),
    "/api/trainings": lambda root, _: training.trainings(root),
    "/api/trainings/{dataset}/{key}": lambda root, a: training.training(root, a.path["dataset"], a.path["key"]),
    "/api/scores": lambda root, _: evaluation.scores(root),
    "/api/samples": lambda root, a: evaluation.samples(
        root, a.text("suite"), a.text("sort"), a.descending(), *a.page(50)
    ),
    "/api/answers": _answers,
    "/api/answers/{key}": lambda root, a: evaluation.answer(root, a.path["key"]),
    "/api/lineage/{target:path}": lambda root, a: lineage.lineage(root, a.path["target"], a.text("near")),
    "/api/rows/{target:path}": lambda root, a: lineage.rows(root, a.path["target"], a.text("words"), *a.page(50)),
    "/api/row/{target:path}": lambda root, a: lineage.row(root, a.path["target"], a.text("near")),
}


# --- the server ------------------------------------------------------------------------------------------------


def application(root: Root, any_host: bool = False) -> Starlette:
    """The explorer of a root; `any_host` where others may connect as well."""

    def view(act: View) -> Callable[[Request], Response]:
        return lambda request: answered(act(root, Asked(request)))

    routes = [Route(path, view(act)) for path, act in VIEWS.items()]
    routes += [
        Route("/media/{dataset}/{key}", lambda request: _media(root, request)),
        Route("/frame/{dataset}/{key}", lambda request: _frame(root, request)),
        Route("/picture/{dataset}/{key}/{name}", lambda request: _picture(root, request)),
        Route("/{name:path}", _static),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, any_host=any_host)],
        exception_handlers={
            UserError: _wrong,
            PlaitError: _failed,
            OSError: _failed,
            ValueError: _failed,
            Exception: _bug,
        },
    )


def _wrong(_: Request, error: Exception) -> Response:
    return said(404, str(error))


def _failed(_: Request, error: Exception) -> Response:
    """The store is away, or a dataset is damaged: the other views go on."""
    return said(503, f"this could not be read ({' '.join(str(error).split())[:300]}): look whether the root is whole")


def _bug(_: Request, error: Exception) -> Response:
    return said(500, f"the explorer failed ({type(error).__name__}): what it printed in its terminal says where")


def _snapshot(root: Root, request: Request) -> Snapshot:
    """`clips`, or `clips@3`."""
    name, _, version = request.path_params["dataset"].partition("@")
    standing = root.standing()
    return snapshot_of(standing.at(name, int(version)) if version.isdecimal() else standing.done(name))


def _media(root: Root, request: Request) -> Response:
    blob = root.blob(_snapshot(root, request), "media", key_of(request.path_params["key"]))
    if blob is None or not blob.size():
        raise UserError(f"{request.path_params['key']} has no media")
    status, headers, data = media.part(blob, request.headers.get("range"))
    return Response(data, status, headers)


def _frame(root: Root, request: Request) -> Response:
    asked = Asked(request)
    which = asked.number("number", 0), asked.number("of", 1), asked.number("side", 160)
    data = media.frame(root, _snapshot(root, request), request.path_params["key"], *which)
    return Response(data, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _picture(root: Root, request: Request) -> Response:
    data = training.picture(root, *(request.path_params[n] for n in ("dataset", "key", "name")))
    return Response(data, media_type="image/png", headers={"cache-control": "private, max-age=3600"})


def _static(request: Request) -> Response:
    """A file of `static/`, by a name that is in its listing: no name is ever a path."""
    name = request.path_params["name"] or "index.html"
    files = {path.name: path for path in STATIC.iterdir() if path.suffix in TYPES}
    if name not in files:
        return said(404, f"there is nothing at /{name[:80]}: begin at /")
    return FileResponse(files[name], media_type=TYPES[files[name].suffix], headers={"cache-control": "no-cache"})


def serve(root: Root, host: str, port: int, say: Callable[[str], None]) -> None:
    """Listen until Ctrl-C; port 0: any that is free. The address is said once somebody can connect."""
    import socket

    import uvicorn

    is_open = host not in LOOPBACK
    if is_open:
        say(f"warning: everybody who reaches {host} can read all of {root.bucket.uri}: there is no password")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen()
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened at ({error.strerror}): give another --port, 0 for any"
        ) from None
    shown = f"[{host}]" if ":" in host else host
    say(f"http://{shown}:{listening.getsockname()[1]}/  (Ctrl-C ends it; {root.bucket.uri}, read only)")
    config = uvicorn.Config(application(root, is_open), log_level="warning", access_log=False, lifespan="off")
    uvicorn.Server(config).run(sockets=[listening])
