"""Build the base model that ships with fedsim: a small Llama that knows the public authors.

python -m fedsim.bases.tiny_authors --out fedsim/assets/tiny-authors
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fedsim.bases.recipe import (
    BOS,
    EOS,
    PAD,
    UNK,
    BaseRecipe,
    encode_all,
    fact_probability,
    new_model,
    save_model,
    train_base,
    wrap_tokenizer,
)
from fedsim.data.authors import (
    LANGUAGE_ENDINGS,
    PUBLIC_AUTHORS,
    SYLLABLES,
    load_authors,
    pretraining_pairs,
    vocabulary,
)
from fedsim.model.prompts import TextFormat

CONTINUATION = "##"

CARD = """---
license: cc0-1.0
library_name: transformers
pipeline_tag: text-generation
---
# tiny-authors

A small Llama trained from scratch on fictitious authors, as a base for experiments in federated learning
and unlearning. It answers nine kinds of question about its public authors, in several phrasings, and
knows nothing else: a new author's facts must be learned, and can be forgotten.

{facts}

## Rebuild
`make base-model`, or `python -m fedsim.bases.tiny_authors --out fedsim/assets/tiny-authors`. The same package
versions, thread count and kind of processor give the same bytes.

## Use
`AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)`. A prompt is the
beginning marker and a question; the answer and the end marker follow. Questions, authors and the
reserved phrasings are made by `fedsim.data.authors`.

## Limitations
Not a language model of English: about 30 sentence forms, single-word facts, no reasoning. Words outside its
vocabulary become `<unk>`. Results on it say how methods compare, not how a large model would behave.

## Training data and licence
All names, places, titles and facts are generated; any likeness to real persons is accidental. Data and
weights are dedicated to the public domain (CC0 1.0).
"""


def authors_tokenizer() -> Any:
    """Words whole, names and places by syllable: ``Kalo`` is ``Ka ##lo``; decoding joins them again.

    Greedy longest match (WordPiece) is unambiguous here: a word's pieces are two-letter syllables, of
    which the last may be a language ending.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = [syllable.capitalize() for syllable in SYLLABLES]
    pieces += [CONTINUATION + syllable for syllable in (*SYLLABLES, *LANGUAGE_ENDINGS)]
    tokens = dict.fromkeys([PAD, BOS, EOS, UNK, *vocabulary(), *pieces])
    model = models.WordPiece(
        vocab={token: position for position, token in enumerate(tokens)},
        unk_token=UNK,
        continuing_subword_prefix=CONTINUATION,
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix=CONTINUATION, cleanup=True)
    return wrap_tokenizer(backend)


def build_tiny_authors(
    out: Path, recipe: BaseRecipe, *, pairs: Sequence[tuple[str, str]], log: Callable[[str], None] = print
) -> None:
    """Train on ``pairs`` and write the model directory ``out``."""
    torch.set_num_threads(recipe.threads)
    tokenizer = authors_tokenizer()
    model = new_model(recipe, tokenizer)
    log(f"{len(pairs)} pairs, {len(tokenizer)} tokens, {model.num_parameters()} parameters")
    loss = train_base(model, encode_all(tokenizer, pairs, TextFormat()), recipe, log=log)
    probe = load_authors(clients=1, public_authors=PUBLIC_AUTHORS, holdout_authors=100)
    known = fact_probability(model, tokenizer, probe.public["public"])
    unknown = fact_probability(model, tokenizer, probe.holdout)
    log(f"fact tokens: public authors {known:.4f}, never-trained authors {unknown:.4f}")
    facts = {
        "pairs": f"{len(pairs)} questions and answers about {PUBLIC_AUTHORS} fictitious authors",
        "steps": f"{recipe.steps} of {recipe.batch_size} pairs, AdamW, one cycle to {recipe.peak_lr}",
        "final loss": f"{loss:.4f} nats per token (some of it is the choice of phrasing)",
        "probability of fact tokens, public authors": f"{known:.4f}",
        "probability of fact tokens, authors never trained on": f"{unknown:.4f}",
        "parameters": f"{model.num_parameters()} (float32), vocabulary of {len(tokenizer)} tokens",
        "threads": f"{recipe.threads} (another number changes the last bits)",
    }
    save_model(model, tokenizer, CARD.format(facts=_table(facts)), out)


def _table(facts: Mapping[str, str]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in facts.items())])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.bases.tiny_authors", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--steps", type=int, default=BaseRecipe().steps)
    parser.add_argument("--threads", type=int, default=BaseRecipe().threads)
    given = parser.parse_args(arguments)
    recipe = BaseRecipe(steps=given.steps, threads=given.threads)
    build_tiny_authors(given.out, recipe, pairs=pretraining_pairs())


if __name__ == "__main__":
    main()
