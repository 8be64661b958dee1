"""How MLflow finds a snapshot again: the `mlflow.dataset_source` entry point of this package.

A module of its own, since MLflow loads it while it is itself being imported.
"""

from __future__ import annotations

from typing import Any

from mlflow.data.dataset_source import DatasetSource


class LanceSource(DatasetSource):
    """Where a snapshot lies."""

    def __init__(self, uri: str, version: int, digest: str) -> None:
        self.uri, self.version, self.digest = uri, version, digest

    @staticmethod
    def _get_source_type() -> str:
        return "plait_lance"

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> LanceSource:
        raise NotImplementedError("a plait snapshot is not guessed from a path")

    def load(self, **kwargs: Any) -> Any:
        """The dataset at this version, as a lance.LanceDataset."""
        import lance

        return lance.dataset(self.uri, version=self.version, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The source JSON."""
        return {"uri": self.uri, "version": self.version, "digest": self.digest}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> LanceSource:
        """Back from the source JSON."""
        return cls(source_dict["uri"], source_dict["version"], source_dict["digest"])
