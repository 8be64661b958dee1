"""Ray Train's process group, in whose workers SIGTERM saves and leaves instead of dying.

The training function runs in a thread, where Python lets nobody handle signals, and Ray's own handler in the main
thread exits. What a backend executes at its start runs in each worker's main thread, after Ray's handler was set.
"""

from __future__ import annotations

from typing import Any

from ray.train.torch import TorchConfig

from stages.workers.card import speak_over_rays_card
from stages.workers.pulse import leave_on_sigterm

_Backend: Any = TorchConfig().backend_cls


class _LeavingBackend(_Backend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """As torch's, over the card that the others reach; then the handler."""
        worker_group.execute(speak_over_rays_card)
        super().on_start(worker_group, backend_config)
        worker_group.execute(leave_on_sigterm)


class LeavingTorchConfig(TorchConfig):
    """As TorchConfig, with workers that leave on SIGTERM between two steps."""

    @property
    def backend_cls(self) -> Any:
        """The backend whose workers do."""
        return _LeavingBackend
