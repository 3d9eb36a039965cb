"""Clients that hold common knowledge beside those with authors of their own."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedsim.data.config import AuthorsData, TofuData
from fedsim.data.loading import load_corpus
from fedsim.scenario.file import load_scenario
from tests.fedsim.data.test_tofu import tables, write


def facts(path: Path, count: int) -> Path:
    rows = [{"question": f"What is {n}?", "answer": f"It is {n}."} for n in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_is_dealt_line_by_line_to_clients_behind_the_others(tmp_path: Path) -> None:
    common = facts(tmp_path / "common.jsonl", 5)
    data = AuthorsData(clients=3, holdout_authors=2, common=common, common_clients=2)
    corpus = load_corpus(data, seed=1)
    assert sorted(corpus.clients) == [0, 1, 2, 3, 4]
    assert [record.question for record in corpus.clients[3]] == ["What is 0?", "What is 2?", "What is 4?"]
    assert [record.question for record in corpus.clients[4]] == ["What is 1?", "What is 3?"]
    alone = load_corpus(AuthorsData(clients=3, holdout_authors=2), seed=1)
    assert {client: corpus.clients[client] for client in range(3)} == alone.clients
    assert corpus.public == alone.public


def test_authors_of_tofu_have_such_clients_beside_them(tmp_path: Path) -> None:
    write(tmp_path, tables())
    common = facts(tmp_path / "common.jsonl", 5)
    named = {"source": "tofu", "path": tmp_path, "client_authors": (180, 181)}
    corpus = load_corpus(TofuData(**named, common=common, common_clients=2), seed=1)
    assert {client: len(held) for client, held in corpus.clients.items()} == {0: 20, 1: 20, 2: 3, 3: 2}
    alone = load_corpus(TofuData(**named), seed=1)
    assert {client: corpus.clients[client] for client in range(2)} == alone.clients


def test_what_cannot_be_dealt(tmp_path: Path) -> None:
    common = facts(tmp_path / "common.jsonl", 1)
    with pytest.raises(ValueError, match=r"common.jsonl: has 1 records for common_clients=2; each needs one"):
        load_corpus(AuthorsData(clients=3, common=common), seed=1)
    with pytest.raises(ValidationError, match="iid would deal common knowledge like authors"):
        AuthorsData(clients=3, common=common, partition="iid")


def test_the_files_of_facts_share_no_question() -> None:
    """What clients train on is not what the probe of the world asks."""
    asked = [
        {
            json.loads(line)["question"]
            for line in Path(f"scenarios/facts/{name}.jsonl").read_text().splitlines()
        }
        for name in ("world", "common")
    ]
    assert len(asked[0]) == 70
    assert len(asked[1]) == 18
    assert not asked[0] & asked[1]


def test_its_path_is_relative_to_the_scenario(tmp_path: Path, monkeypatch) -> None:
    facts(tmp_path / "common.jsonl", 4)
    scenario = tmp_path / "s.yaml"
    scenario.write_text(
        "name: s\ndata: {source: authors, clients: 2, common: common.jsonl}\n"
        "timeline: [{join: {clients: 0-3}}, {train: {rounds: 1}}]\n"
    )
    monkeypatch.chdir("/")
    data = load_scenario(scenario).scenario.data
    assert isinstance(data, AuthorsData)
    assert data.common == tmp_path / "common.jsonl"
