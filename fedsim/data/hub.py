"""Data sets that the library ``datasets`` loads: by name on the hub, or from folders laid out like there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedsim.config import ConfigError
from fedsim.data.rows import Row

_ELSEWHERE = (
    "download it where the hub can be reached, and name its files, or its folder in the place of the name"
)


def hub_rows(name: str, split: str, config_name: str | None = None, *, key: str = "name") -> list[Row]:
    """The rows of one split of a data set; ``key`` is the scenario's key that names the data set.

    Raises:
        ConfigError: the library, the data set, its configuration or split cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(
            f"{key}={name!r} needs the package 'datasets': pip install datasets; or name files", key
        ) from error
    try:
        table = _loaded(datasets, name, split, config_name)
    except ValueError as error:
        which = f"split {split!r}" + (f" of configuration {config_name!r}" if config_name else "")
        at = "split" if key == "name" and "split" in str(error).lower() else key
        raise ConfigError(f"{which} of data set {name!r} cannot be had: {error}", at) from error
    except (OSError, datasets.exceptions.DatasetsError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"data set {name!r} cannot be had ({said}); {_ELSEWHERE}", key) from error
    return [
        Row(path=Path(name) / split, line=number, fields=row, by_line=False)
        for number, row in enumerate(table, 1)
    ]


def _loaded(datasets: Any, name: str, split: str, config_name: str | None) -> Any:
    """A table by name, or from a folder where it was saved to disk."""
    if not (Path(name) / "dataset_dict.json").is_file():
        return datasets.load_dataset(name, config_name, split=split)
    saved = datasets.load_from_disk(name)
    if split not in saved:
        raise ValueError(f'Unknown split "{split}". Should be one of {list(saved)}.')
    return saved[split]
