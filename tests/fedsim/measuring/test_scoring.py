"""Probes and predictors, on a network that knows nothing and on a lookup table that knows its answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from fedsim.data.records import Record
from fedsim.measuring.probe import Probe, build_probe
from fedsim.measuring.scoring import ItemScores, continue_prompts, score_probe, summarise
from fedsim.metrics.membership import attack_auc, auc, loss_score
from fedsim.model.packing import Packing
from fedsim.model.predictor import CausalPredictor, Predictor
from fedsim.model.prompts import TextFormat
from fedsim.model.text import encode_pair
from tests.world import word_tokenizer

WORDS = [f"w{number}" for number in range(60)]
PAD, EOS, UNKNOWN = 0, 1, 2
VOCABULARY = 3 + len(WORDS)
FORMAT = TextFormat()
CERTAIN = 10.0


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return word_tokenizer(WORDS)


@pytest.fixture(scope="module")
def network() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def untrained(network: LlamaForCausalLM) -> CausalPredictor:
    return CausalPredictor(model=network, pad_id=PAD, end_ids=frozenset({EOS}))


def make_records(count: int, seed: int, *, wrong: int = 3) -> list[Record]:
    draws = np.random.default_rng(seed)

    def text(low: int, high: int) -> str:
        return " ".join(draws.choice(WORDS, draws.integers(low, high)))

    return [
        Record(
            record_id=f"author-{seed}-{number}/fact",
            subject=f"author-{seed}-{number}",
            question=text(4, 9),
            answer=(answer := text(2, 6)),
            fact=answer.split()[-1],
            paraphrased_question=text(4, 9),
            paraphrased_answer=text(2, 6),
            perturbed_answers=tuple(text(2, 6) for _ in range(wrong)),
        )
        for number in range(count)
    ]


class Table:
    """A predictor that knows given answers by heart and finds all words alike elsewhere."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, known: Sequence[tuple[str, str]]) -> None:
        self.next: dict[tuple[int, ...], int] = {}
        for question, answer in known:
            pair = encode_pair(tokenizer, question, answer, FORMAT)
            for end in range(pair.answer_start, len(pair.input_ids)):
                self.next[pair.input_ids[:end]] = pair.input_ids[end]

    def logits(
        self, input_ids_BT: torch.Tensor, attention_mask_BT: torch.Tensor, wanted_BT: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.zeros((*input_ids_BT.shape, VOCABULARY))
        for row, ids in enumerate(input_ids_BT.tolist()):
            for end in range(1, len(ids) + 1):
                if tuple(ids[:end]) in self.next:
                    logits[row, end - 1, self.next[tuple(ids[:end])]] = CERTAIN
        return logits[wanted_BT]

    def generate(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        answers = []
        for prompt in prompts:
            ids = list(prompt)
            while len(ids) < len(prompt) + max_new_tokens and self.next.get(tuple(ids), EOS) != EOS:
                ids.append(self.next[tuple(ids)])
            answers.append(ids[len(prompt) :])
        return answers


SURE = np.exp(CERTAIN) / (np.exp(CERTAIN) + VOCABULARY - 1)
BLIND = 1.0 / VOCABULARY


def hand_probe(tokenizer: PreTrainedTokenizerFast) -> Probe:
    full = Record(
        record_id="a/birthplace",
        subject="a",
        question="w1 w2 w3",
        answer="w4 w5",
        fact="w5",
        paraphrased_question="w6 w7",
        paraphrased_answer="w8",
        perturbed_answers=("w9", "w10"),
    )
    bare = Record(record_id="b/age", subject="b", question="w11", answer="w12")
    return build_probe(tokenizer, "by-hand", [full, bare], FORMAT)


def test_by_hand(tokenizer: PreTrainedTokenizerFast) -> None:
    knows = Table(tokenizer, [("w1 w2 w3", "w4 w20"), ("w11", "w12")])
    scores = score_probe(knows, tokenizer, hand_probe(tokenizer), generate=True)
    missed = 1.0 / (np.exp(CERTAIN) + VOCABULARY - 1)  # another word is certain there
    assert scores.record_ids == ("a/birthplace", "b/age")
    assert scores.subjects == ("a", "b")
    assert scores.generated == ("w4 w20", "w12")
    expected = {
        "nll": [-np.log(SURE * missed) / 2, -np.log(SURE)],
        "probability": [np.cbrt(SURE * missed * BLIND), SURE],  # the end marker counts
        "fact_probability": [missed, SURE],
        "paraphrase_probability": [BLIND, np.nan],
        "truth_ratio": [1.0, np.nan],
        "choice_probability": [1 / 3, np.nan],
        "exact_memorisation": [0.5, 1.0],
        "extraction_strength": [0.0, 1.0],
        "min_k": [np.log(missed), np.log(SURE)],
        "rouge_l_recall": [0.5, 1.0],
        "rouge_l_f1": [0.5, 1.0],
    }
    assert set(scores.values) == set(expected)
    for name, values in expected.items():
        assert scores.values[name] == pytest.approx(values, rel=1e-5, abs=1e-6, nan_ok=True), name


def test_without_a_paraphrase_the_answer_stands_among_the_options(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    record = Record(
        record_id="world/1", subject="world", question="w1", answer="w2", perturbed_answers=("w3", "w4")
    )
    probe = build_probe(tokenizer, "world", [record], FORMAT)
    summary = summarise(
        score_probe(Table(tokenizer, [("w1", "w2")]), tokenizer, probe, generate=False), role="public"
    )
    missed = 1.0 / (np.exp(CERTAIN) + VOCABULARY - 1)
    wrong = np.sqrt(missed * BLIND)  # another word was certain, and nothing is known of how this one ends
    assert summary["choice_probability"] == pytest.approx(SURE / (SURE + 2 * wrong))
    assert summary["truth_ratio_score"] == pytest.approx(1 - wrong / SURE)
    assert "paraphrase_probability" not in summary


def test_summary_orients_the_truth_ratio_by_role() -> None:
    values = {"truth_ratio": np.array([0.2, 2.0, np.nan]), "nll": np.array([1.0, 2.0, 3.0])}
    scores = ItemScores(record_ids=("1", "2", "3"), subjects=("s",) * 3, values=values)
    assert summarise(scores, role="forget") == pytest.approx({"nll": 2.0, "truth_ratio_score": 0.35})
    assert summarise(scores, role="retain") == pytest.approx({"nll": 2.0, "truth_ratio_score": 0.4})
    with pytest.raises(ValueError, match="forget, retain, public"):
        summarise(scores, role="other")


def test_nll_is_that_of_the_bare_sequence(
    tokenizer: PreTrainedTokenizerFast, network: LlamaForCausalLM, untrained: CausalPredictor
) -> None:
    records = make_records(12, seed=1)
    scores = score_probe(untrained, tokenizer, build_probe(tokenizer, "p", records, FORMAT), generate=False)
    for index, record in enumerate(records):
        pair = encode_pair(tokenizer, record.question, record.answer, FORMAT)
        ids = torch.tensor([pair.input_ids[: pair.answer_end]])
        labels = ids.clone()
        labels[:, : pair.answer_start] = -100
        with torch.no_grad():
            loss = network(input_ids=ids, labels=labels).loss.item()  # the library's own mean over tokens
        assert scores.values["nll"][index] == pytest.approx(loss, abs=1e-5)


def assert_close(left: ItemScores, right: ItemScores, rows: slice = slice(None)) -> None:
    assert left.generated == right.generated[rows]
    for name, values in left.values.items():
        np.testing.assert_allclose(values, right.values[name][rows], rtol=2e-5, atol=1e-6, err_msg=name)


def test_results_do_not_depend_on_the_batch(
    tokenizer: PreTrainedTokenizerFast, untrained: CausalPredictor
) -> None:
    records = make_records(20, seed=2)
    probe = build_probe(tokenizer, "p", records, FORMAT)
    probe_of_some = replace(
        build_probe(tokenizer, "some", records[5:9], FORMAT), max_new_tokens=probe.max_new_tokens
    )
    whole = score_probe(untrained, tokenizer, probe, generate=True)
    for batch_size in (1, 7, 1000):
        assert_close(score_probe(untrained, tokenizer, probe, generate=True, batch_size=batch_size), whole)
    some = score_probe(untrained, tokenizer, probe_of_some, generate=True)
    assert_close(some, whole, slice(5, 9))
    again = score_probe(untrained, tokenizer, probe, generate=True)
    assert all(np.array_equal(values, again.values[name]) for name, values in whole.values.items())


def permuted(records: list[Record], seed: int) -> list[Record]:
    """The same questions with each other's answers (and with them paraphrases and facts)."""
    order = np.roll(np.random.default_rng(seed).permutation(len(records)), 1)
    return [
        replace(
            record,
            answer=records[other].answer,
            fact=records[other].fact,
            paraphrased_answer=records[other].paraphrased_answer,
        )
        for record, other in zip(records, order, strict=True)
    ]


def test_shuffled_answers_score_chance_on_a_network_that_knows_nothing(
    tokenizer: PreTrainedTokenizerFast, untrained: CausalPredictor
) -> None:
    probes = [
        build_probe(tokenizer, "p", permuted(make_records(150, seed=seed), seed), FORMAT) for seed in (3, 4)
    ]
    forget, holdout = (score_probe(untrained, tokenizer, probe, generate=False).values for probe in probes)
    attack = attack_auc(loss_score(forget["nll"]), loss_score(holdout["nll"]), rng=np.random.default_rng(0))
    assert attack.low < 0.5 < attack.high
    for name, chance in (("choice_probability", 1 / 4), ("truth_ratio", 0.0)):
        values = np.log(forget[name]) if name == "truth_ratio" else forget[name]
        error = values.std(ddof=1) / np.sqrt(len(values))
        assert abs(values.mean() - chance) < 3 * error, name


def test_true_answers_are_recognised_and_shuffled_ones_are_not(tokenizer: PreTrainedTokenizerFast) -> None:
    records, strangers = make_records(40, seed=5), make_records(40, seed=6)
    known = [(record.question, record.answer) for record in records]
    truths = [(record.question, str(record.paraphrased_answer)) for record in records]
    knows = Table(tokenizer, [*truths, *known])
    holdout = score_probe(
        knows, tokenizer, build_probe(tokenizer, "holdout", strangers, FORMAT), generate=True
    )
    true, shuffled = (
        score_probe(knows, tokenizer, build_probe(tokenizer, "forget", items, FORMAT), generate=True)
        for items in (records, permuted(records, 0))
    )
    assert auc(true.values["probability"], holdout.values["probability"]) == 1.0
    assert auc(shuffled.values["probability"], holdout.values["probability"]) < 0.5
    assert (true.values["rouge_l_recall"] == 1.0).all()
    assert shuffled.values["rouge_l_recall"].mean() < 0.3
    assert shuffled.values["extraction_strength"].mean() < 0.1


def test_a_diverged_predictor_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    class Diverged(Table):
        def logits(self, *batch: torch.Tensor) -> torch.Tensor:
            return super().logits(*batch) * float("nan")

    with pytest.raises(ValueError, match="not finite on probe 'by-hand'"):
        score_probe(Diverged(tokenizer, []), tokenizer, hand_probe(tokenizer), generate=False)


def test_empty_probe_and_batch_are_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(ValueError, match="'empty' has no records"):
        build_probe(tokenizer, "empty", [], FORMAT)
    with pytest.raises(ValueError, match="batch_size=0"):
        score_probe(Table(tokenizer, []), tokenizer, hand_probe(tokenizer), generate=False, batch_size=0)


def test_equal_sequences_are_scored_once(tokenizer: PreTrainedTokenizerFast) -> None:
    record = make_records(1, seed=7)[0]
    twice = build_probe(tokenizer, "p", [record, replace(record, record_id="again")], FORMAT)
    assert len(twice.lengths_S) == 6  # answer, asked otherwise, paraphrase, three wrong ones
    assert twice.ids_ST.tolist() == sorted(twice.ids_ST.tolist())


def prompts_of(tokenizer: PreTrainedTokenizerFast, count: int) -> list[list[int]]:
    return [tokenizer(record.question)["input_ids"] for record in make_records(count, seed=8)]


def test_generation_agrees_with_the_library_one_prompt_at_a_time(
    tokenizer: PreTrainedTokenizerFast, network: LlamaForCausalLM, untrained: CausalPredictor
) -> None:
    prompts = prompts_of(tokenizer, 10)
    together = untrained.generate(prompts, 6)
    assert replace(untrained, batch_size=3).generate(prompts, 6) == together
    for prompt, answer in zip(prompts, together, strict=True):
        ids = torch.tensor([prompt])
        alone = network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=6,
            pad_token_id=PAD,
            eos_token_id=EOS,
        )
        expected = alone[0, len(prompt) :].tolist()
        assert answer == (expected[: expected.index(EOS)] if EOS in expected else expected)


def test_generation_stops_before_the_end_marker(
    tokenizer: PreTrainedTokenizerFast, untrained: CausalPredictor
) -> None:
    prompts = prompts_of(tokenizer, 6)
    endless = replace(untrained, end_ids=frozenset()).generate(prompts, 5)
    assert all(len(answer) == 5 for answer in endless)
    marker = endless[0][2]
    stopped = replace(untrained, end_ids=frozenset({marker})).generate(prompts, 5)
    for long, short in zip(endless, stopped, strict=True):
        assert short == (long[: long.index(marker)] if marker in long else long)
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        untrained.generate(prompts, 0)
    with pytest.raises(ValueError, match="at least one token"):
        untrained.generate([[]], 1)


@pytest.fixture(scope="module")
def absolute() -> CausalPredictor:
    """A network with learned absolute positions: rotary ones would forgive a constant offset."""
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.5
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CausalPredictor(model=GPT2LMHeadModel(config).eval(), pad_id=PAD, end_ids=frozenset({EOS}))


def test_padding_on_either_side_changes_no_logits(absolute: CausalPredictor) -> None:
    ids = torch.tensor([[5, 6, 7]])
    bare = absolute.logits(ids, torch.ones_like(ids), torch.ones_like(ids))
    padding = torch.tensor([[PAD, PAD]])
    for padded, mask in (
        (torch.cat([padding, ids], 1), torch.tensor([[0, 0, 1, 1, 1]])),
        (torch.cat([ids, padding], 1), torch.tensor([[1, 1, 1, 0, 0]])),
    ):
        found = absolute.logits(padded, mask, mask)
        torch.testing.assert_close(found, bare, rtol=1e-4, atol=1e-5)


def test_wanted_logits_are_those_of_the_whole(
    tokenizer: PreTrainedTokenizerFast, network: LlamaForCausalLM, untrained: CausalPredictor
) -> None:
    """With and without sharing what sequences have in common."""
    probe = build_probe(tokenizer, "p", make_records(6, seed=3), FORMAT)
    ids = probe.ids_ST
    mask = (torch.arange(ids.shape[1]) < torch.from_numpy(probe.lengths_S)[:, None]).long()
    wanted = mask.bool() & (torch.rand(mask.shape, generator=torch.Generator().manual_seed(1)) < 0.5)
    with torch.no_grad():
        expected = network(input_ids=ids).logits[wanted]
    for shares in (False, True):
        found = replace(untrained, shares_prefixes=shares).logits(ids, mask, wanted)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_prefixes_that_sequences_share_have_one_place() -> None:
    """Three sequences: 1 2 3, 1 2 4 5 and 1 2; five distinct beginnings."""
    ids = torch.tensor([[1, 2, 3, 0], [1, 2, 4, 5], [1, 2, 0, 0]])
    packing = Packing.of(torch.tensor([3, 4, 2]), [3], ids_BT=ids)
    assert sorted(packing.gather(ids).tolist()) == [1, 2, 3, 4, 5]
    rows = packing.gather(ids)[packing.target_BT]
    assert rows[0, :3].tolist() == [1, 2, 3]
    assert rows[1].tolist() == [1, 2, 4, 5]
    assert rows[2, :2].tolist() == [1, 2]
    assert packing.positions_P[packing.target_BT[1]].tolist() == [0, 1, 2, 3]


def test_answers_generated_together_are_those_of_each_probe(
    tokenizer: PreTrainedTokenizerFast, untrained: CausalPredictor
) -> None:
    probes = [build_probe(tokenizer, "p", make_records(4, seed=seed), FORMAT) for seed in (5, 6)]
    together = continue_prompts(untrained, probes, 5)
    for probe, answers in zip(probes, together, strict=True):
        assert continue_prompts(untrained, [probe], 5) == [answers]


def test_generation_in_a_batch_keeps_each_prompts_own_positions(
    tokenizer: PreTrainedTokenizerFast, absolute: CausalPredictor
) -> None:
    prompts = prompts_of(tokenizer, 12)
    assert absolute.generate(prompts, 6) == replace(absolute, batch_size=1).generate(prompts, 6)


def test_peft_model_is_left_as_it_was(tokenizer: PreTrainedTokenizerFast) -> None:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    lora = peft.LoraConfig(r=2, lora_dropout=0.5, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = peft.get_peft_model(LlamaForCausalLM(config), lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    model.train()
    model.base_model.model.lm_head.eval()
    flags = [module.training for module in model.modules()]
    plain = CausalPredictor(model=model, pad_id=PAD, end_ids=frozenset({EOS}))
    probe = build_probe(tokenizer, "p", make_records(3, seed=9), FORMAT)
    first, second = (score_probe(plain, tokenizer, probe, generate=True) for _ in range(2))
    assert first.generated == second.generated
    assert np.array_equal(first.values["nll"], second.values["nll"])  # dropout is off
    assert [module.training for module in model.modules()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    ids = torch.tensor([[5, 6]])
    assert not plain.logits(ids, torch.ones_like(ids), torch.ones_like(ids)).requires_grad


def test_protocol(tokenizer: PreTrainedTokenizerFast, untrained: CausalPredictor) -> None:
    assert isinstance(untrained, Predictor)
    assert isinstance(Table(tokenizer, []), Predictor)


def test_a_wrong_answer_that_is_the_right_one_once_cut_is_left_out(tokenizer) -> None:
    long = " ".join(["w9"] * 30)
    record = Record(
        record_id="a",
        subject="a",
        question="w1 w2",
        answer="w3",
        paraphrased_answer=f"{long} w4",
        perturbed_answers=(f"{long} w5", "w6", f"{long} w7"),
    )
    probe = build_probe(tokenizer, "cut", [record], TextFormat(max_tokens=12))
    assert probe.left_out == 2
    assert (probe.wrong_rows_IW[0] != -1).tolist() == [True, False, False]
    assert build_probe(tokenizer, "whole", [record], TextFormat(max_tokens=64)).left_out == 0
