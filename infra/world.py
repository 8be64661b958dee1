"""What the outside world does to a run, as one sentence: a full disk, a store that is away, a lost connection."""

from __future__ import annotations

import errno
import random
import time
from typing import Any

from infra.types import TransientError, without_secrets

WORLD_ERRNOS = {errno.ENOSPC, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.EDQUOT, errno.EROFS}
NO_ROOM = ("No space left on device", "Disk quota exceeded")
STORE_FAILED = "LanceError(IO)"
MAX_CHARS = 200
FIRST_WAIT_S, MAX_WAIT_S = 0.1, 5.0


def is_world(error: BaseException) -> bool:
    """Whether an exception speaks of the world and not of a row: decoders raise subclasses of these for bad files."""
    is_plain = type(error).__module__ == "builtins" and isinstance(error, OSError)
    lost = isinstance(error, ConnectionError | TimeoutError) or getattr(error, "errno", None) in WORLD_ERRNOS
    return is_plain and (lost or STORE_FAILED in str(error) or any(text in str(error) for text in NO_ROOM))


def world_failed(error: BaseException, then: str = "run the same command again") -> TransientError:
    """The sentence about an error of the world; `then` is what to type next."""
    said = without_secrets(" ".join(str(error).split()))[:MAX_CHARS]
    number: Any = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT) or any(text in str(error) for text in NO_ROOM):
        return TransientError(f"no disk space is left ({said}): make room, then {then}")
    return TransientError(f"the disk or the store failed ({type(error).__name__}: {said}): {then}")


def is_lost_put(error: OSError) -> bool:
    """Whether a store was asked and no answer came: the put may have happened. Lance repeats no conditional put."""
    return STORE_FAILED in str(error) and not any(text in str(error) for text in NO_ROOM)


def wait(attempt: int) -> None:
    """Longer after each failure, with jitter, so that many who failed together do not come back together."""
    time.sleep(random.random() * min(MAX_WAIT_S, FIRST_WAIT_S * 2**attempt))
