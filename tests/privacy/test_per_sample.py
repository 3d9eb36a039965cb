import copy

import numpy as np
import pytest
import torch

from privacy.dp_sgd import DenseGradients, clip_and_sum
from privacy.per_sample import per_sample_gradients, sample_means, trainable

TOKENS = 12


@pytest.fixture(scope="module")
def lora():
    """A two-layer Llama of width 16 with PEFT adapters; B starts away from zero so that A learns."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
        )
        model = get_peft_model(
            LlamaForCausalLM(config), LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"])
        )
        for name, p in trainable(model).items():
            torch.nn.init.normal_(p, std=0.3 if "lora_B" in name else 0.1)
    return model.train()


def texts(lengths, *, seed=1):
    """ids (N, T), and labels that cover the first `length` tokens of each row."""
    rng = np.random.default_rng(seed)
    ids = torch.tensor(rng.integers(0, 32, (len(lengths), max(lengths))))
    used = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return ids, torch.where(used, ids, -100)


def own_mean_loss(ids, labels):
    """The layer's loss: each sample's mean over its own tokens."""

    def loss(model, rows):
        logits = model(input_ids=ids[rows]).logits[:, :-1]
        targets = labels[rows][:, 1:]
        nll = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none")
        return sample_means(nll.sum(1), (targets != -100).sum(1))

    return loss


def token_mean_loss(ids, labels):
    """What language models return by default: the mean over all tokens of the batch."""

    def loss(model, rows):
        return model(input_ids=ids[rows], labels=labels[rows]).loss.expand(len(rows))

    return loss


def test_linear_by_hand():
    model = torch.nn.Linear(2, 1, bias=False)
    data = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    gradients = per_sample_gradients(model, np.array([1, 0]), lambda m, rows: m(data[rows]).squeeze(1))
    assert gradients["weight"].tolist() == [[[0.0, 3.0]], [[1.0, 0.0]]]


def test_opacus_equals_microbatches(lora):
    ids, labels = texts([3, TOKENS, 7, 5])
    loss = own_mean_loss(ids, labels)
    gradients = per_sample_gradients(lora, np.arange(4), loss)
    assert all("lora" in name and "_module" not in name for name in gradients)
    for row in range(4):
        value = loss(lora, np.array([row])).sum()
        names = list(trainable(lora))
        single = torch.autograd.grad(value, list(trainable(lora).values()))
        for name, expected in zip(names, single, strict=True):
            torch.testing.assert_close(gradients[name][row], expected, rtol=1e-4, atol=1e-6)
    assert max(float(g.abs().max()) for g in gradients.values()) > 1e-3


def sensitivity(model, loss, *, clip_norm, present, removed):
    """Norm of the change of the clipped sum when one record is taken out."""
    both = []
    for rows in (np.array([*present, removed]), np.array(present)):
        gradients = per_sample_gradients(model, rows, loss)
        flat = torch.cat([gradients[name].flatten(1) for name in sorted(gradients)], dim=1)
        both.append(clip_and_sum(DenseGradients(flat, [len(rows)]), [len(rows)], clip_norm=clip_norm)[0][0])
    return float((both[0] - both[1]).norm())


def test_token_mean_loss_breaks_sensitivity_and_own_mean_does_not(lora):
    """Trap: 64 short records and a long one. The batch-wide mean is the negative control."""
    ids, labels = texts([2] * 64 + [64])
    ids[:64] = ids[0]  # equal records: their gradients point the same way
    labels[:64] = labels[0]
    norms = per_sample_gradients(lora, np.array([0]), own_mean_loss(ids, labels))
    clip_norm = float(sum(g.square().sum() for g in norms.values()).sqrt())
    case = {"clip_norm": clip_norm, "present": range(64), "removed": 64}
    assert sensitivity(lora, own_mean_loss(ids, labels), **case) <= clip_norm * (1 + 1e-4)
    assert sensitivity(lora, token_mean_loss(ids, labels), **case) > 4 * clip_norm


def test_model_ends_as_it_began(lora):
    ids, labels = texts([3, 4])
    first = next(iter(trainable(lora).values()))
    first.grad = torch.ones_like(first)
    state, hooks = copy.deepcopy(lora.state_dict()), [len(m._forward_hooks) for m in lora.modules()]
    for _ in range(2):  # a second time does not add hooks twice
        per_sample_gradients(lora, np.arange(2), own_mean_loss(ids, labels))
    with pytest.raises(RuntimeError, match="inside"):
        per_sample_gradients(lora, np.arange(2), _failing)
    assert list(state) == list(lora.state_dict())
    assert all(torch.equal(state[k], v) for k, v in lora.state_dict().items())
    assert [len(m._forward_hooks) for m in lora.modules()] == hooks
    assert torch.equal(first.grad, torch.ones_like(first))
    assert not any(hasattr(p, "grad_sample") for p in lora.parameters())
    first.grad = None


def _failing(model, rows):
    raise RuntimeError("inside the loss")


def test_reduced_losses_and_eval_mode_are_refused(lora):
    ids, labels = texts([3, 4])
    loss = own_mean_loss(ids, labels)
    with pytest.raises(ValueError, match="shape"):
        per_sample_gradients(lora, np.arange(2), lambda m, rows: loss(m, rows).mean())
    lora.eval()
    with pytest.raises(ValueError, match=r"model.train\(\)"):
        per_sample_gradients(lora, np.arange(2), loss)
    lora.train()


def test_unused_and_untraceable_parameters():
    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)

        def forward(self, x):
            return self.used(x)

    data = torch.ones(3, 1)
    model = Odd()
    gradients = per_sample_gradients(model, np.arange(3), lambda m, rows: m(data[rows]).squeeze(1))
    assert not gradients["idle.weight"].any()
    assert gradients["used.weight"].shape == (3, 1, 1)
    with pytest.raises(ValueError, match=r"used.weight"):
        per_sample_gradients(model, np.arange(3), lambda m, rows: (data[rows] @ m.used.weight).squeeze(1))


def test_sample_means_of_an_empty_sample_is_zero():
    assert sample_means(torch.tensor([6.0, 0.0]), torch.tensor([3, 0])).tolist() == [2.0, 0.0]
