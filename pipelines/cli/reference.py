"""docs/reference.md, made of the code: every verb with its flags, every stage with what it reads, writes and is told.

    python -m pipelines.cli.reference > docs/reference.md

What a setting means is the string below it in its class; its value is that of the pipeline's configuration.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

PIPELINES = {
    "demo": "raw files to an evaluated checkpoint (`plait run`)",
    "curate": "curation alone (`plait run pipeline=curate`)",
    "evaluate": "checkpoints to scores (`plait evaluate`)",
}
_HEAD = """# Reference

Made of the code by `make reference`; a test fails where it is behind. Settings are given as `STAGE.NAME=VALUE`, and
all of them are in the stage's key; how work is placed (`cluster.stages.STAGE.workers`, CPUs, GPUs, shards) is not.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, "## Verbs", "", *_verbs(), *_pipelines()]).rstrip() + "\n"


def _verbs() -> Iterator[str]:
    import typer

    from pipelines.cli.main import app

    verbs: Any = typer.main.get_command(app)
    for name, verb in verbs.commands.items():
        arguments = [p for p in verb.params if p.param_type_name == "argument"]
        asked = " ".join(p.name.upper() if p.required else f"[{p.name}]" for p in arguments)
        yield f"### `{f'plait {name} {asked}'.rstrip()}`"
        yield ""
        yield " ".join((verb.help or "").split())
        yield ""
        for p in verb.params:
            if p.param_type_name == "option" and p.name != "help":
                default = f" ({_said(p.default)})" if p.default not in (None, False, ()) else ""
                yield f"- `{', '.join(p.opts)}`: {' '.join((p.help or '').split())}{default}"
        yield ""


def _pipelines() -> Iterator[str]:
    from pipelines.cli.compose import setup

    told: set[str] = set()
    for pipeline, what in PIPELINES.items():
        graph = setup([f"pipeline={pipeline}", "root=plait-data"]).graph
        stages = [node.stage for node in graph if node.name not in told]
        told |= {stage.writes for stage in stages}
        yield f"## Stages of `{pipeline}`: {what}"
        yield ""
        for stage in stages:
            yield from _stage(stage)


def _stage(stage: Any) -> Iterator[str]:
    kind = "row stage" if hasattr(stage, "process") else "job stage"
    yield f"### `{stage.writes}`"
    yield ""
    yield f"{kind}, `{type(stage).__module__.replace('.', '/')}.py`. {_first(inspect.getdoc(type(stage)) or '')}"
    yield ""
    if stage.inputs:
        yield f"Reads {', '.join(_edge(edge) for edge in stage.inputs)}."
    yield f"Writes {', '.join(f'`{f.name}`' for f in stage.schema)}."
    yield ""
    rows = list(_settings(stage, ""))
    if rows:
        yield from ("| setting | value | |", "|---|---|---|", *rows, "")


def _edge(edge: Any) -> str:
    how = [word for word, yes in (("as a whole", edge.role == "side"), ("held", edge.held)) if yes]
    return f"`{edge.dataset}`" + (f" ({', '.join(how)})" if how else "")


def _settings(told: Any, before: str) -> Iterator[str]:
    """Rows of a table; a setting that is a dataclass itself gives its own."""
    meant = _meanings(type(told))
    for field in dataclasses.fields(told):
        value = getattr(told, field.name)
        if dataclasses.is_dataclass(value):
            yield from _settings(value, f"{before}{field.name}.")
            continue
        words = meant.get(field.name, "").replace("|", "\\|")
        yield f"| `{before}{field.name}` | {_said(value)} | {words} |"


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        value = dict(value)
    text = json.dumps(value, default=lambda one: one.__dict__ if hasattr(one, "__dict__") else str(one))
    return "`" + (text if len(text) <= 60 else f"{text[:57]}...").replace("|", "\\|") + "`"


@cache
def _meanings(of: type) -> dict[str, str]:
    """The strings below the fields of a class and of those it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(of.__mro__):
        if not dataclasses.is_dataclass(one):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(one))).body[0]
        assert isinstance(body, ast.ClassDef)
        for this, after in zip(body.body, body.body[1:], strict=False):
            if (
                isinstance(this, ast.AnnAssign)
                and isinstance(this.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[this.target.id] = " ".join(str(after.value.value).split())
    return found


def _first(doc: str) -> str:
    """The first paragraph."""
    return " ".join(doc.split("\n\n", maxsplit=1)[0].split())


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
