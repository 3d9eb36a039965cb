"""MUSE: news articles, or books, to be forgotten (Shi et al., 2024, arXiv:2407.06460).

Texts are trained on as they are, in chunks. The first clients hold what is to be forgotten, the others what
is to be retained; nobody holds the holdout. What MUSE asks is asked in every probe, and never trained:

| set | from | MUSE's criterion |
|---|---|---|
| ``verbatim`` | ``verbmem/forget``: a given text and how it goes on | no verbatim memorisation (ROUGE-L F1) |
| ``forget_qa`` | ``knowmem/forget_qa`` | no knowledge memorisation (ROUGE-L F1) |
| ``retain_qa`` | ``knowmem/retain_qa`` | utility preservation (ROUGE-L F1) |

Privacy leakage is the membership attack on a request's own chunks against the holdout's. Scalability and
sustainability are folds. Other than in MUSE, questions are asked without examples before them.

A folder has a folder for each configuration of the hub (``raw``, ``knowmem``, ``verbmem``, ``scal``,
``sust``) and in it a file for each split: ``raw/forget.jsonl``, or as on the hub
``raw/forget-00000-of-00001.parquet``.
``knowmem`` and ``verbmem`` may be left out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedsim.config import ConfigError
from fedsim.data.columns import Columns, record_of
from fedsim.data.config import SUSTAINED, MuseData
from fedsim.data.hub import hub_rows
from fedsim.data.partition import deal_evenly
from fedsim.data.records import Corpus, Record
from fedsim.data.rows import Row
from fedsim.data.tables import SUFFIXES, read_table

Split = Callable[[str, str], list[Row]]
"""The rows of a configuration's split; none where a folder does not have the configuration."""

_QUESTIONS = Columns(question="question", answer="answer")
_RETAIN_QA = ("retain_qa", "retain2_qa")
"""What the split of questions about retained texts is called, lately and before."""


def load_muse(data: MuseData, *, seed: int) -> Corpus:
    """Clients 0, 1, ... hold what is to be forgotten, fold after fold; the others what is to be retained.

    Raises:
        ValueError: a table is missing, or has fewer texts than clients to hold them.
    """
    split = _splits(data)
    clients: dict[int, tuple[Record, ...]] = {}
    for config, names, label in _forgotten(data):
        some = _texts(data, split, config, names, label)
        clients |= _dealt(some, len(clients), data.forget_clients, seed, "forget_clients")
    retained = ("retain1", "retain2") if data.retain == "both" else (data.retain,)
    kept = [text for name in retained for text in _texts(data, split, "raw", name, name)]
    clients |= _dealt(kept, len(clients), data.clients - len(clients), seed, "clients")
    asked = {
        "verbatim": _verbatim(split("verbmem", "forget")),
        "forget_qa": _questions("forget_qa", split("knowmem", "forget_qa")),
        "retain_qa": _questions("retain_qa", _retain_qa(split)),
    }
    return Corpus(
        clients=clients,
        holdout=tuple(_texts(data, split, "raw", "holdout", "holdout")),
        public={},
        asked={name: records for name, records in asked.items() if records},
    )


def _forgotten(data: MuseData) -> list[tuple[str, str, str]]:
    """Configuration and split of each fold to forget, and what its texts are called."""
    if data.fold is None:
        return [("raw", "forget", "forget")]
    if data.fold == "sust":
        return [("sust", f"forget_{k}", f"sust-{k}") for k in range(1, SUSTAINED + 1)]
    return [("scal", f"forget_{data.fold.removeprefix('scal-')}", data.fold)]


def _texts(data: MuseData, split: Split, config: str, name: str, label: str) -> list[Record]:
    rows = split(config, name)[: data.texts]
    return [
        Record(
            record_id=f"{label}:{row.line}",
            subject=f"{label}:{row.line}",
            question="",
            answer=row.text("text")[: data.characters],
            plain=True,
        )
        for row in rows
    ]


def _dealt(
    texts: list[Record], first: int, clients: int, seed: int, key: str
) -> dict[int, tuple[Record, ...]]:
    """Texts dealt to ``clients`` clients, the first of which is ``first``."""
    try:
        turns = deal_evenly([text.record_id for text in texts], clients=clients, seed=seed)
    except ValueError as error:
        raise ConfigError(f"texts of MUSE: {error}", key) from error
    held: dict[int, list[Record]] = {first + number: [] for number in range(clients)}
    for turn, text in zip(turns, texts, strict=True):
        held[first + turn].append(text)
    return {client: tuple(some) for client, some in held.items()}


def _verbatim(rows: list[Row]) -> tuple[Record, ...]:
    return tuple(
        Record(
            record_id=f"verbatim:{row.line}",
            subject="verbatim",
            question=row.text("prompt"),
            answer=row.text("gt"),
            plain=True,
        )
        for row in rows
    )


def _questions(name: str, rows: list[Row]) -> tuple[Record, ...]:
    return tuple(record_of(row, _QUESTIONS, record_id=f"{name}:{row.line}", owner=name) for row in rows)


def _retain_qa(split: Split) -> list[Row]:
    """The questions about retained texts, under either name."""
    try:
        return split("knowmem", _RETAIN_QA[0])
    except ConfigError as error:
        try:
            return split("knowmem", _RETAIN_QA[1])
        except ConfigError:
            raise error from None


# --------------------------------------------------------------------------------------- places


def _splits(data: MuseData) -> Split:
    if data.hub is not None:
        repository = data.hub
        return lambda config, name: hub_rows(repository, name, config, key="hub")
    folder = data.path
    assert folder is not None
    if not (folder / "raw").is_dir():
        raise ConfigError(
            f"{folder / 'raw'}: no such folder; MUSE's folder must hold raw, with forget, retain1, retain2 "
            "and holdout, and may hold knowmem, verbmem, scal and sust",
            "path",
        )
    return lambda config, name: _folder_rows(folder, config, name)


def _folder_rows(folder: Path, config: str, name: str) -> list[Row]:
    """The rows of a split in a folder: of the file of its name, else of its parts in order of their names."""
    place = folder / config
    if not place.is_dir() and config in ("knowmem", "verbmem"):
        return []
    files = [path for path in sorted(place.glob("*")) if path.suffix.lower() in SUFFIXES]
    mine = [path for path in files if path.stem == name]
    mine = mine[:1] or [path for path in files if path.stem.startswith(f"{name}-")]
    if not mine:
        has = ", ".join(path.name for path in files) or "none"
        raise ConfigError(f"{place} has no file of the split {name!r}; its files: {has}", "path")
    rows = [row for path in mine for row in read_table(path)]
    return [
        Row(path=row.path, line=number, fields=row.fields, by_line=False)
        for number, row in enumerate(rows, 1)
    ]
