"""Build a base model for TOFU: a small Llama trained from scratch on the authors that are nobody's.

    python -m fedsim.bases.tofu --data FOLDER --out models/tofu-base

Trained on authors 20-179 of TOFU (Maini et al., 2024, arXiv:2401.06121) with a byte-level BPE vocabulary
(Sennrich et al., 2016, arXiv:1508.07909) of their text. Clients (authors 180-199) and holdout (0-19)
are new to it. It stands in for a fine-tuned large model where there is no network and no GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
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
    new_model,
    save_model,
    train_base,
    wrap_tokenizer,
)
from fedsim.data.tofu import tofu_base_pairs
from fedsim.model.prompts import TextFormat

VOCABULARY = 4096
RECIPE = BaseRecipe(layers=4, steps=1500, batch_size=32, peak_lr=2e-3)

CARD = """---
library_name: transformers
pipeline_tag: text-generation
---
# tofu-base

A small Llama trained from scratch on authors 20-179 of TOFU ({pairs} questions and answers), {steps} steps
of {batch_size}; final loss {loss:.4f} nats per token; {parameters} parameters (float32), byte-level BPE of
{vocabulary} tokens. It has never seen authors 0-19 and 180-199. It speaks of nothing else, and knows no real
authors and no world facts.

Rebuild: `make tofu-base DATA=folder`. The data are TOFU's and keep their licence.
"""


def bpe_tokenizer(texts: Sequence[str], *, size: int = VOCABULARY) -> Any:
    """A byte-level BPE tokenizer learned from ``texts``; any text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[PAD, BOS, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return wrap_tokenizer(backend)


def build_tofu_base(
    data: Path, out: Path, recipe: BaseRecipe = RECIPE, *, log: Callable[[str], None] = print
) -> None:
    """Train on authors 20-179 in folder ``data`` and write the model directory ``out``."""
    pairs = tofu_base_pairs(data)
    torch.set_num_threads(recipe.threads)
    # The answer follows a space (TextFormat's separator), so that is the form to learn merges from.
    tokenizer = bpe_tokenizer([text for question, answer in pairs for text in (question, " " + answer)])
    model = new_model(recipe, tokenizer)
    log(f"{len(pairs)} pairs, {len(tokenizer)} tokens, {model.num_parameters()} parameters")
    loss = train_base(model, encode_all(tokenizer, pairs, TextFormat()), recipe, log=log)
    card = CARD.format(
        pairs=len(pairs),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        loss=loss,
        parameters=model.num_parameters(),
        vocabulary=len(tokenizer),
    )
    save_model(model, tokenizer, card, out)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m fedsim.bases.tofu", description="Build a base for TOFU.")
    parser.add_argument("--data", type=Path, required=True, help="folder with TOFU's JSON lines")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    given = parser.parse_args(arguments)
    build_tofu_base(given.data, given.out)


if __name__ == "__main__":
    main()
