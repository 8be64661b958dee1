"""What stores were asked, by kind and in bytes: what they send a bill for, counted for whoever is at work.

Every request that boto3 sends is counted when it is sent, one that is sent again as well. Of Lance, which sends its
own, what it counts itself: reads of data (not of manifests), and the files that it staged as one PUT each (large ones
travel in parts). Work in other threads is counted for the work that began last.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

KINDS = ("PUT", "GET", "LIST", "HEAD", "DELETE")
SENT, RECEIVED = "bytes_sent", "bytes_received"
_KIND = {"ListObjectsV2": "LIST", "GetObject": "GET", "HeadObject": "HEAD", "DeleteObject": "DELETE"}
"""By boto3's operation; what is not here writes."""

_lock = threading.Lock()
_at_work: list[tuple[int, Counter[str]]] = []
"""Who counts in this process, by thread, the last who began at the end."""
_lance_seen: Counter[str] = Counter()


@contextmanager
def counted() -> Generator[Counter[str]]:
    """Inside, what this thread asks of stores is counted, and what threads ask that count for nobody."""
    mine: Counter[str] = Counter()
    entry = threading.get_ident(), mine
    with _lock:
        _count_lance()
        _at_work.append(entry)
    try:
        yield mine
    finally:
        with _lock:
            _count_lance()
            _at_work[:] = [other for other in _at_work if other is not entry]


def count(kind: str, sent: int = 0, received: int = 0, num: int = 1) -> None:
    """Some requests of a kind, for who is at work in this thread."""
    add({kind: num, SENT: sent, RECEIVED: received})


def add(found: Mapping[str, int]) -> None:
    """What was counted elsewhere, for who is at work in this thread."""
    with _lock:
        me = threading.get_ident()
        of_thread = [counter for thread, counter in _at_work if thread == me]
        counters = of_thread or [counter for _, counter in _at_work]
        if counters:
            counters[-1].update({name: num for name, num in found.items() if num})


def watch(client: Any) -> None:
    """Count what this boto3 client sends."""
    client.meta.events.register("before-send.s3", _on_send)
    client.meta.events.register("response-received.s3", _on_reply)


def _on_send(event_name: str, request: Any, **_: Any) -> None:
    operation = event_name.rsplit(".", 1)[-1]
    count(_KIND.get(operation, "PUT"), sent=_length(request.headers))


def _on_reply(event_name: str, response_dict: Mapping[str, Any] | None, **_: Any) -> None:
    operation = event_name.rsplit(".", 1)[-1]
    if response_dict is not None and operation != "HeadObject":
        count(_KIND.get(operation, "PUT"), received=_length(response_dict["headers"]), num=0)


def _length(headers: Mapping[str, Any]) -> int:
    value = headers.get("Content-Length") or 0
    return int(value.decode() if isinstance(value, bytes) else value)


def _count_lance() -> None:
    """What Lance has read since we looked last, by its own count for this process, is of the work that began last."""
    if (lance := sys.modules.get("lance")) is None:
        return
    now = {"GET": lance.iops_counter(), RECEIVED: lance.bytes_read_counter()}
    if _at_work and (counter := _at_work[-1][1]):  # one that asked no store stands on a folder
        counter.update({name: num - _lance_seen[name] for name, num in now.items() if num > _lance_seen[name]})
    _lance_seen.update(now)
