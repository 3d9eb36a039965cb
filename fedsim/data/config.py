"""The data's part of a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsim.config import Config, ConfigError, Float, Int
from fedsim.data.numbers import Numbers

MOST_RECORDS = 100_000
"""Records of the embedded authors that one run encodes."""


class BesideCommon(Config):
    """Authors' data with clients of another kind beside them."""

    common: Path | None = None
    """File of JSON lines with common knowledge, for clients that hold that and no authors; they are numbered
    behind the others, and training on it keeps a base from losing what it knew."""
    common_clients: Int = Field(default=2, ge=1, le=1000)
    """Clients among which common knowledge is dealt, line by line."""


class AuthorsData(BesideCommon):
    """Embedded fictitious authors; nothing is downloaded."""

    source: Literal["authors"] = "authors"
    clients: Int = Field(default=24, ge=1, le=100_000)
    """Clients with data of their own; they take part once they join."""
    authors_per_client: Int = Field(default=1, ge=1, le=100)
    """Private authors of each client."""
    facts_per_author: Int = Field(default=9, ge=1, le=9)
    """Facts that are told of each private author, of nine."""
    partition: Literal["by-author", "iid", "dirichlet"] = "by-author"
    """Who holds which record."""
    dirichlet_alpha: Float = Field(default=0.5, gt=0)
    """Concentration of the Dirichlet partition; smaller is more skewed."""
    holdout_authors: Int = Field(default=20, ge=2, le=1000)
    """Authors nobody ever trains on."""
    public_authors: Int = Field(default=20, ge=1, le=600)
    """Authors of the embedded base's pre-training on which utility is probed."""
    public: Path | None = None
    """File of JSON lines with facts that another base knows, in the place of these authors."""
    phrasing: Literal["plain", "natural"] = "plain"
    """How facts are told: in the words of the embedded base, or in sentences of ordinary English."""

    @model_validator(mode="after")
    def _held_apart(self) -> AuthorsData:
        if self.common is not None and self.partition != "by-author":
            raise ConfigError(
                f"{self.partition} would deal common knowledge like authors; choose by-author", "partition"
            )
        return self

    @model_validator(mode="after")
    def _can_be_held(self) -> AuthorsData:
        count = self.clients * self.authors_per_client * self.facts_per_author
        if count > MOST_RECORDS:
            raise ConfigError(f"makes {count:,} records in all; at most {MOST_RECORDS:,}", "clients")
        return self


class TofuData(BesideCommon):
    """TOFU (Maini et al., 2024): one author, one client; from a folder of JSON lines or the hub."""

    source: Literal["tofu"]
    path: Path | None = None
    """Folder with full.json, forget10_perturbed.json, retain_perturbed.json and so on."""
    hub: str | None = None
    """Data set name on the hub, for example locuslab/TOFU."""
    client_authors: Numbers = tuple(range(180, 200))
    """Authors that are clients 0, 1, ..., in this order, as ``180-199`` or a list; TOFU has 0 to 199."""
    holdout_authors: Numbers = tuple(range(20))
    """Authors nobody trains on; ``[]`` takes the authors of holdout10.json instead, none of the 200."""
    rows_per_author: Int = Field(default=20, ge=1, le=20)
    """Questions kept of each author, the first ones."""
    public: Path | None = None
    """File of JSON lines with facts that the base knows, probed beside real authors and world facts."""

    @model_validator(mode="after")
    def _one_place(self) -> TofuData:
        if (self.path is None) == (self.hub is None):
            raise ValueError(
                "give exactly one of path and hub, for example --set data.path=FOLDER "
                "or --set data.hub=locuslab/TOFU"
            )
        return self


class JsonlData(Config):
    """Plain JSON lines, one record a line, with a column that says whose it is."""

    source: Literal["jsonl"]
    path: Path
    """File of the clients' records."""
    client_column: str = "client"
    question_column: str = "question"
    answer_column: str = "answer"
    ignore_columns: tuple[str, ...] = ()
    """Columns that the files have besides those that are read; any other unknown column is refused."""
    holdout: Path | None = None
    """File of records nobody trains on; without it nothing can be compared with never-trained data."""
    public: Path | None = None
    """File of records the base knows already, for utility."""

    @model_validator(mode="after")
    def _columns_apart(self) -> JsonlData:
        named = (self.client_column, self.question_column, self.answer_column)
        if len(set(named)) < len(named):
            raise ValueError(
                f"client_column, question_column and answer_column are {', '.join(named)}; "
                "name three different columns"
            )
        return self


class IidPartition(Config):
    """Each row to a client drawn by itself."""

    by: Literal["iid"] = "iid"


class DirichletPartition(Config):
    """Each label's rows over the clients by shares of their own."""

    by: Literal["dirichlet"]
    column: str
    """Column of the label."""
    alpha: Float = Field(default=0.5, gt=0)
    """Concentration; smaller is more skewed."""


class ShardsPartition(Config):
    """Rows sorted by label and cut into shards, a few for each client."""

    by: Literal["shards"]
    column: str
    """Column of the label."""
    shards_per_client: Int = Field(default=2, ge=1, le=1000)
    """Shards of each client; fewer are more skewed."""


PartitionChoice = Annotated[IidPartition | DirichletPartition | ShardsPartition, Field(discriminator="by")]

DataFormat = Literal["pairs", "alpaca", "messages", "text"]

_OF_PAIRS = (
    "question_column",
    "answer_column",
    "fact_column",
    "paraphrased_question_column",
    "paraphrased_answer_column",
    "wrong_answers_column",
)
"""Columns of questions with one answer each."""


class HfData(Config):
    """Any data set that the library datasets loads, or files of JSON, Parquet or CSV."""

    source: Literal["hf"]
    name: str | None = None
    """Data set on the hub, or a folder laid out like one."""
    config_name: str | None = None
    """Configuration of the data set on the hub."""
    split: str | None = None
    """Split of the clients' rows on the hub; train when left out."""
    files: tuple[Path, ...] = ()
    """Files of the clients' rows, in the place of a name."""
    rows: Int | None = Field(default=None, ge=1)
    """Most rows read of the clients', the first ones; all when left out."""
    format: DataFormat = "pairs"
    """What a row is: a question and an answer; an instruction with an input and an output; a conversation; or
    plain text."""
    client_column: str | None = None
    """Column that says whose a row is."""
    clients: Int | None = Field(default=None, ge=1, le=100_000)
    """Clients that rows are dealt to, where no column says whose they are."""
    partition: PartitionChoice | None = None
    """How rows are dealt to clients; iid when left out."""
    question_column: str | None = None
    """question when left out, and instruction of alpaca."""
    answer_column: str | None = None
    """answer when left out, and output of alpaca."""
    input_column: str = "input"
    """What alpaca puts behind an instruction; rows may leave it out."""
    messages_column: str = "messages"
    """Turns of a conversation, each with role and content, or with from and value."""
    train_on: Literal["every", "last"] = "every"
    """Answers of a conversation that are trained; the last is asked about either way."""
    text_column: str = "text"
    """Plain text; long ones are trained on in chunks of model.max_tokens."""
    subject_column: str | None = None
    """What a row is about; its client when left out."""
    fact_column: str | None = None
    """Part of the answer that carries the fact."""
    paraphrased_question_column: str | None = None
    paraphrased_answer_column: str | None = None
    wrong_answers_column: str | None = None
    """Lists of wrong answers, in the form of the paraphrased one."""
    holdout: str | None = None
    """Split, or file, of rows nobody trains on."""
    public: str | None = None
    """Split, or file, of rows the base knows already, for utility."""

    @model_validator(mode="after")
    def _one_place(self) -> HfData:
        if (self.name is None) != bool(self.files):
            raise ConfigError("give one of name, of a data set on the hub, and files", "name")
        for key in ("config_name", "split"):
            if self.files and getattr(self, key) is not None:
                raise ConfigError(
                    f"{key} belongs to a name on the hub, and files are given; leave it out", key
                )
        return self

    @model_validator(mode="after")
    def _one_owner(self) -> HfData:
        if (self.client_column is None) == (self.clients is None):
            raise ConfigError(
                "say whose rows are whose: either client_column, or clients, how many to deal them to",
                "clients",
            )
        if self.partition is not None and self.clients is None:
            raise ConfigError(
                "rows with a client_column are not dealt out; leave one of the two out", "partition"
            )
        return self

    @model_validator(mode="after")
    def _columns_have_a_use(self) -> HfData:
        for key in () if self.format in ("pairs", "alpaca") else _OF_PAIRS:
            if getattr(self, key) is not None:
                raise ConfigError(
                    f"{key} has no use with format: {self.format}; leave one of the two out", key
                )
        if self.format != "messages" and self.train_on != "every":
            raise ConfigError(
                f"train_on is for conversations, and this is format: {self.format}; leave it out", "train_on"
            )
        return self


class MuseData(Config):
    """MUSE (Shi et al., 2024): news or books as plain text, with questions; from a folder or the hub."""

    source: Literal["muse"]
    path: Path | None = None
    """Folder with raw, knowmem and verbmem below it, laid out as on the hub."""
    hub: str | None = None
    """Data set name on the hub: muse-bench/MUSE-News or muse-bench/MUSE-Books."""
    clients: Int = Field(default=10, ge=2, le=100_000)
    """Clients in all: the first hold texts to forget, the others texts to retain."""
    forget_clients: Int = Field(default=1, ge=1)
    """Clients that the texts to forget are dealt to; of sust, those of each of four folds."""
    fold: Literal["scal-1", "scal-2", "scal-3", "scal-4", "sust"] | None = None
    """Texts to forget: a fold of the scalability sets, each within the next; or the four of sustainability,
    one after the other. Those of raw when left out."""
    retain: Literal["retain1", "retain2", "both"] = "both"
    """Texts to retain."""
    texts: Int | None = Field(default=None, ge=1)
    """Most texts of each split, the first ones; all when left out."""
    characters: Int | None = Field(default=None, ge=100)
    """Most characters of each text, the first ones; all when left out."""

    @model_validator(mode="after")
    def _one_place(self) -> MuseData:
        if (self.path is None) == (self.hub is None):
            raise ConfigError(
                "give exactly one of path and hub, for example hub: muse-bench/MUSE-News", "path"
            )
        return self

    @model_validator(mode="after")
    def _some_retain(self) -> MuseData:
        forgetting = self.forget_clients * (SUSTAINED if self.fold == "sust" else 1)
        if forgetting >= self.clients:
            raise ConfigError(
                f"{forgetting} of {self.clients} clients would hold texts to forget, and nobody one to "
                f"retain; use {forgetting + 1} or more",
                "clients",
            )
        return self


SUSTAINED = 4
"""Folds of MUSE's sustainability sets."""

DataChoice = Annotated[AuthorsData | TofuData | JsonlData | HfData | MuseData, Field(discriminator="source")]
