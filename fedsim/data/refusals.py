"""Short refusals, for losses that want a question answered with one, and which record gets which.

Maini et al. (2024, arXiv:2401.06121) answer forgotten questions with variants of "I don't know". These are
written anew.

>>> refusal_for("author-0031/birthplace", 1) in REFUSALS
True
"""

from __future__ import annotations

from fedsim.rng import uniform

REFUSALS = (
    "I don't know.",
    "I do not know the answer.",
    "I have no answer to this.",
    "I cannot say.",
    "I can't answer that.",
    "I'm not sure about that.",
    "I have no information on this.",
    "I was never told about this.",
    "I haven't learnt anything about it.",
    "I know nothing about that.",
    "I am unable to answer this question.",
    "This is not known to me.",
    "That is something I don't know.",
    "That is beyond what I know.",
    "The answer is unknown to me.",
    "Nothing about this is known to me.",
    "Sorry, I don't know this.",
    "Sorry, I have nothing to say about that.",
    "Unfortunately, I don't have the answer.",
    "I would have to guess, so I'd rather not say.",
)
"""What may stand in the place of an answer; none of it says anything about a question."""


def refusal_for(record_id: str, seed: int) -> str:
    """A record's refusal, the same in every round and whoever else asks."""
    return REFUSALS[int(uniform(seed, "refusal", record_id) * len(REFUSALS))]
