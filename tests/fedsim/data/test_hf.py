"""Data sets as people have them: formats, owners, splits, and errors that say what there is."""

import json
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from fedsim.config import ConfigError
from fedsim.data.config import HfData
from fedsim.data.hf import load_hf
from fedsim.data.loading import depends_on_seed, load_corpus
from fedsim.data.records import Turn


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def load(*files, seed=1, **keys):
    return load_hf(HfData.model_validate({"source": "hf", "files": files, **keys}), seed=seed)


def asked(corpus):
    return {c: [(r.record_id, r.question, r.answer) for r in rs] for c, rs in corpus.clients.items()}


def pairs(count, **more):
    return [{"question": f"Q{n}?", "answer": f"A{n}", **more} for n in range(count)]


# ------------------------------------------------------------------------------------- formats


def test_pairs_by_a_column_with_everything_metrics_may_need(tmp_path):
    path = write(
        tmp_path / "wards.json",
        [{"ward": "b", "q": "Who?", "a": "Dr Roy leads", "f": "Dr Roy", "pq": "By whom?", "pa": "Dr Roy",
          "no": ["Dr Poe"], "page": 3}],
    )  # fmt: skip
    corpus = load(
        path, client_column="ward", question_column="q", answer_column="a", fact_column="f",
        paraphrased_question_column="pq", paraphrased_answer_column="pa", wrong_answers_column="no",
    )  # fmt: skip
    ((record,),) = corpus.clients.values()
    assert (record.record_id, record.subject, record.fact) == ("wards:1", "b", "Dr Roy")
    assert (record.paraphrased_question, record.paraphrased_answer) == ("By whom?", "Dr Roy")
    assert record.perturbed_answers == ("Dr Poe",)
    assert corpus.names.text(0) == "client b"


def test_alpaca_puts_an_input_behind_its_instruction(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": "3"},
        {"instruction": "Greet.", "input": "", "output": "Hello"},
    ]
    corpus = load(write(tmp_path / "t.json", rows), format="alpaca", clients=1)
    assert asked(corpus) == {0: [("t:1", "Add.\n\n1 and 2", "3"), ("t:2", "Greet.", "Hello")]}


def test_openfedllm_has_instruction_and_response(tmp_path):
    path = write(tmp_path / "t.json", [{"instruction": "Greet.", "response": "Hello"}])
    corpus = load(path, format="alpaca", answer_column="response", clients=1)
    assert asked(corpus) == {0: [("t:1", "Greet.", "Hello")]}


def test_fedllm_bench_maps_users_to_rows(tmp_path):
    users = {
        "u-7": [{"instruction": "Greet.", "response": "Hello"}, {"instruction": "Part.", "response": "Bye"}],
        "u-2": [{"instruction": "Add.", "response": "3"}],
    }
    path = write(tmp_path / "wild.json", users)
    corpus = load(path, format="alpaca", answer_column="response", client_column="client")
    assert dict(corpus.names.by_id) == {0: "u-7", 1: "u-2"}
    assert asked(corpus)[1] == [("wild:3", "Add.", "3")]


@pytest.mark.parametrize(("keys", "trained"), [({}, True), ({"train_on": "last"}, False)])
def test_a_conversation_is_a_record(tmp_path, keys, trained):
    turns = [{"role": r, "content": c} for r, c in zip(("user", "assistant") * 2, "ABCD", strict=True)]
    path = write(tmp_path / "t.json", [{"messages": turns}] * 6)
    corpus = load(path, format="messages", clients=3, **keys)
    assert sorted(row for rows in asked(corpus).values() for row in rows) == [
        (f"t:{n}", "C", "D") for n in range(1, 7)
    ]
    said = (Turn(role="user", text="A"), Turn(role="assistant", text="B", trained=trained))
    assert all(record.earlier == said for records in corpus.clients.values() for record in records)


def test_plain_text_is_a_record_until_it_is_cut(tmp_path):
    corpus = load(write(tmp_path / "t.json", [{"text": "Once upon a time"}]), format="text", clients=1)
    (record,) = corpus.clients[0]
    assert (record.plain, record.question, record.answer) == (True, "", "Once upon a time")


# -------------------------------------------------------------------------------------- owners


def test_rows_are_dealt_by_the_seed_and_nothing_else(tmp_path):
    path = write(tmp_path / "t.json", pairs(60, topic="x"))
    iid = HfData(source="hf", files=(path,), clients=4)
    assert load_corpus(iid, seed=1) == load_corpus(iid, seed=1)
    assert load_corpus(iid, seed=1).clients != load_corpus(iid, seed=2).clients
    assert depends_on_seed(iid)
    owned = HfData(source="hf", files=(path,), client_column="topic")
    assert load_corpus(owned, seed=1) == load_corpus(owned, seed=2)
    assert not depends_on_seed(owned)


def test_a_partition_by_label_keeps_labels_together(tmp_path):
    rows = [row | {"topic": n % 4} for n, row in enumerate(pairs(40))]
    path = write(tmp_path / "t.json", rows)
    by = {"by": "shards", "column": "topic", "shards_per_client": 1}
    corpus = load(path, clients=4, partition=by)
    topics = {c: {int(r.question[1:-1]) % 4 for r in rs} for c, rs in corpus.clients.items()}
    assert sorted(topics.values(), key=min) == [{0}, {1}, {2}, {3}]
    skewed = load(path, clients=4, partition={"by": "dirichlet", "column": "topic", "alpha": 1e-6})
    where = {n % 4: set() for n in range(4)}
    for client, records in skewed.clients.items():
        for record in records:
            where[int(record.question[1:-1]) % 4].add(client)
    assert all(len(clients) == 1 for clients in where.values())


def test_clients_that_are_dealt_nothing_keep_their_numbers_free(tmp_path):
    corpus = load(write(tmp_path / "t.json", pairs(2)), clients=1000)
    assert all(corpus.names.name(client) == str(client) for client in corpus.clients)


def test_the_first_rows_are_read(tmp_path):
    assert sum(map(len, load(write(tmp_path / "t.json", pairs(9)), clients=2, rows=5).clients.values())) == 5


# --------------------------------------------------------------------------------- other files


def test_holdout_and_public_are_files_of_the_same_format(tmp_path):
    mine = write(tmp_path / "t.json", pairs(2))
    nobody, known = write(tmp_path / "a" / "t.json", pairs(1)), write(tmp_path / "holdout.json", pairs(1))
    corpus = load(mine, clients=1, holdout=str(nobody), public=str(known))
    assert [r.record_id for r in corpus.holdout] == ["holdout-t:1"]
    assert {name: [r.record_id for r in rs] for name, rs in corpus.public.items()} == {
        "public-holdout": ["holdout:1"]
    }


def test_files_of_one_name_have_records_of_different_names(tmp_path):
    files = [write(tmp_path / folder / "t.json", pairs(1)) for folder in "ab"]
    assert [i for i, _, _ in asked(load(*files, clients=1))[0]] == ["t:1", "2-t:1"]


# --------------------------------------------------------------------------------------- the hub


@pytest.fixture
def like_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 3), ("test", 2)):
        write(tmp_path / "set" / f"{split}.json", pairs(count))
    return tmp_path / "set"


def hub(**keys):
    return load_hf(HfData.model_validate({"source": "hf", "clients": 1, **keys}), seed=1)


def test_splits_of_a_named_data_set(like_the_hub):
    corpus = hub(name=str(like_the_hub), holdout="test")
    assert [i for i, _, _ in asked(corpus)[0]] == ["train:1", "train:2", "train:3"]
    assert [r.record_id for r in corpus.holdout] == ["test:1", "test:2"]
    assert len(hub(name=str(like_the_hub), split="train[:2]").clients[0]) == 2


def test_a_data_set_that_was_saved_to_disk(like_the_hub, tmp_path):
    import datasets

    tables = {split: datasets.Dataset.from_list(pairs(n)) for split, n in (("train", 3), ("test", 2))}
    datasets.DatasetDict(tables).save_to_disk(tmp_path / "saved")
    assert len(hub(name=str(tmp_path / "saved"), split="test").clients[0]) == 2
    with pytest.raises(ConfigError, match=r"split 'dev' .*'train', 'test'"):
        hub(name=str(tmp_path / "saved"), split="dev")


@pytest.mark.parametrize(("keys", "key"), [({"split": "dev"}, "split"), ({"holdout": "dev"}, "holdout")])
def test_a_split_that_is_not_there_lists_those_that_are(like_the_hub, keys, key):
    with pytest.raises(ConfigError, match=r"split 'dev' of data set .*'train', 'test'") as error:
        hub(name=str(like_the_hub), **keys)
    assert error.value.key == (key,)


def test_a_configuration_that_is_not_there_lists_those_that_are(like_the_hub):
    with pytest.raises(ConfigError, match=r"of configuration 'fr' .*Available: \['default'\]"):
        hub(name=str(like_the_hub), config_name="fr")


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*args, **keys):
        raise ConnectionError("Couldn't reach 'some/where' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        ConfigError, match=r"Couldn't reach .*download it where the hub can be reached"
    ) as error:
        hub(name="some/where")
    assert error.value.key == ("name",)


def test_without_the_library_files_are_read_and_names_say_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(load(write(tmp_path / "t.json", pairs(2)), clients=1).clients[0]) == 2
    with pytest.raises(
        ConfigError, match=r"needs the package 'datasets': pip install datasets; or name files"
    ):
        hub(name="some/where")


# -------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("keys", "key", "message"),
    [
        (
            {"question_column": "ask"},
            "question_column",
            "has no column 'ask'; its columns are question, answer",
        ),
        ({"format": "messages"}, "messages_column", "has no column 'messages'"),
        ({"fact_column": "f"}, "fact_column", "has no column 'f'"),
        (
            {"partition": {"by": "dirichlet", "column": "topic"}},
            "partition",
            "no column 'topic' to deal its rows",
        ),
        (
            {"partition": {"by": "shards", "column": "answer"}, "clients": 2},
            "clients",
            "use 1 clients or fewer",
        ),
        ({"holdout": "test"}, "holdout", "holdout='test' must be a file that ends in one of .json"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_key(tmp_path, keys, key, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(write(tmp_path / "t.json", pairs(2)), **({"clients": 1} | keys))
    assert error.value.key[0] == key


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "give one of name, of a data set on the hub, and files"),
        ({"files": ["a.json"], "name": "b/c"}, "give one of name"),
        ({"files": ["a.json"], "split": "train", "clients": 1}, "split belongs to a name on the hub"),
        ({"files": ["a.json"]}, "either client_column, or clients"),
        ({"files": ["a.json"], "clients": 1, "client_column": "c"}, "either client_column, or clients"),
        ({"files": ["a.json"], "client_column": "c", "partition": {"by": "iid"}}, "are not dealt out"),
        ({"files": ["a.json"], "clients": 1, "format": "text", "fact_column": "f"}, "fact_column has no use"),
        ({"files": ["a.json"], "clients": 1, "train_on": "last"}, "train_on is for conversations"),
    ],
)
def test_keys_that_do_not_go_together(keys, message):
    with pytest.raises(ValidationError, match=message):
        HfData.model_validate({"source": "hf", **keys})


def test_reading_rows_imports_no_library_of_the_hub(tmp_path):
    import subprocess

    path = write(tmp_path / "t.json", pairs(2))
    code = (
        "import sys; from pathlib import Path; from fedsim.data.tables import read_table; "
        f"read_table(Path({str(path)!r})); sys.exit('datasets' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
