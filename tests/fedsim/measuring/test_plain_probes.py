"""Plain text in probes: scored whole, continued from its first half; and metrics that no record can have."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from fedsim.data.records import Record
from fedsim.measuring.probe import build_probe
from fedsim.measuring.probes import ProbeSet, absent_metrics, absent_sentences
from fedsim.measuring.scoring import score_probe
from fedsim.model.prompts import TextFormat
from tests.world import word_tokenizer

TOKENIZER = word_tokenizer()
FORMAT = TextFormat(prompt="w39 {question}", max_tokens=8)
SIZE = len(TOKENIZER)


@dataclass(frozen=True)
class Successor:
    """A predictor that is nearly sure of the next word in the list after each word, and goes on with it."""

    sure: float = 10.0

    def logits(self, input_ids_BT, attention_mask_BT, wanted_BT):
        following_BT = (input_ids_BT + 1) % SIZE
        return (torch.nn.functional.one_hot(following_BT, SIZE) * self.sure)[wanted_BT]

    def generate(self, prompts, max_new_tokens):
        return [[(prompt[-1] + 1 + step) % SIZE for step in range(max_new_tokens)] for prompt in prompts]


def text(name, answer, question=""):
    return Record(record_id=name, subject="s", question=question, answer=answer, plain=True)


def scored(*records):
    probe = build_probe(TOKENIZER, "p", records, FORMAT)
    return probe, score_probe(Successor(), TOKENIZER, probe, generate=True).values


def test_a_text_that_is_known_and_one_that_is_not():
    probe, values = scored(text("known", "w0 w1 w2 w3"), text("odd", "w0 w2 w4 w6"))
    missed = 1 / (np.exp(10.0) + SIZE - 1)
    assert probe.right == ("w2 w3", "w4 w6")
    assert probe.max_new_tokens == 2
    assert values["nll"] == pytest.approx([-np.log(missed) - 10.0, -np.log(missed)], rel=1e-4)
    assert values["exact_memorisation"].tolist() == [1.0, 0.0]
    assert values["rouge_l_f1"].tolist() == [1.0, 0.5]  # w3 w4 against w4 w6 share w4


def test_a_continuation_is_scored_behind_what_is_given():
    probe, values = scored(text("v", "w3 w4", "w9 w2"))
    assert probe.right == ("w3 w4",)
    assert values["exact_memorisation"].tolist() == [1.0]
    assert values["rouge_l_recall"].tolist() == [1.0]


def test_texts_and_questions_stand_in_one_probe():
    asked = Record(record_id="q", subject="s", question="w0", answer="w1 w2", fact="w2")
    probe, values = scored(text("t", "w0 w1 w2 w3"), asked)
    assert probe.right == ("w2 w3", "w1 w2")
    assert not np.isnan(values["fact_probability"]).any()
    assert np.isnan(values["truth_ratio"]).all()


# --------------------------------------------------------------------------------- what is absent


def probes(**fields):
    record = Record(record_id="q", subject="s", question="w0", answer="w1", **fields)
    probe = build_probe(TOKENIZER, "p", [record], FORMAT)
    return ProbeSet(forget={1: probe}, retain=None, holdout=None, public={}, asked={}, client_of={"q": 0})


def test_metrics_that_need_what_no_record_has_are_absent():
    assert absent_metrics(probes()) == {
        "paraphrase_probability": "paraphrased questions",
        "truth_ratio": "wrong answers",
        "choice_probability": "wrong answers",
        "forget_quality_p": "wrong answers",
    }
    assert absent_sentences(probes(perturbed_answers=("w2",))) == [
        "No record to be forgotten has paraphrased questions, so there is no paraphrase probability."
    ]
    assert absent_metrics(probes(perturbed_answers=("w2",), paraphrased_question="w3")) == {}
    nothing = ProbeSet(forget={}, retain=None, holdout=None, public={}, asked={}, client_of={})
    assert absent_metrics(nothing) == {}
