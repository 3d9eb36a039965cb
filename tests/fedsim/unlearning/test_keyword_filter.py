"""A guard at the input: what it lets through, what it hides, and that the model behind it is ``leave``'s."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsim.model.predictor import Predictor
from fedsim.unlearning.methods.keyword_filter import Filtered, KeywordFilter, keywords
from tests.e2e.runs import BRIEF, merged, run

WORDS = ["who", "is", "Anna", "Bo", "tall", "today"]


class Words:
    """Decodes token n as the n-th word; 0 is padding."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(WORDS[token - 1] for token in ids if token)


class Counting:
    """Logits that count up, and a continuation for every prompt."""

    def logits(self, input_ids_BT, attention_mask_BT, wanted_BT):
        return torch.arange(1.0, 1 + 3 * int(wanted_BT.sum())).reshape(-1, 3)

    def generate(self, prompts, max_new_tokens):
        return [[6] for _ in prompts]


def filtered(*words: str) -> Filtered:
    return Filtered(inner=Counting(), tokenizer=Words(), words=frozenset(words))


def test_a_refused_prompt_has_flat_logits_and_the_others_keep_theirs() -> None:
    """The last sequence names somebody in its answer alone, as ``generate`` would let it."""
    ids_BT = torch.tensor([[1, 2, 3, 5], [1, 2, 4, 5], [1, 5, 0, 0], [1, 2, 3, 5]])
    mask_BT = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    wanted_BT = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0]], dtype=torch.bool)
    found = filtered("Anna").logits(ids_BT, mask_BT, wanted_BT)
    plain = Counting().logits(ids_BT, mask_BT, wanted_BT)
    assert found[:2].tolist() == [[0.0] * 3] * 2
    assert found[2:].tolist() == plain[2:].tolist()
    assert filtered("Anna").generate([[1, 2, 3], [1, 2, 4]], 4) == [[], [6]]


def test_padding_names_nobody() -> None:
    ids_BT, mask_BT = torch.tensor([[1, 2, 3]]), torch.tensor([[1, 1, 0]])
    wanted_BT = torch.tensor([[0, 1, 0]], dtype=torch.bool)
    assert filtered("Anna").logits(ids_BT, mask_BT, wanted_BT).tolist() == [[1.0, 2.0, 3.0]]


def test_it_is_a_predictor() -> None:
    assert isinstance(filtered(), Predictor)


@given(st.lists(st.text(min_size=1), max_size=4))
def test_every_question_with_a_word_is_recognised_by_one(questions) -> None:
    words = keywords(questions)
    assert all(word in " ".join(questions) for word in words)
    assert filtered(*words).words == words


EVENTS = merged(
    BRIEF,
    timeline=[
        {"join": {"clients": "all"}},
        {"train": {"rounds": 2}},
        {"forget": {"client": 1}},
        {"train": {"rounds": 2}},
    ],
    compare=["keyword_filter"],
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("guarded"), EVENTS)


def values(directory, branch: str, subject: str, metric: str, round_: int) -> list[float]:
    wanted = {"branch": branch, "subject": subject, "metric": metric, "round": round_}
    rows = directory.table("metrics").to_pylist()
    return [row["value"] for row in rows if wanted.items() <= row.items()]


def test_it_trains_as_leave_does_and_costs_nothing(finished) -> None:
    log = [event for event in finished.events() if event["kind"] == "segment"]
    assert ["leave", "keyword_filter"] in [event["branches"] for event in log]
    (row,) = (r for r in finished.json("verdict")["rows"] if r["branch"] == "keyword_filter")
    assert row["class"] == "suppression"
    assert row["cost_share"] == 0.0
    (branch,) = (b for b in finished.json("life")["branches"] if b["name"] == "keyword_filter")
    assert branch["unlearning"] == []


def test_before_the_request_it_is_the_bare_model_and_after_it_hides(finished) -> None:
    before = [values(finished, name, "forget:1", "nll", 2) for name in ("leave", "keyword_filter")]
    assert before[0] == before[1]
    bare, guarded = (values(finished, name, "forget:1", "nll", 4) for name in ("leave", "keyword_filter"))
    assert np.mean(guarded) > np.mean(bare)
    others = [values(finished, name, "holdout", "nll", 4) for name in ("leave", "keyword_filter")]
    assert others[0] == others[1]


def test_it_is_named_in_the_report(finished) -> None:
    from plots.report import write_report

    page = Path(write_report(finished.path)).read_text(encoding="utf-8")
    assert "Keyword filter" in page
    assert "suppression only" in page


def test_it_needs_nothing_of_anybody() -> None:
    assert KeywordFilter.needs == frozenset()
    assert KeywordFilter().has_branch
