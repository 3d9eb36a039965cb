"""What became of the texts when they were encoded: their length, what was cut, what is unknown.

Counts are of each client's records; nothing is changed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from fedsim.config import ConfigError
from fedsim.data.names import ClientNames
from fedsim.data.records import Record
from fedsim.model.adapter import AdapterModel
from fedsim.model.text import Pair

ENOUGH = 8
"""Tokens of a question below which nearly all of it is gone."""
EXAMPLE = 400
"""Characters of a record that are shown, the last ones."""
FEW = 0.5
"""Share of the tokens a base embeds below which its tokenizer is taken for another's."""
MANY = 0.2
"""Share of unknown tokens above which a base is called one that cannot read the texts."""


@dataclass(frozen=True, kw_only=True)
class TokenFacts:
    """Counts over the records of one client, or of all: tokens are those that are kept, end markers included.

    ``unknown`` counts answer tokens that the base's vocabulary does not hold, of ``answer_tokens``;
    ``longest`` is the length of the longest record before it was cut.
    """

    records: int
    tokens: int
    answer_tokens: int
    unknown: int
    cut_prompts: int
    cut_answers: int
    longest: int

    @classmethod
    def of(cls, pairs: Sequence[Pair], unknown_id: int | None) -> TokenFacts:
        answers = [pair.input_ids[pair.answer_start : pair.answer_end] for pair in pairs]
        return cls(
            records=len(pairs),
            tokens=sum(len(pair.input_ids) for pair in pairs),
            answer_tokens=sum(len(answer) for answer in answers),
            unknown=sum(answer.count(unknown_id) for answer in answers),
            cut_prompts=sum(pair.cut_prompt > 0 for pair in pairs),
            cut_answers=sum(pair.is_cut for pair in pairs),
            longest=max((_whole(pair) for pair in pairs), default=0),
        )


def token_facts(pairs: Mapping[int, Sequence[Pair]], tokenizer: Any) -> dict[int, TokenFacts]:
    """Counts of each client that holds records."""
    unknown = tokenizer.unk_token_id
    return {client: TokenFacts.of(held, unknown) for client, held in sorted(pairs.items()) if held}


def token_sentences(
    pairs: Mapping[int, Sequence[Pair]], model: AdapterModel, max_tokens: int, names: ClientNames
) -> list[str]:
    """What a user should know before a run: lengths, cuts, unknown words; the client they hit most."""
    by_client = token_facts(pairs, model.tokenizer)
    every = TokenFacts.of([pair for held in pairs.values() for pair in held], model.tokenizer.unk_token_id)
    if not every.records:
        return []
    lengths = [len(pair.input_ids) for held in pairs.values() for pair in held]
    sentences = [
        f"{every.tokens:,} tokens in {every.records:,} records; a record has {min(lengths)} to "
        f"{max(lengths)}, {median(lengths):g} at the median.",
        *_of_another_base(model),
        *_told_otherwise(pairs, model),
        _example(pairs, model.tokenizer),
    ]
    for name, key, rest in (
        (
            "questions",
            "cut_prompts",
            f"Training, probes and generation see the same rest.{_hardly(pairs, model)}",
        ),
        ("answers", "cut_answers", "No end marker follows a cut answer."),
    ):
        count = getattr(every, key)
        if count:
            worst = max(by_client, key=lambda client: getattr(by_client[client], key))
            sentences.append(
                f"{count:,} of {every.records:,} {name} are cut at model.max_tokens={max_tokens} "
                f"({names.text(worst)}: {getattr(by_client[worst], key)} of {by_client[worst].records}); "
                f"the longest record needs {every.longest}. {rest}"
            )
    if every.unknown:
        share = {client: facts.unknown / facts.answer_tokens for client, facts in by_client.items()}
        worst = max(share, key=lambda client: share[client])
        total = every.unknown / every.answer_tokens
        more = (
            "; what it cannot read it cannot learn: use a base that knows these words" if total > MANY else ""
        )
        sentences.append(
            f"{total:.0%} of the answers' tokens are unknown to this base "
            f"({names.text(worst)}: {share[worst]:.0%}){more}."
        )
    return sentences


def _hardly(pairs: Mapping[int, Sequence[Pair]], model: AdapterModel) -> str:
    """How many cut questions leave next to nothing to be asked by."""
    left = [pair.answer_start for held in pairs.values() for pair in held if pair.cut_prompt]
    few = sum(count < ENOUGH for count in left)
    if not few:
        return ""
    instead = ", or cut answers first by model.truncation: right" if model.fmt.truncation == "left" else ""
    return f" Of {few:,} of them fewer than {ENOUGH} tokens are left: raise model.max_tokens{instead}."


def _of_another_base(model: AdapterModel) -> Iterator[str]:
    """That a tokenizer knows far fewer tokens than its base embeds; some bases have room for a few more."""
    module: Any = model.module
    known, rows = len(model.tokenizer), int(module.get_input_embeddings().weight.shape[0])
    if known < FEW * rows:
        yield f"The base embeds {rows:,} tokens, and its tokenizer knows {known:,}: it may be another base's."


def _told_otherwise(pairs: Mapping[int, Sequence[Pair]], model: AdapterModel) -> Iterator[str]:
    """What of conversations is trained and not asked about, and whether a chat template is left unused."""
    talks = [pair for held in pairs.values() for pair in held if pair.earlier_trained]
    if talks:
        yield (
            f"{len(talks):,} records are conversations whose earlier answers are trained, too, "
            f"{sum(len(pair.earlier_trained) for pair in talks):,} tokens; asked about is the last alone."
        )
    template = model.tokenizer.chat_template
    if template is not None and model.fmt.chat is None and model.fmt.prompt == "{question}":
        yield "This base has a chat template, which is not used; prompt: chat would use it."


def _example(pairs: Mapping[int, Sequence[Pair]], tokenizer: Any) -> str:
    """One record as text, with what is trained in brackets; a conversation where there is one."""
    held = [pair for of_client in pairs.values() for pair in of_client]
    pair = max(held, key=lambda one: len(one.earlier_trained) > 0)
    trained = {*pair.earlier_trained, *range(pair.answer_start, len(pair.input_ids))}
    told = groupby(range(len(pair.input_ids)), key=trained.__contains__)
    texts = [(kind, tokenizer.decode([pair.input_ids[place] for place in places])) for kind, places in told]
    whole = "".join(f"⟦{text}⟧" if kind else text for kind, text in texts).replace("\n", "⏎")
    shown = whole if len(whole) <= EXAMPLE else f"… {whole[-EXAMPLE:]}"
    return f"A record as it is trained, in brackets what is learned: {shown}"


def check_tokens(
    records: Mapping[int, Sequence[Record]],
    pairs: Mapping[int, Sequence[Pair]],
    probed: Iterable[Pair],
    model: AdapterModel,
    max_tokens: int,
) -> None:
    """Refuse texts that the base cannot take, and cuts that leave nothing to measure.

    ``probed`` are pairs beyond the clients' own that are asked about.

    Raises:
        ConfigError: its key is below ``model``.
    """
    every = [pair for held in pairs.values() for pair in held]
    _check_range([pair.input_ids for pair in (*every, *probed)], model, max_tokens)
    lost = [
        (record, pair)
        for client, held in records.items()
        for record, pair in zip(held, pairs[client], strict=True)
        if record.fact is not None and not any(pair.fact_mask)
    ]
    if lost:
        record, _ = lost[0]
        before = "" if model.fmt.truncation == "left" else "; truncation: left cuts the prompt first"
        raise ConfigError(
            f"max_tokens={max_tokens} cuts the fact off {len(lost)} of {len(every)} records "
            f"({record.record_id}: {record.fact!r}), so nothing of it could be learnt or forgotten; the "
            f"longest of them needs {max(_whole(pair) for _, pair in lost)}{before}",
            "max_tokens",
        )
    unknown = model.tokenizer.unk_token_id
    if every and all(set(pair.input_ids[pair.answer_start : pair.answer_end]) == {unknown} for pair in every):
        raise ConfigError(
            f"base={model.base_name!r} knows no word of any of the {len(every)} answers: to it they are all "
            "the same unknown tokens; use a base that knows this language",
            "base",
        )


def _check_range(encoded: Sequence[Sequence[int]], model: AdapterModel, max_tokens: int) -> None:
    """Refuse texts longer than the base has positions, and tokens that it does not embed."""
    longest = max((len(ids) for ids in encoded), default=0)
    if model.positions is not None and longest > model.positions:
        raise ConfigError(
            f"records take up to {longest} tokens with max_tokens={max_tokens}, and the base has "
            f"{model.positions} positions; use {model.positions} or less",
            "max_tokens",
        )
    highest = max((max(ids) for ids in encoded), default=0)
    if highest >= model.vocabulary:
        token = model.tokenizer.convert_ids_to_tokens(highest)
        raise ConfigError(
            f"the tokenizer gives token {highest} ({token!r}), and the base embeds {model.vocabulary} "
            "tokens; use the tokenizer that belongs to the base",
            "base",
        )


def _whole(pair: Pair) -> int:
    """Tokens of a pair before anything was cut, its end marker included."""
    return (
        len(pair.input_ids)
        + pair.cut_prompt
        + pair.cut_answer
        + (pair.continues_at is None and not pair.ended)
    )
