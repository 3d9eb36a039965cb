"""Data as people have them in whole lives: files, plain text, MUSE; what `fedsim validate` says of them."""

import itertools
import json
from pathlib import Path

import pytest

from fedsim.app.catalogue import describe
from fedsim.assembly.build import load_and_check, make_context
from fedsim.data.authors import load_authors
from fedsim.scenario.file import ScenarioError, load_scenario
from tests.e2e.runs import BRIEF, merged, run, write_scenario

AUTHORS = load_authors(clients=8, holdout_authors=2, public_authors=1)
LIFE = [
    {"join": {"clients": "all"}},
    {"train": {"rounds": 1}},
    {"forget": {"client": 1}},
    {"train": {"rounds": 1}},
]


def story(records) -> str:
    return " ".join(f"{record.question} {record.answer} ." for record in records)


def write(folder: Path, name: str, rows: list) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return name


def loaded(folder: Path, data: dict, **changes):
    scenario = merged(BRIEF, data=data, **({"timeline": LIFE} | changes))
    return load_scenario(write_scenario(folder, scenario))


def context_of(run):
    return make_context(load_and_check(run), run.variants[0], 1)


def told(run) -> str:
    return " ".join(" ".join(describe(run)).split())


def pairs(folder: Path) -> dict:
    rows = [
        {"who": f"u{client}", "question": r.question, "answer": r.answer}
        for client, records in AUTHORS.clients.items()
        for r in records
    ]
    return {"source": "hf", "files": [write(folder, "mine.json", rows)], "client_column": "who"}


def test_a_life_over_a_file_says_what_cannot_be_measured(tmp_path: Path) -> None:
    text = told(loaded(tmp_path, pairs(tmp_path)))
    assert "8 clients hold 72 records: 9 each" in text
    assert "client u1 asks to be forgotten" in text
    assert "No record to be forgotten has wrong answers, so there is no truth ratio and no choice" in text


def test_a_headline_that_the_data_cannot_have_is_refused_at_its_key(tmp_path: Path) -> None:
    mine = loaded(tmp_path, pairs(tmp_path), probes__headline="paraphrase_probability")
    with pytest.raises(
        ScenarioError, match=r"probes\.headline: .* needs paraphrased questions, and no record"
    ):
        load_and_check(mine)


def test_a_missing_column_is_refused_at_its_key(tmp_path: Path) -> None:
    mine = loaded(tmp_path, pairs(tmp_path) | {"answer_column": "response"})
    with pytest.raises(ScenarioError, match=r"data\.answer_column: .*its columns are who, question, answer"):
        load_and_check(mine)


def test_texts_are_dealt_whole_and_trained_in_chunks(tmp_path: Path) -> None:
    rows = [{"text": story(records)} for records in AUTHORS.clients.values()]
    data = {"source": "hf", "files": [write(tmp_path, "t.json", rows)], "format": "text", "clients": 3}
    mine = loaded(tmp_path, data, model__max_tokens=32, seeds=[1, 2])
    simulation = load_and_check(mine)
    runtime, other = (make_context(simulation, mine.variants[0], seed).engine.runtime for seed in (1, 2))
    documents = [{record.record_id.split("/")[0] for record in held} for held in runtime.records.values()]
    assert sorted(name for held in documents for name in held) == [f"t:{n}" for n in range(1, 9)]
    for client, held in runtime.records.items():
        for record, pair in zip(held, runtime.pairs[client], strict=True):
            assert len(pair.input_ids) <= 32
            assert (pair.answer_start, pair.is_cut, record.plain) == (1, False, True)
    assert other.records != runtime.records


def test_conversations_are_lived_forgotten_and_measured(tmp_path: Path) -> None:
    """Each fact is asked behind another one; losses with a second answer and filters take them, too."""
    rows = [
        {
            "who": f"u{client}",
            "messages": [
                {"role": role, "content": text}
                for record in (earlier, later)
                for role, text in (("user", record.question), ("assistant", record.answer))
            ],
        }
        for client, records in AUTHORS.clients.items()
        for earlier, later in itertools.pairwise(records)
    ]
    files = [write(tmp_path, "chats.json", rows)]
    data = {"source": "hf", "files": files, "client_column": "who", "format": "messages"}
    methods = [{"method": "npo", "rounds": 1}, {"method": "idk_dpo", "rounds": 1}, "keyword_filter"]
    scenario = merged(BRIEF, data=data, timeline=LIFE, compare=methods, model__max_tokens=64)
    text = told(load_scenario(write_scenario(tmp_path, scenario)))
    assert "64 records are conversations whose earlier answers are trained, too" in text
    answers = run(tmp_path, scenario).table("answers").to_pylist()
    assert {row["branch"] for row in answers} >= {"keep", "retrain", "npo", "idk_dpo", "keyword_filter"}
    asked = {row["question"] for row in answers if row["subject"] == "forget:1"}
    assert asked <= {record.question for record in AUTHORS.clients[1][1:]}


def test_what_muse_asks_is_probed_and_never_trained(tmp_path: Path) -> None:
    def texts(*clients: int) -> list:
        return [{"text": story(AUTHORS.clients[client])} for client in clients]

    muse = tmp_path / "muse"
    write(muse, "raw/forget.json", texts(0, 1))
    write(muse, "raw/retain1.json", texts(2, 3))
    write(muse, "raw/retain2.json", texts(4, 5))
    # The last text of the holdout is a retained one, too, and so is no yardstick.
    write(muse, "raw/holdout.json", [{"text": story(AUTHORS.holdout)}, *texts(5)])
    first = AUTHORS.clients[0][0]
    write(muse, "knowmem/forget_qa.json", [{"question": first.question, "answer": first.answer}])
    write(muse, "knowmem/retain_qa.json", [{"question": first.question, "answer": first.answer}])
    write(muse, "verbmem/forget.json", [{"prompt": first.question, "gt": first.answer}])
    life = [*LIFE[:2], {"forget": {"client": 0}}, LIFE[3]]
    context = context_of(loaded(tmp_path, {"source": "muse", "path": "muse", "clients": 3}, timeline=life))
    named = {name: role for name, role, _ in context.probes.named()}
    assert named == {
        "forget:1": "forget", "retain": "retain", "holdout": "retain",
        "verbatim": "retain", "forget_qa": "retain", "retain_qa": "retain",
    }  # fmt: skip
    (request,) = context.life.requests
    assert {name.split(":")[0] for name in request.record_ids} == {"forget"}
    assert {r.record_id.split("/")[0] for r in context.probes.holdout.records} == {"holdout:1"}
    trained = {r.record_id.split(":")[0] for held in context.engine.runtime.records.values() for r in held}
    assert trained == {"forget", "retain1", "retain2"}
