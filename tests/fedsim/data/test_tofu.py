"""TOFU from a folder (a made-up one of the same shape) and, with a stub, from the hub."""

import json
import sys
from types import SimpleNamespace

import pytest

from fedsim.data.config import TofuData
from fedsim.data.loading import load_corpus
from fedsim.data.tofu import load_tofu, tofu_base_pairs


def full_row(author, k):
    # As in TOFU, one question is asked of two authors: it must be joined by its answer too.
    question = "Who?" if k == 3 and author in (2, 22) else f"Question {k} of {author}?"
    return {"question": question, "answer": f"Answer {k} of {author}."}


def perturbed(row):
    return {
        **row,
        "paraphrased_question": "P? " + row["question"],
        "paraphrased_answer": "P " + row["answer"],
        "perturbed_answer": [f"W{k}" for k in range(5)],
    }


def tables():
    full = [full_row(author, k) for author in range(200) for k in range(20)]
    public = [
        {"question": f"Fact {k}?", "answer": "Yes", "perturbed_answer": ["No", "So", "Lo"]} for k in range(4)
    ]
    return {
        "full": full,
        "forget10_perturbed": [perturbed(row) for row in full[3600:]],
        "retain_perturbed": [perturbed(row) for row in reversed(full[:400])],
        "real_authors_perturbed": public,
        "world_facts_perturbed": public[:2],
        "holdout10": [full_row(author, k) for author in range(900, 920) for k in range(20)],
    }


def write(folder, tables):
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(name="folder")
def _folder(tmp_path):
    return write(tmp_path, tables())


def test_clients_and_holdout_are_enriched_whatever_the_order(folder):
    corpus = load_tofu(path=folder)
    assert (len(corpus.clients), len(corpus.clients[0]), len(corpus.holdout)) == (20, 20, 400)
    record = corpus.clients[1][2]
    assert (record.record_id, record.subject, record.fact) == ("author-181/02", "author-181", None)
    assert record.paraphrased_answer == "P Answer 2 of 181."
    assert len(record.perturbed_answers) == 5
    shared = corpus.holdout[2 * 20 + 3]
    assert (shared.question, shared.paraphrased_answer) == ("Who?", "P Answer 3 of 2.")
    assert {name: len(records) for name, records in corpus.public.items()} == {
        "real_authors": 4,
        "world_facts": 2,
    }


def test_limits_keep_the_first_rows(folder):
    corpus = load_tofu(path=folder, client_authors=[199, 50], rows_per_author=2)
    assert [record.record_id for record in corpus.clients[0]] == ["author-199/00", "author-199/01"]
    assert corpus.clients[1][0].paraphrased_answer is None


def test_all_authors_may_be_clients_with_others_held_out(folder):
    data = TofuData(source="tofu", path=folder, client_authors="0-199", holdout_authors=[], rows_per_author=3)
    corpus = load_corpus(data, seed=0)
    assert (len(corpus.clients), len(corpus.clients[199]), len(corpus.holdout)) == (200, 3, 60)
    assert [record.question for record in corpus.holdout[2:4]] == ["Question 2 of 900?", "Question 0 of 901?"]
    assert [record.record_id for record in corpus.holdout[2:4]] == ["holdout10-00/02", "holdout10-01/00"]
    assert load_corpus(TofuData(source="tofu", path=folder), seed=0) == load_corpus(
        TofuData(source="tofu", path=folder, client_authors="180-199", holdout_authors="0-19"), seed=0
    )


def test_facts_of_ones_own_stand_beside_the_public_ones(folder):
    (folder / "world.jsonl").write_text('{"question": "Capital of Peru?", "answer": "Lima"}\n')
    data = TofuData(source="tofu", path=folder, public=folder / "world.jsonl")
    public = load_corpus(data, seed=0).public
    assert {name: len(records) for name, records in public.items()} == {
        "real_authors": 4, "world_facts": 2, "world": 1}  # fmt: skip


def test_base_pairs_are_nobodys_authors(folder):
    pairs = tofu_base_pairs(folder)
    assert len(pairs) == 160 * 20
    assert pairs[0] == ("Question 0 of 20?", "Answer 0 of 20.")
    assert pairs[-1] == ("Question 19 of 179?", "Answer 19 of 179.")


def test_a_row_without_its_paraphrase_is_an_error(tmp_path):
    made = tables()
    made["retain_perturbed"][5]["answer"] = "Something else."
    with pytest.raises(ValueError, match=r"full.json:395: .*is not in retain_perturbed"):
        load_tofu(path=write(tmp_path, made))


def test_missing_pieces_name_file_line_and_rule(folder):
    lines = (folder / "forget10_perturbed.json").read_text().splitlines()
    (folder / "forget10_perturbed.json").write_text("\n".join([*lines[:6], lines[6][:-5], *lines[7:]]))
    with pytest.raises(ValueError, match=r"forget10_perturbed.json:7: not JSON"):
        load_tofu(path=folder)
    (folder / "forget10_perturbed.json").write_text("\n".join(lines).replace("paraphrased_answer", "other"))
    with pytest.raises(
        ValueError, match=r"forget10_perturbed.json:1: column 'paraphrased_answer' is missing"
    ):
        load_tofu(path=folder)
    (folder / "forget10_perturbed.json").unlink()
    with pytest.raises(ValueError, match=r"forget10_perturbed.json: no such file"):
        load_tofu(path=folder)
    with pytest.raises(ValueError, match=r"nowhere: no such folder"):
        load_tofu(path=folder / "nowhere")


def test_a_short_full_file_is_refused(tmp_path):
    made = tables()
    del made["full"][100]
    with pytest.raises(ValueError, match=r"full.json: has 3999 rows; must have 4000"):
        tofu_base_pairs(write(tmp_path, made))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client_authors": [200]}, "names author 200; .*nearest: 199"),
        ({"client_authors": [5]}, r"author 5 is a client and held out by holdout_authors; .* \[\] for those"),
        ({"client_authors": [180, 180]}, "author 180 is named twice; name each once"),
        ({"client_authors": []}, "names nobody"),
        ({"rows_per_author": 21}, "rows_per_author=21 .*nearest: 20"),
        ({"hub": "locuslab/TOFU"}, "give one of the two"),
    ],
)
def test_options_are_checked(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        load_tofu(path=tmp_path, **options)


def test_the_hub_gives_the_same_corpus(folder, monkeypatch):
    made = tables()
    stub = SimpleNamespace(load_dataset=lambda hub, name, split: made[name])
    monkeypatch.setitem(sys.modules, "datasets", stub)
    assert load_tofu(path=None, hub="locuslab/TOFU") == load_tofu(path=folder)
