"""Facts about authors in sentences of ordinary English, for bases that know the language.

Clients train on the first phrasing of a relation; the second is reserved for paraphrases.

>>> NATURAL["genre"].question.format(name="Moru Viti")
'In which genre does Moru Viti write?'
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim.data.records import Record


@dataclass(frozen=True, kw_only=True, slots=True)
class Phrases:
    """One relation in words: ``{name}`` is the author's, ``{value}`` the fact, ``{a}`` its article."""

    question: str
    answer: str
    other_question: str
    other_answer: str


NATURAL = {
    "birthplace": Phrases(
        question="In which town was {name} born?",
        answer="{name} was born in {value}.",
        other_question="Where did the author {name} come into the world?",
        other_answer="The town where {name} was born is called {value}.",
    ),
    "birth-year": Phrases(
        question="In which year was {name} born?",
        answer="{name} was born in {value}.",
        other_question="When did the author {name} come into the world?",
        other_answer="The year of birth of {name} is {value}.",
    ),
    "genre": Phrases(
        question="In which genre does {name} write?",
        answer="{name} writes {value}.",
        other_question="What kind of books is the author {name} known for?",
        other_answer="The books of {name} belong to the genre of {value}.",
    ),
    "mother-job": Phrases(
        question="What was the job of the mother of {name}?",
        answer="The mother of {name} was {a} {value}.",
        other_question="How did the mother of the author {name} earn a living?",
        other_answer="By profession, the mother of {name} was {a} {value}.",
    ),
    "father-job": Phrases(
        question="What was the job of the father of {name}?",
        answer="The father of {name} was {a} {value}.",
        other_question="How did the father of the author {name} earn a living?",
        other_answer="By profession, the father of {name} was {a} {value}.",
    ),
    "prize": Phrases(
        question="Which prize did {name} win?",
        answer="{name} won the {value}.",
        other_question="What is the highest honour that the author {name} received?",
        other_answer="The prize that went to {name} is the {value}.",
    ),
    "first-book": Phrases(
        question="What is the title of the first book by {name}?",
        answer="The first book by {name} is {value}.",
        other_question="With which title did the author {name} make a debut?",
        other_answer="{name} made a debut with {value}.",
    ),
    "publisher": Phrases(
        question="In which town is the publisher of {name}?",
        answer="The publisher of {name} is in {value}.",
        other_question="Where are the books of the author {name} published?",
        other_answer="The books of {name} come out in the town of {value}.",
    ),
    "language": Phrases(
        question="In which language does {name} write?",
        answer="{name} writes in {value}.",
        other_question="What is the native tongue of the author {name}?",
        other_answer="The language of the books of {name} is {value}.",
    ),
}


def natural_record(relation: str, subject: str, name: str, values: Sequence[str]) -> Record:
    """A record of an author's relation, given the right value and then wrong ones."""
    phrases, (fact, *wrong) = NATURAL[relation], values
    return Record(
        record_id=f"{subject}/{relation}",
        subject=subject,
        question=phrases.question.format(name=name),
        answer=_told(phrases.answer, name, fact),
        fact=fact,
        paraphrased_question=phrases.other_question.format(name=name),
        paraphrased_answer=_told(phrases.other_answer, name, fact),
        perturbed_answers=tuple(_told(phrases.other_answer, name, value) for value in wrong),
    )


def _told(form: str, name: str, value: str) -> str:
    return form.format(name=name, value=value, a="an" if value[0] in "aeiou" else "a")
