"""Keys: what names a row, a recipe and a materialisation.

H is BLAKE2b with 16 bytes over canonical JSON with a type prefix, so that no two trees share a text.
A materialisation's key is the hash of a *tree* that is kept whole in `key.json`: `why` names the leaf that moved.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
from collections.abc import Mapping, Sequence
from json.encoder import encode_basestring_ascii
from typing import Any

from infra.types import Row, UserError
from stages.base import Stage


def canonical(value: Any) -> Any:
    """JSON-ready form with one text per value; refuses what has none."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: canonical(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): canonical(value[k]) for k in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [canonical(v) for v in value]
    if isinstance(value, bytes):
        return {"hex": value.hex()}
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"a setting is {value}: give a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be part of a key: use numbers, text, lists, dataclasses")


def hash16(*parts: Any) -> bytes:
    """H: 16 bytes over the parts' canonical JSON."""
    return _hash(_dumps(canonical(list(parts))))


def _dumps(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


_BLAKE2B = hashlib.blake2b(digest_size=16, person=b"plait")


def _hash(text: str) -> bytes:
    state = _BLAKE2B.copy()  # a third cheaper than a new one with its parameters
    state.update(text.encode())
    return state.digest()


def recipe_tree(stage: Stage, sides: Mapping[str, str]) -> dict[str, Any]:
    """What a stage is, without its row inputs: class, revision, settings, schema, digests of its side inputs."""
    return {
        "stage": type(stage).__name__,
        "revision": stage.revision,
        "settings": canonical(stage.settings()),
        "schema": [[f.name, str(f.type)] for f in stage.schema],
        "content": list(stage.content) if stage.content else None,
        "sides": dict(sides),
    }


def recipe_digest(tree: Mapping[str, Any]) -> str:
    """Hex digest of a recipe tree."""
    return hash16("recipe", tree).hex()


def materialisation_key(recipe: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Key of a materialisation: 32 hex digits over recipe and input digests."""
    return hash16("materialisation", recipe, dict(inputs)).hex()


def code_digest(stage: Stage) -> str:
    """Hash of the source of the stage's module: only for the warning "code changed, revision did not"."""
    module = inspect.getmodule(type(stage))
    source = inspect.getsource(module) if module else ""
    return hashlib.blake2b(source.encode(), digest_size=16).hexdigest()


class RowKeys:
    """Makes the keys of the rows of one materialisation.

    The ordinal counts rows with the same parents (and content): it only tells apart what nothing else does.
    Keys are made for every row there is, so their canonical JSON is put together here from ready pieces;
    `tests/pipelines/test_key.py` holds it against `hash16`.
    """

    def __init__(self, stage: Stage, recipe: str) -> None:
        self.dataset = stage.writes
        self.content = stage.content
        self._head = f"[{_text(stage.writes)},"
        self._pure_head = f"{self._head}{_text(recipe)}," if stage.content is None else None
        self._seen: dict[bytes, int] = {}

    def assign(self, parents: Sequence[bytes], rows: Sequence[Row]) -> list[bytes]:
        """Keys of all the rows that one unit gave, in order."""
        if self._pure_head is None:
            self._seen = {}
            return [self.next(parents, row) for row in rows]
        bare = _hash(f"{self._pure_head}{_hexes(parents)}]").hex()
        return [_hash(f'[{{"hex":"{bare}"}},{ordinal}]') for ordinal in range(len(rows))]

    def next(self, parents: Sequence[bytes], row: Row) -> bytes:
        """Key of the next row, for stages whose rows come as a stream."""
        head = self._pure_head or f"{self._head}{self._named(row)},"
        bare = _hash(f"{head}{_hexes(parents)}]")
        ordinal = self._seen.get(bare, 0)
        self._seen[bare] = ordinal + 1
        return _hash(f'[{{"hex":"{bare.hex()}"}},{ordinal}]')

    def _named(self, row: Row) -> str:
        values = [row[c] for c in self.content or ()]
        if any(isinstance(v, float) for v in values):
            raise TypeError(f"{self.dataset}.content has a float: round it to an integer first")
        return f"[{','.join([_text(v) for v in values])}]"


def _text(value: Any) -> str:
    """Canonical JSON of a value; the plain types, which nearly all are, need no encoder."""
    kind = type(value)
    if kind is str:
        return encode_basestring_ascii(value)
    return repr(value) if kind is int else _dumps(canonical(value))


def _hexes(keys: Sequence[bytes]) -> str:
    if len(keys) == 1:
        return f'[{{"hex":"{keys[0].hex()}"}}]'
    return f"[{','.join([_hexes([key])[1:-1] for key in keys])}]"
