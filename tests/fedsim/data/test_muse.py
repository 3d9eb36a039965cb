"""MUSE: who holds which texts, what is asked, folds, and folders that lack something."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from fedsim.config import ConfigError
from fedsim.data.config import MuseData
from fedsim.data.muse import load_muse


def texts(label, count):
    return [{"text": f"{label} {n} is a text."} for n in range(1, count + 1)]


TABLES = {
    "raw/forget": texts("forget", 6),
    "raw/retain1": texts("retain1", 5),
    "raw/retain2": texts("retain2", 4),
    "raw/holdout": texts("holdout", 3),
    "knowmem/forget_qa": [{"question": "F?", "answer": "f"}],
    "knowmem/retain_qa": [{"question": "R?", "answer": "r"}],
    "verbmem/forget": [{"prompt": "forget 1 is", "gt": "a text."}],
    **{f"scal/forget_{k}": texts("scal", 2 * k) for k in range(1, 5)},
    **{f"sust/forget_{k}": texts(f"sust{k}", 2) for k in range(1, 5)},
}


@pytest.fixture
def folder(tmp_path):
    for name, rows in TABLES.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def load(folder, seed=1, **keys):
    return load_muse(MuseData(source="muse", path=folder, **keys), seed=seed)


def labels(corpus):
    return {c: {r.record_id.split(":")[0] for r in rs} for c, rs in corpus.clients.items()}


def held(corpus, *clients):
    return sorted(record.record_id for client in clients for record in corpus.clients[client])


def test_the_first_client_forgets_and_the_others_retain(folder):
    corpus = load(folder, clients=4)
    assert held(corpus, 0) == [f"forget:{n}" for n in range(1, 7)]
    assert held(corpus, 1, 2, 3) == [f"retain{k}:{n}" for k, m in ((1, 5), (2, 4)) for n in range(1, m + 1)]
    assert [len(corpus.clients[c]) for c in (1, 2, 3)] == [3, 3, 3]
    assert [r.record_id for r in corpus.holdout] == ["holdout:1", "holdout:2", "holdout:3"]
    assert not corpus.public
    assert all(r.plain and not r.question for rs in corpus.clients.values() for r in rs)


def test_what_is_asked_is_nobodys(folder):
    asked = load(folder, clients=2).asked
    assert {name: [(r.question, r.answer, r.plain) for r in rs] for name, rs in asked.items()} == {
        "verbatim": [("forget 1 is", "a text.", True)],
        "forget_qa": [("F?", "f", False)],
        "retain_qa": [("R?", "r", False)],
    }


def test_texts_to_forget_are_dealt_among_several(folder):
    corpus = load(folder, clients=5, forget_clients=3)
    assert held(corpus, 0, 1, 2) == [f"forget:{n}" for n in range(1, 7)]
    assert [len(corpus.clients[c]) for c in range(3)] == [2, 2, 2]
    assert load(folder, clients=5, forget_clients=3) == corpus
    assert load(folder, clients=5, forget_clients=3, seed=2) != corpus


def test_scalability_is_a_larger_fold(folder):
    assert [len(load(folder, clients=2, fold=f"scal-{k}").clients[0]) for k in range(1, 5)] == [2, 4, 6, 8]


def test_sustainability_is_one_client_after_the_other(folder):
    corpus = load(folder, clients=6, fold="sust")
    assert [labels(corpus)[c] for c in range(4)] == [{"sust-1"}, {"sust-2"}, {"sust-3"}, {"sust-4"}]
    assert labels(corpus)[4] <= {"retain1", "retain2"}


def test_some_texts_and_the_beginnings_of_texts(folder):
    corpus = load(folder, clients=2, texts=2, retain="retain2", characters=100)
    assert held(corpus, 0) == ["forget:1", "forget:2"]
    assert held(corpus, 1) == ["retain2:1", "retain2:2"]
    (folder / "raw" / "forget.jsonl").write_text(json.dumps({"text": "x" * 500}))
    assert len(load(folder, clients=2, characters=100).clients[0][0].answer) == 100


def test_a_folder_may_lie_as_on_the_hub_and_lack_what_is_asked(tmp_path):
    (tmp_path / "raw").mkdir()
    for split in ("forget", "retain1", "retain2", "holdout"):
        for part in range(2):
            table = pa.Table.from_pylist([{"text": f"{split} {part}"}])
            pa.parquet.write_table(table, tmp_path / "raw" / f"{split}-0000{part}-of-00002.parquet")
    corpus = load(tmp_path, clients=2)
    assert [(r.record_id, r.answer) for r in corpus.clients[0]] == [
        ("forget:1", "forget 0"), ("forget:2", "forget 1")]  # fmt: skip
    assert corpus.asked == {}


def test_questions_about_retained_texts_under_their_earlier_name(folder):
    (folder / "knowmem" / "retain_qa.jsonl").rename(folder / "knowmem" / "retain2_qa.jsonl")
    assert load(folder, clients=2).asked["retain_qa"][0].question == "R?"
    (folder / "knowmem" / "retain2_qa.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"no file of the split 'retain_qa'; its files: forget_qa.jsonl"):
        load(folder, clients=2)


def test_what_a_folder_lacks_is_said(folder):
    with pytest.raises(ConfigError, match=r"nowhere/raw: no such folder; MUSE's folder must hold raw"):
        load(folder / "nowhere", clients=2)
    (folder / "raw" / "retain2.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"raw has no file of the split 'retain2'; its files: forget.jsonl, "
    ):
        load(folder, clients=2)


def test_fewer_texts_than_clients_are_refused_at_the_key(folder):
    with pytest.raises(ConfigError, match="9 cannot be dealt to 19 clients; use 9 or fewer") as error:
        load(folder, clients=20)
    assert error.value.key == ("clients",)


def test_splits_are_read_from_the_hub_by_configuration(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def table(name, config, split):
        asked.append(name)
        return TABLES[f"{config}/{split}"]

    monkeypatch.setattr(datasets, "load_dataset", table)
    corpus = load_muse(MuseData(source="muse", hub="muse-bench/MUSE-News", clients=3), seed=1)
    assert set(asked) == {"muse-bench/MUSE-News"}
    assert held(corpus, 0) == [f"forget:{n}" for n in range(1, 7)]
