"""Plain texts in pieces: which records are cut, and what pieces are called."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.chunks import chunked
from fedsim.data.records import Corpus, Record


def text(name, answer, question=""):
    return Record(record_id=name, subject="s", question=question, answer=answer, plain=True)


QA = Record(record_id="q", subject="s", question="one two", answer="three four")


def test_texts_are_cut_everywhere_and_nothing_else_is():
    corpus = Corpus(
        clients={4: (text("a", "one two"), QA)},
        holdout=(text("b", "three"),),
        public={"p": (text("c", "four five"),)},
        asked={"v": (text("d", "six seven", "given text"),)},
    )
    cut = chunked(corpus, str.split)
    assert [(r.record_id, r.answer) for r in cut.clients[4]] == [
        ("a/0", "one"), ("a/1", "two"), ("q", "three four")]  # fmt: skip
    assert [r.record_id for r in cut.holdout] == ["b/0"]
    assert [r.record_id for r in cut.public["p"]] == ["c/0", "c/1"]
    assert cut.asked == corpus.asked
    assert all(r.plain and r.subject == "s" for r in cut.holdout)


def test_a_text_without_pieces_is_refused():
    with pytest.raises(ValueError, match="text a has less than two tokens"):
        chunked(Corpus(clients={0: (text("a", "one"),)}, holdout=(), public={}), lambda text: [])


@settings(deadline=None)
@given(st.lists(st.text("ab ", min_size=1).filter(str.strip), min_size=2, max_size=5))
def test_pieces_of_a_text_do_not_depend_on_the_others(texts):
    records = [text(f"t:{place}", written) for place, written in enumerate(texts)]
    whole = chunked(Corpus(clients={0: tuple(records)}, holdout=(), public={}), str.split).clients[0]
    alone = chunked(Corpus(clients={0: (records[1],)}, holdout=(), public={}), str.split).clients[0]
    assert [record for record in whole if record.record_id.startswith("t:1/")] == list(alone)
