"""From the data part of a scenario to its records."""

from __future__ import annotations

from dataclasses import replace

from fedsim.data.authors import load_authors
from fedsim.data.config import AuthorsData, BesideCommon, DataChoice, HfData, JsonlData, MuseData, TofuData
from fedsim.data.hf import load_hf
from fedsim.data.jsonl import load_jsonl, public_records
from fedsim.data.muse import load_muse
from fedsim.data.names import ClientNames
from fedsim.data.partition import dirichlet, iid
from fedsim.data.records import Corpus
from fedsim.data.tofu import load_tofu


def load_corpus(data: DataChoice, *, seed: int) -> Corpus:
    """The records of a scenario; ValueError says which file, line or value cannot be used.

    Sources without names call their clients by number.
    """
    corpus = _read_corpus(data, seed)
    if corpus.names.by_id:
        return corpus
    return replace(corpus, names=ClientNames.of(str(client) for client in corpus.clients))


def depends_on_seed(data: DataChoice) -> bool:
    """Whether who holds what is drawn, so that another seed has another corpus."""
    if isinstance(data, AuthorsData):
        return data.partition != "by-author"
    return isinstance(data, MuseData) or (isinstance(data, HfData) and data.client_column is None)


def _read_corpus(data: DataChoice, seed: int) -> Corpus:
    if isinstance(data, TofuData):
        corpus = load_tofu(
            path=data.path,
            hub=data.hub,
            client_authors=data.client_authors,
            holdout_authors=data.holdout_authors,
            rows_per_author=data.rows_per_author,
        )
        more = {} if data.public is None else public_records(data.public)
        return _with_common(replace(corpus, public={**corpus.public, **more}), data)
    if isinstance(data, HfData):
        return load_hf(data, seed=seed)
    if isinstance(data, MuseData):
        return load_muse(data, seed=seed)
    if isinstance(data, JsonlData):
        return load_jsonl(
            data.path,
            client_column=data.client_column,
            question_column=data.question_column,
            answer_column=data.answer_column,
            ignore_columns=data.ignore_columns,
            holdout=data.holdout,
            public=data.public,
        )
    assert isinstance(data, AuthorsData)
    corpus = load_authors(
        clients=data.clients,
        authors_per_client=data.authors_per_client,
        facts_per_author=data.facts_per_author,
        holdout_authors=data.holdout_authors,
        public_authors=data.public_authors,
        natural=data.phrasing == "natural",
    )
    if data.public is not None:
        corpus = replace(corpus, public=public_records(data.public))
    corpus = _with_common(corpus, data)
    if data.partition == "by-author":
        return corpus
    every = [record for held in corpus.clients.values() for record in held]
    if data.partition == "iid":
        return replace(corpus, clients=iid(every, clients=data.clients, seed=seed))
    parts = dirichlet(every, clients=data.clients, alpha=data.dirichlet_alpha, seed=seed)
    return replace(corpus, clients=parts)


def _with_common(corpus: Corpus, data: BesideCommon) -> Corpus:
    """The corpus with clients that hold common knowledge behind the others, if the scenario has any.

    Raises:
        ValueError: there are fewer records than such clients.
    """
    if data.common is None:
        return corpus
    (records,) = public_records(data.common).values()
    if len(records) < data.common_clients:
        raise ValueError(
            f"{data.common}: has {len(records)} records for common_clients={data.common_clients}; each needs "
            "one"
        )
    dealt = (records[number :: data.common_clients] for number in range(data.common_clients))
    behind = len(corpus.clients)
    return replace(corpus, clients={**corpus.clients, **dict(enumerate(dealt, start=behind))})
