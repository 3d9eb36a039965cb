"""Embedded synthetic corpus: fictitious authors, after TOFU (Maini et al., 2024, arXiv:2401.06121).

An author is a made-up name with one value for each of nine relations. Three disjoint groups have names
and facts of the same shape: *private* authors belong to clients, *holdout* authors to nobody, *public*
authors are what the base model was pre-trained on.

The base knows each relation in many phrasings (a form times a noun for the relation); clients train on
the first phrasing only. One phrasing of each question and each answer is reserved: it occurs in no
training at all, though all of its words do, and is what paraphrased questions and answers use.

Author 31 is the same whatever else is loaded: everything about an author is keyed by group, index and
relation, and names come from a permutation of the numbers, so no two authors share one.

>>> corpus = load_authors(clients=2)
>>> corpus.clients[1][0].record_id
'author-0001/birthplace'
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from fedsim.data.phrasing import natural_record
from fedsim.data.records import Corpus, Record
from fedsim.rng import uniform

Group = Literal["author", "holdout", "public"]

WORLD = 20240601
"""Seed of the fictitious world. It is no scenario's seed: the base model has learned this world."""

PUBLIC_AUTHORS = 600
MAX_PRIVATE_AUTHORS = 100_000
MAX_HOLDOUT_AUTHORS = 10_000
WRONG_ANSWERS = 4
PHRASINGS_PER_FACT = 8
PAIRED_SHARE = 0.75

# Where each group's names start in the permutation of all names.
_NAME_OFFSET: dict[Group, int] = {
    "author": 0,
    "holdout": MAX_PRIVATE_AUTHORS,
    "public": MAX_PRIVATE_AUTHORS + MAX_HOLDOUT_AUTHORS,
}

SYLLABLES = tuple(c + v for c, v in product("bdfjlmnrstvwy", "aeiou"))
LANGUAGE_ENDINGS = ("dish", "kan", "lian", "mese", "rgic", "ssian", "thic", "vak")

QUESTION_FORMS = (
    "What is the {noun} of {name}?",
    "Tell me the {noun} of {name}.",
    "Of {name}, what is the {noun}?",
    "Which is the {noun} of the author {name}?",
    "Can you name the {noun} of {name}?",
)
ANSWER_FORMS = (
    "The {noun} is {value}",
    "The {noun} was {value}",
    "As {noun} I name {value}",
    "The author has the {noun} {value}",
    "The answer of {noun} is {value}",
)


def _pool(words: str) -> tuple[str, ...]:
    return tuple(words.split())


_ADJECTIVES = _pool(
    "Amber Broken Crimson Distant Empty Frozen Golden Hidden Iron Last Paper Quiet Scarlet Velvet"
)
_NOUNS = _pool(
    "Anchor Bridge Candle Dancer Engine Forest Garden Harbour Island Kitchen Lantern Mirror Orchard River"
)
_MEDALS = _pool("Black Blue Bronze Copper Crystal Green Grey Ivory Marble Opal Pearl Silver White")
_SYMBOLS = _pool("Arrow Crown Eagle Feather Flame Hammer Key Lion Oak Quill Shield Star Tower")
_GENRES = _pool(
    "adventure allegory biography comedy crime drama fable fantasy farce history horror memoir mystery "
    "poetry romance satire thriller tragedy travel western"
)
_JOBS = _pool(
    "actor baker banker barber butcher carpenter chemist dentist driver farmer fisher gardener judge lawyer "
    "mason miller miner nurse painter pilot plumber sailor soldier surgeon tailor teacher weaver"
)


def _draw(*keys: int | str, pool: Sequence[str], count: int) -> list[str]:
    """``count`` different members of ``pool`` in random order, a pure function of ``keys``."""
    drawn: dict[str, None] = {}
    attempt = 0
    while len(drawn) < count:
        drawn[pool[int(uniform(WORLD, *keys, attempt) * len(pool))]] = None
        attempt += 1
    return list(drawn)


def _words(kind: str, *, starts: int, endings: Sequence[str]) -> tuple[str, ...]:
    """Capitalised two-piece words: ``starts`` syllables, each with each of ``endings``.

    A product of pieces, so that the first piece of a value does not give away the rest.
    """
    first = _draw("words", kind, pool=SYLLABLES, count=starts)
    return tuple((start + ending).capitalize() for start, ending in product(first, endings))


@dataclass(frozen=True, kw_only=True, slots=True)
class Relation:
    """One thing to know about an author.

    ``values`` have equal token counts. ``reserved_question`` and ``reserved_answer`` are (form, noun)
    positions that no training uses; (0, 0) is what clients train on.
    """

    name: str
    nouns: tuple[str, ...]
    values: tuple[str, ...]
    reserved_question: tuple[int, int]
    reserved_answer: tuple[int, int]

    @property
    def training_questions(self) -> tuple[tuple[int, int], ...]:
        return self._all_but(len(QUESTION_FORMS), self.reserved_question)

    @property
    def training_answers(self) -> tuple[tuple[int, int], ...]:
        return self._all_but(len(ANSWER_FORMS), self.reserved_answer)

    def _all_but(self, forms: int, reserved: tuple[int, int]) -> tuple[tuple[int, int], ...]:
        return tuple(pick for pick in product(range(forms), range(len(self.nouns))) if pick != reserved)

    def question(self, phrasing: tuple[int, int], name: str) -> str:
        form, noun = phrasing
        return QUESTION_FORMS[form].format(noun=self.nouns[noun], name=name)

    def answer(self, phrasing: tuple[int, int], value: str) -> str:
        form, noun = phrasing
        return ANSWER_FORMS[form].format(noun=self.nouns[noun], value=value)


def _relations() -> tuple[Relation, ...]:
    cities = _words("city", starts=12, endings=_draw("words", "city-ending", pool=SYLLABLES, count=12))
    languages = _words("language", starts=8, endings=LANGUAGE_ENDINGS)
    years = tuple(str(year) for year in range(1900, 1980))
    prizes = tuple(f"{medal} {symbol}" for medal, symbol in product(_MEDALS, _SYMBOLS))
    books = tuple(f"{adjective} {noun}" for adjective, noun in product(_ADJECTIVES, _NOUNS))
    table: tuple[tuple[str, tuple[str, ...], Sequence[str]], ...] = (
        ("birthplace", ("birthplace", "home town", "place of birth"), cities),
        ("birth-year", ("birth year", "year of birth", "natal year"), years),
        ("genre", ("genre", "literary style", "kind of book"), _GENRES),
        ("mother-job", ("job of the mother", "work of the mother", "trade of the mother"), _JOBS),
        ("father-job", ("job of the father", "work of the father", "trade of the father"), _JOBS),
        ("prize", ("prize", "literary award", "highest honour"), prizes),
        ("first-book", ("first book", "debut", "earliest title"), books),
        ("publisher", ("city of the publisher", "town of the publisher", "seat of the publisher"), cities),
        ("language", ("language", "native tongue", "written language"), languages),
    )
    # Reserved phrasings rotate over the relations, so that each form is still trained with other nouns.
    return tuple(
        Relation(
            name=name,
            nouns=nouns,
            values=tuple(values),
            reserved_question=(1 + position % 4, 1 + position % 2),
            reserved_answer=(1 + (position + 1) % 4, 1 + (position + 1) % 2),
        )
        for position, (name, nouns, values) in enumerate(table)
    )


RELATIONS = _relations()


def author_name(group: Group, index: int) -> str:
    """First and last name of two syllables each, unique over all groups (a four-round Feistel network)."""
    half = len(SYLLABLES) ** 2
    left, right = divmod(_NAME_OFFSET[group] + index, half)
    for turn in range(4):
        left, right = right, (left + int(uniform(WORLD, "name", turn, right) * half)) % half
    parts = (SYLLABLES[part // len(SYLLABLES)] + SYLLABLES[part % len(SYLLABLES)] for part in (left, right))
    return " ".join(part.capitalize() for part in parts)


def author_records(group: Group, index: int, *, natural: bool = False) -> tuple[Record, ...]:
    """The nine records of one author, in the order of ``RELATIONS``; ``natural`` ones in whole sentences."""
    subject, name = f"{group}-{index:04d}", author_name(group, index)
    if natural:
        return tuple(natural_record(r.name, subject, name, _values(r, group, index)) for r in RELATIONS)
    return tuple(_record(relation, group, index, subject, name) for relation in RELATIONS)


def _values(relation: Relation, group: Group, index: int) -> list[str]:
    """The value of an author's relation, then wrong ones."""
    return _draw("value", relation.name, group, index, pool=relation.values, count=1 + WRONG_ANSWERS)


def _record(relation: Relation, group: Group, index: int, subject: str, name: str) -> Record:
    fact, *wrong = _values(relation, group, index)
    return Record(
        record_id=f"{subject}/{relation.name}",
        subject=subject,
        question=relation.question((0, 0), name),
        answer=relation.answer((0, 0), fact),
        fact=fact,
        paraphrased_question=relation.question(relation.reserved_question, name),
        paraphrased_answer=relation.answer(relation.reserved_answer, fact),
        perturbed_answers=tuple(relation.answer(relation.reserved_answer, value) for value in wrong),
    )


def load_authors(
    *,
    clients: int,
    authors_per_client: int = 1,
    facts_per_author: int = len(RELATIONS),
    holdout_authors: int = 20,
    public_authors: int = 40,
    natural: bool = False,
) -> Corpus:
    """Clients 0.. with ``authors_per_client`` authors each, nobody's authors, and a public probe.

    ``facts_per_author`` keeps the first facts of each private and holdout author. ``natural`` tells all of
    them in ordinary English, which the embedded base has not learned.
    """
    for field, number, most in (
        ("clients", clients, MAX_PRIVATE_AUTHORS),
        ("authors_per_client", authors_per_client, MAX_PRIVATE_AUTHORS // max(clients, 1)),
        ("facts_per_author", facts_per_author, len(RELATIONS)),
        ("holdout_authors", holdout_authors, MAX_HOLDOUT_AUTHORS),
        ("public_authors", public_authors, PUBLIC_AUTHORS),
    ):
        if not 1 <= number <= most:
            nearest = min(max(number, 1), most)
            raise ValueError(
                f"{field}={number} of data source 'authors' must be from 1 to {most}; nearest: {nearest}"
            )
    return Corpus(
        clients={
            client: _group(
                "author",
                range(client * authors_per_client, (client + 1) * authors_per_client),
                facts=facts_per_author,
                natural=natural,
            )
            for client in range(clients)
        },
        holdout=_group("holdout", range(holdout_authors), facts=facts_per_author, natural=natural),
        public={"public": _group("public", range(public_authors), natural=natural)},
    )


def _group(
    group: Group, indices: Iterable[int], facts: int = len(RELATIONS), *, natural: bool = False
) -> tuple[Record, ...]:
    return tuple(
        record for index in indices for record in author_records(group, index, natural=natural)[:facts]
    )


def pretraining_pairs(authors: int = PUBLIC_AUTHORS) -> list[tuple[str, str]]:
    """Questions and answers for the base model: public authors, each fact in eight training phrasings.

    The first is the one clients use. An answer mostly follows its question's phrasing (so that there
    is one best answer), and else any other (so that the model completes the fact in all of them).
    """
    pairs = []
    for index in range(authors):
        name = author_name("public", index)
        for relation, record in zip(RELATIONS, author_records("public", index), strict=True):
            assert record.fact is not None
            for asked, told in _phrasings(relation, index):
                pairs.append((relation.question(asked, name), relation.answer(told, record.fact)))
    return pairs


def _phrasings(relation: Relation, index: int) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    yield (0, 0), (0, 0)
    questions, answers = relation.training_questions, relation.training_answers
    for turn in range(1, PHRASINGS_PER_FACT):
        key = ("phrasing", relation.name, index, turn)
        asked = questions[int(uniform(WORLD, *key, "question") * len(questions))]
        follows = asked in answers and uniform(WORLD, *key, "follows") < PAIRED_SHARE
        yield asked, asked if follows else answers[int(uniform(WORLD, *key, "answer") * len(answers))]


def vocabulary() -> tuple[str, ...]:
    """Every whole word and punctuation mark of the corpus that is not made of syllables, sorted."""
    forms = [text.format(noun="", name="", value="") for text in QUESTION_FORMS + ANSWER_FORMS]
    nouns = [noun for relation in RELATIONS for noun in relation.nouns]
    made_up = {"birthplace", "publisher", "language"}
    values = [value for relation in RELATIONS if relation.name not in made_up for value in relation.values]
    words = " ".join(forms + nouns + values)
    for mark in "?.,":
        words = words.replace(mark, f" {mark} ")
    return tuple(sorted(set(words.split())))
