"""Importing pyarrow, for all that read Parquet tables; importing this module loads neither it nor torch."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from samespace.sdk.errors import ConfigError, MissingExtraError

__all__ = ["load_pyarrow"]


def load_pyarrow(path: Path) -> ModuleType:
    """``pyarrow`` with ``pyarrow.parquet``, to read the table at ``path``.

    Raises:
        MissingExtraError: it is not installed.
        ConfigError: it is, and cannot be imported.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingExtraError("train", f"reading {path}") from None
    except ImportError as error:
        # pyarrow does not declare which NumPy it needs, so an installer can bring two that do not fit.
        raise ConfigError(
            f"{path}: pyarrow cannot be imported ({error}); install a version that fits, or save as CSV"
        ) from error
    return pyarrow
