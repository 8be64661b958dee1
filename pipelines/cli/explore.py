"""`ui`: opens the explorer over a root."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.cli import show


def ui(overrides: Sequence[str], host: str, port: int) -> None:
    """Serve the explorer until it is stopped."""
    from dashboards.explorer.root import Root
    from dashboards.explorer.server import serve
    from pipelines.cli.compose import setup

    made = setup(overrides)
    edges = {name: made.graph.inputs_of(name) for name in made.graph.names}
    serve(
        Root(made.root, overrides, edges), host, port, lambda text: show.err.print(text, markup=False, soft_wrap=True)
    )
