"""The model's part of a scenario."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fedsim.config import Bool, Config, ConfigError, Float, Int
from fedsim.model.lora_options import check_option
from fedsim.model.lora_starts import changes_base, check_start, known_start
from fedsim.model.prompts import is_template


class LoraConfig(Config):
    """Low-rank adapters, by PEFT."""

    r: Int = Field(default=8, ge=1, le=1024)
    """Rank."""
    alpha: Float = Field(default=16.0, gt=0)
    """Scale: the delta is alpha / r * B A."""
    dropout: Float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input, drawn from a keyed stream."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """Layers to adapt: names, a regular expression, or ``all-linear``."""
    train: Literal["AB", "B"] = "AB"
    """Which factors clients train; with ``B`` the average of the factors is the average of the deltas."""
    init: Annotated[str, AfterValidator(known_start)] = "default"
    """How the factors start. ``default``, ``gaussian`` and ``orthogonal``: drawn for every seed. ``pissa``,
    ``pissa_niter_N`` (fast), ``olora``: parts of the base, which gives them up. ``eva``, ``corda``,
    ``corda_kpm``: from what it makes of the data's public records."""
    peft: dict[str, Any] = Field(default_factory=dict)
    """Other options of PEFT's LoraConfig, passed on as they are; listed in `fedsim.model.lora_options`."""

    @model_validator(mode="after")
    def _options_work(self) -> LoraConfig:
        for name, value in self.peft.items():
            check_option(name, value)
        check_start(self.init, self.r, self.peft)
        return self


MOST_QUESTIONS = 4
"""How often a prompt may repeat the question."""


def _usable(prompt: str) -> str:
    if prompt == "chat" or is_template(prompt):
        return prompt
    count = prompt.count("{question}")
    if count == 0:
        raise ValueError(f"found {prompt!r}; must contain the placeholder {{question}}, or be chat")
    if count > MOST_QUESTIONS:
        raise ValueError(f"repeats {{question}} {count:,} times; at most {MOST_QUESTIONS}")
    return prompt


class ModelConfig(Config):
    """The frozen base and what is trained on it."""

    base: str = "tiny-authors"
    """An embedded base, a Hugging Face model directory, or a name on the hub."""
    revision: str | None = None
    """Revision on the hub."""
    lora: LoraConfig | None = LoraConfig()
    """Adapters; null trains all parameters."""
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Type of the base's weights; what is trained is always float32. ``auto`` is bfloat16 where a trial shows
    it to be faster, else float32."""
    quantize: Literal["4bit", "8bit"] | None = None
    """Bits of the base's weights, by bitsandbytes on a CUDA GPU: 4 (NF4) or 8, computed in ``dtype``; null
    keeps them in ``dtype``. What is trained are LoRA adapters beside them."""
    checkpointing: Bool = False
    """Whether each block of the base is computed again in the backward pass: less memory, about a third more
    time, the same gradients."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """How attention is computed, by the name that transformers has for it; ``auto`` is its own choice. Packed
    rows are taken apart for it; with ``eager``, which cannot do without a mask, rows are padded instead."""
    prompt: Annotated[str, AfterValidator(_usable)] = "{question}"
    """How a question becomes a prompt: words around {question}; ``chat`` for the base's own chat template; or
    a chat template in Jinja."""
    system: str | None = None
    """System message before the question, for chat templates."""
    max_tokens: Int = Field(default=128, ge=8, le=8192)
    """Longest prompt with its answer, in tokens; longer ones are cut."""
    truncation: Literal["left", "right"] = "left"
    """Where longer ones are cut. ``left`` takes the beginning of the prompt, then the end of an answer;
    ``right`` takes the end of the answer, and the beginning of a prompt that alone is too long."""

    @model_validator(mode="after")
    def _system_needs_a_chat(self) -> ModelConfig:
        if self.system is not None and self.prompt != "chat" and not is_template(self.prompt):
            raise ConfigError("a system message needs prompt: chat, or a chat template in Jinja", "system")
        return self

    @model_validator(mode="after")
    def _rounded_weights_stay(self) -> ModelConfig:
        if self.quantize is not None and self.lora is None:
            raise ConfigError(
                f"{self.quantize} weights cannot be trained; give model.lora, or leave quantize null",
                "quantize",
            )
        if self.quantize is not None and self.lora is not None and changes_base(self.lora.init):
            raise ConfigError(
                f"{self.quantize} weights cannot give up what lora.init={self.lora.init} starts with; "
                "choose a start that leaves the base as it is, default for example, or leave quantize null",
                "quantize",
            )
        return self
