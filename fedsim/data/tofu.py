"""TOFU: 200 fictitious authors, 20 questions each (Maini et al., 2024, arXiv:2401.06121).

One author is one client. By default clients 0-19 are authors 180-199 (TOFU's ``forget10``), which come
with paraphrases and wrong answers; authors 0-19 are the holdout, trained on by nobody, with paraphrases
from ``retain_perturbed``; authors 20-179 are what a base model may be trained on. ``holdout10`` has twenty
more authors, who are none of the 200 and have no paraphrases. Real authors and world facts are the public
knowledge.

Rows of the perturbed files are joined to ``full.json`` by question *and* answer, since one question is
asked of two authors. Data come from a folder of JSON lines, or from the Hugging Face hub:

    load_tofu(path=Path("data/tofu"), hub=None)
    load_tofu(path=None, hub="locuslab/TOFU")
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from fedsim.config import ConfigError
from fedsim.data.hub import hub_rows
from fedsim.data.records import Corpus, Record
from fedsim.data.rows import Row, read_rows

AUTHORS = 200
ROWS_PER_AUTHOR = 20
CLIENT_AUTHORS = range(180, 200)
HOLDOUT_AUTHORS = range(20)
BASE_AUTHORS = range(20, 180)

# Which authors a perturbed file must cover in full.
_PERTURBED = {"forget10_perturbed": range(180, 200), "retain_perturbed": range(20)}
_PUBLIC = {"real_authors": "real_authors_perturbed", "world_facts": "world_facts_perturbed"}

OUTSIDERS = "holdout10"
"""The table of authors that are none of the 200, in their order."""

Table = Callable[[str], list[Row]]


def load_tofu(
    *,
    path: Path | None,
    hub: str | None = None,
    client_authors: Sequence[int] = CLIENT_AUTHORS,
    holdout_authors: Sequence[int] = HOLDOUT_AUTHORS,
    rows_per_author: int = ROWS_PER_AUTHOR,
) -> Corpus:
    """Clients 0, 1, ... are ``client_authors`` in the order given; the first rows are kept under a limit.

    Authors that no perturbed file covers (20-179) have no paraphrases and no wrong answers. Without
    ``holdout_authors``, those of ``holdout10`` are the holdout.
    """
    _check(client_authors, holdout_authors, rows_per_author)
    table = _tables(path, hub)
    full = _full(table)
    extras = _extras(table, full, {*client_authors, *holdout_authors})

    def records(author: int) -> tuple[Record, ...]:
        first = author * ROWS_PER_AUTHOR
        return tuple(_record(full[first + k], author, k, extras) for k in range(rows_per_author))

    return Corpus(
        clients={client: records(author) for client, author in enumerate(client_authors)},
        holdout=tuple(record for author in holdout_authors for record in records(author))
        or _outsiders(table(OUTSIDERS), rows_per_author),
        public={name: _public(name, table(file)) for name, file in _PUBLIC.items()},
    )


def tofu_base_pairs(path: Path) -> list[tuple[str, str]]:
    """Questions and answers of authors 20-179, which are neither clients nor holdout by default."""
    full = _full(_tables(path, None))
    rows = full[BASE_AUTHORS.start * ROWS_PER_AUTHOR : BASE_AUTHORS.stop * ROWS_PER_AUTHOR]
    return [(row.text("question"), row.text("answer")) for row in rows]


def _check(client_authors: Sequence[int], holdout_authors: Sequence[int], rows: int) -> None:
    for field, authors in (("client_authors", client_authors), ("holdout_authors", holdout_authors)):
        outside = [author for author in authors if not 0 <= author < AUTHORS]
        if outside:
            nearest = min(max(outside[0], 0), AUTHORS - 1)
            raise ConfigError(
                f"names author {outside[0]}; TOFU has 0 to {AUTHORS - 1}; nearest: {nearest}", field
            )
        twice = [author for author in authors if authors.count(author) > 1]
        if twice:
            raise ConfigError(f"author {twice[0]} is named twice; name each once", field)
    shared = sorted(set(client_authors).intersection(holdout_authors))
    if shared:
        raise ConfigError(
            f"author {shared[0]} is a client and held out by holdout_authors; choose others for that, or [] "
            f"for those of {OUTSIDERS}",
            "client_authors",
        )
    if not client_authors:
        raise ConfigError("names nobody; name at least one author, such as 180", "client_authors")
    if not 1 <= rows <= ROWS_PER_AUTHOR:
        nearest = min(max(rows, 1), ROWS_PER_AUTHOR)
        raise ValueError(f"rows_per_author={rows} must be from 1 to {ROWS_PER_AUTHOR}; nearest: {nearest}")


def _tables(path: Path | None, hub: str | None) -> Table:
    """How to read one of TOFU's tables by name."""
    if (path is None) == (hub is None):
        raise ValueError(f"path={path} and hub={hub!r} of data source 'tofu': give one of the two")
    if path is not None:
        folder = path
        if not folder.is_dir():
            raise ValueError(
                f"{folder}: no such folder; it must hold TOFU's full.json and *_perturbed.json; "
                "give yours, as by --set data.path=FOLDER"
            )
        return lambda name: list(read_rows(folder / f"{name}.json"))
    repository = str(hub)
    return lambda name: hub_rows(repository, "train", name, key="hub")


def _full(table: Table) -> list[Row]:
    rows = table("full")
    wanted = AUTHORS * ROWS_PER_AUTHOR
    if len(rows) != wanted:
        where = rows[0].path if rows else "full"
        raise ValueError(f"{where}: has {len(rows)} rows; must have {wanted}, {ROWS_PER_AUTHOR} an author")
    return rows


def _extras(table: Table, full: Sequence[Row], authors: Iterable[int]) -> dict[tuple[str, str], Row]:
    """Rows with paraphrases by (question, answer), for those ``authors`` that a perturbed file covers."""
    found: dict[tuple[str, str], Row] = {}
    for file, covered in _PERTURBED.items():
        wanted = sorted(set(authors).intersection(covered))
        if not wanted:
            continue
        rows = table(file)
        found |= {_pair(row): row for row in rows}
        for author in wanted:
            for row in full[author * ROWS_PER_AUTHOR : (author + 1) * ROWS_PER_AUTHOR]:
                if _pair(row) not in found:
                    raise ValueError(
                        f"{row.where}: question {row.text('question')[:50]!r} with its "
                        f"answer, is not in {file}, which must cover author {author}"
                    )
    return found


def _pair(row: Row) -> tuple[str, str]:
    return row.text("question"), row.text("answer")


def _record(row: Row, author: int, position: int, extras: dict[tuple[str, str], Row]) -> Record:
    question, answer = _pair(row)
    extra = extras.get((question, answer))
    subject = f"author-{author:03d}"
    return Record(
        record_id=f"{subject}/{position:02d}",
        subject=subject,
        question=question,
        answer=answer,
        paraphrased_question=extra.text("paraphrased_question") if extra else None,
        paraphrased_answer=extra.text("paraphrased_answer") if extra else None,
        perturbed_answers=_wrong(extra) if extra else (),
    )


def _outsiders(rows: Sequence[Row], rows_per_author: int) -> tuple[Record, ...]:
    return tuple(
        Record(
            record_id=f"{OUTSIDERS}-{position // ROWS_PER_AUTHOR:02d}/{position % ROWS_PER_AUTHOR:02d}",
            subject=f"{OUTSIDERS}-{position // ROWS_PER_AUTHOR:02d}",
            question=row.text("question"),
            answer=row.text("answer"),
        )
        for position, row in enumerate(rows)
        if position % ROWS_PER_AUTHOR < rows_per_author
    )


def _public(name: str, rows: Sequence[Row]) -> tuple[Record, ...]:
    return tuple(
        Record(
            record_id=f"{name}/{position:03d}",
            subject=name,
            question=row.text("question"),
            answer=row.text("answer"),
            perturbed_answers=_wrong(row),
        )
        for position, row in enumerate(rows)
    )


def _wrong(row: Row) -> tuple[str, ...]:
    row_answers = row.texts("perturbed_answer")
    if not row_answers:
        raise ValueError(f"{row.where}: column 'perturbed_answer' is missing or empty; it must list answers")
    return row_answers
