"""The data's part of a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedsim.config import Config, ConfigError, Float, Int

MOST_RECORDS = 100_000
"""Records of the embedded authors that one run encodes."""


class AuthorsData(Config):
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
    common: Path | None = None
    """File of JSON lines with common knowledge, for clients that hold that and no authors; they are numbered
    behind the others, and training on it keeps a base from losing what it knew."""
    common_clients: Int = Field(default=2, ge=1, le=1000)
    """Clients among which common knowledge is dealt, line by line."""
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


class TofuData(Config):
    """TOFU (Maini et al., 2024): one author, one client; from a folder of JSON lines or the hub."""

    source: Literal["tofu"]
    path: Path | None = None
    """Folder with full.json, forget10_perturbed.json, retain_perturbed.json and so on."""
    hub: str | None = None
    """Data set name on the hub, for example locuslab/TOFU."""

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


DataChoice = Annotated[AuthorsData | TofuData | JsonlData, Field(discriminator="source")]
