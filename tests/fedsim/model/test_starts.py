"""Every start of LoRA is PEFT's own, leaves the model what it was, and is exported for the published base."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.utils.incremental_pca import IncrementalPCA
from pydantic import ValidationError
from torch.utils.data import DataLoader

from fedsim.config import ConfigError
from fedsim.model.adapter import AdapterModel, isolated_torch_rng
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.model.decompositions import MOST_RECORDS, lesson, start_of
from fedsim.model.loading import ModelError, load_model
from fedsim.model.lora_starts import CHOICES, changes_base, needs_records
from fedsim.model.saving import load_adapter, save_adapter
from fedsim.model.starting import rounding_sentence
from fedsim.model.text import IGNORED, Pair, collate, encode_pair
from fedsim.model.vectors import Arrays, from_vector, to_vector
from fedsim.rng import torch_stream
from fedsim.training.cohorts import UNLIMITED, CohortLimit
from fedsim.training.config import LocalConfig
from fedsim.training.executors import make_executor
from fedsim.training.jobs import TrainJob
from fedsim.training.objectives import MeanNll
from fedsim.training.sequential import SequentialExecutor
from tests.fedsim.model.test_lora_options import tied_base
from tests.world import FORMAT, encode, make_records, random_arrays, same, word_tokenizer

STARTS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "olora", "eva", "corda", "corda_kpm")
TAKEN = tuple(init for init in STARTS if changes_base(init))
PUBLIC = make_records(7, 20)
IDS_BT = torch.arange(3, 15).view(2, 6)


def loaded(base: Path, dtype: str = "float32", **lora: Any) -> AdapterModel:
    config = ModelConfig(base=str(base), dtype=dtype, lora=LoraConfig(**{"r": 2, "alpha": 3, **lora}))
    return load_model(config, public=PUBLIC)


def published(base: Path, dtype: str = "float32") -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(base, dtype=getattr(torch, dtype)).eval()


@torch.no_grad()
def logits(module: Any) -> torch.Tensor:
    return module(input_ids=IDS_BT, use_cache=False).logits.float()


def of_peft(base: Path, **options: Any) -> Any:
    """PEFT alone, on the base as it is published."""
    settings = peft.LoraConfig(
        **{"r": 2, "lora_alpha": 3, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    )
    return peft.get_peft_model(published(base), settings).eval()


def trained(model: AdapterModel) -> Arrays:
    """What some steps of training make of the start."""
    start = model.fresh(1)
    job = TrainJob(
        client=0,
        round=1,
        seed=1,
        adapter=start,
        pairs=encode(model, make_records(0, 3)),
        record_ids=("a", "b", "c"),
        local=LocalConfig(epochs=8, batch_size=3, lr=3e-2),
        objective=MeanNll(),
    )
    (result,) = SequentialExecutor(model=model).train_clients([job])
    assert result.update is not None, result.error
    return from_vector(to_vector(start) + result.update, start)


def frozen(model: AdapterModel) -> dict[str, bytes]:
    return {
        n: p.detach().numpy().tobytes() for n, p in model.module.named_parameters() if n not in model.names
    }


# --------------------------------------------------------------------------------- starts by hand


class Net(torch.nn.Module):
    """One layer over vectors of tokens."""

    def __init__(self, weight_OI: list[list[float]], vectors_VI: list[list[float]]) -> None:
        super().__init__()
        self.vectors_VI = torch.tensor(vectors_VI).float()
        self.layer = torch.nn.Linear(2, 2, bias=False)
        self.layer.weight.data = torch.tensor(weight_OI).float()

    def forward(self, input_ids: torch.Tensor, use_cache: bool = False) -> torch.Tensor:
        return self.layer(self.vectors_VI[input_ids])


def by_hand(init: str, weight_OI: list[list[float]], vectors_VI: list[list[float]]) -> Any:
    """A layer of rank 1 and scale 2 that has started; its one record asks token 0 and answers the others."""
    net = Net(weight_OI, vectors_VI)
    module = peft.get_peft_model(net, peft.LoraConfig(r=1, lora_alpha=2, target_modules=["layer"]))
    pair = Pair(
        input_ids=tuple(range(len(vectors_VI))), answer_start=1, answer_end=len(vectors_VI), fact_mask=()
    )
    start_of(module.eval(), LoraConfig(r=1, alpha=2, init=init), [pair])
    return net.layer


def factors(layer: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
    return a, b, layer.get_base_layer().weight.detach()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4"])
def test_pissa_by_hand(init: str) -> None:
    """The larger of two directions: 3 = 2 x 1.5, and each factor has the root of 1.5."""
    a, b, left = factors(by_hand(init, [[3, 0], [0, 1]], [[0, 0]]))
    torch.testing.assert_close(a.abs(), torch.tensor([[1.5**0.5, 0]]))
    torch.testing.assert_close(b @ a, torch.tensor([[1.5, 0], [0, 0]]))
    torch.testing.assert_close(left, torch.tensor([[0.0, 0], [0, 1]]))


def test_olora_by_hand() -> None:
    """The first column of Q is (0.6, 0.8), the first row of R (5, 2.2); twice their product is taken off."""
    a, b, left = factors(by_hand("olora", [[3, 1], [4, 2]], [[0, 0]]))
    torch.testing.assert_close(a * b[0].sign(), torch.tensor([[5, 2.2]]))
    torch.testing.assert_close(b * b[0].sign(), torch.tensor([[0.6], [0.8]]))
    torch.testing.assert_close(left, torch.tensor([[-3, -1.64], [-4, -1.52]]))


def test_eva_by_hand() -> None:
    """Answers lie on a line through (5, 0) in direction (1, 1); the question, far away, is not asked."""
    a, b, left = factors(by_hand("eva", [[3, 1], [4, 2]], [[0, -900], [4, -1], [5, 0], [6, 1]]))
    torch.testing.assert_close(a * a[0, 0].sign(), torch.tensor([[0.5**0.5, 0.5**0.5]]))
    assert not b.any()
    assert left.tolist() == [[3, 1], [4, 2]]


@pytest.mark.parametrize(
    ("init", "left_II"), [("corda", [[0.0, 0], [0, 1]]), ("corda_kpm", [[1.0, 0], [0, 0]])]
)
def test_corda_by_hand(init: str, left_II: list[list[float]]) -> None:
    """Of two directions of the identity, one has inputs ten times as large as the other."""
    a, b, left = factors(by_hand(init, [[1, 0], [0, 1]], [[10, 0], [0, 1], [-10, 0]]))
    torch.testing.assert_close(left, torch.tensor(left_II))
    torch.testing.assert_close(2 * b @ a + left, torch.eye(2))


# ------------------------------------------------------------------------------- against PEFT alone


def parts(module: Any) -> dict[str, torch.Tensor]:
    """s B A and the base's weight of each layer."""
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, peft.tuners.lora.LoraLayer):
            found[f"{name} delta"] = layer.get_delta_weight("default").detach()
            found[f"{name} base"] = layer.get_base_layer().weight.detach()
    return found


def assert_alike(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("base", "init"),
    [
        ("llama_base", "pissa"),
        ("gpt2_base", "pissa"),
        ("llama_base", "olora"),
    ],
)
@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_taken_from_the_base_is_what_peft_takes(base: str, init: str, rslora: bool, request) -> None:
    base = request.getfixturevalue(base)
    model = loaded(base, init=init, peft={"use_rslora": rslora})
    theirs = of_peft(base, init_lora_weights=init, use_rslora=rslora)
    assert_alike(parts(model.module), parts(theirs), atol=1e-5)
    arrays = trained(model)
    model.load(arrays)
    with torch.no_grad():
        for name, value in arrays.items():
            dict(theirs.named_parameters())[name].copy_(torch.from_numpy(value))
    assert torch.allclose(logits(theirs), logits(model.module), atol=1e-5)


@pytest.mark.parametrize("base", ["llama_base", "gpt2_base"])
def test_the_fast_pissa_finds_nearly_as_much(base: str, request) -> None:
    """More passes leave less of the base, down to what the exact decomposition leaves, which is the least."""
    base = request.getfixturevalue(base)
    exact, *fast = (
        {
            name: float(part.norm())
            for name, part in parts(loaded(base, init=init).module).items()
            if name.endswith(" base")
        }
        for init in ("pissa", "pissa_niter_32", "pissa_niter_0")
    )
    assert all(least <= fast[0][name] * (1 + 1e-5) for name, least in exact.items())
    assert sum(fast[0].values()) < 1.01 * sum(exact.values())
    assert sum(fast[1].values()) > 1.02 * sum(exact.values())


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal"])
def test_what_is_drawn_is_what_peft_draws(init: str, llama_base) -> None:
    model = loaded(llama_base, init=init)
    model.fresh(5)
    theirs = of_peft(llama_base)
    layers = [m for m in theirs.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
    with isolated_torch_rng(torch_stream(5, "adapter-init")):
        for layer in layers:
            if init == "orthogonal":
                layer.orthogonal_init("default")
            else:
                layer.reset_lora_parameters("default", True if init == "default" else init)
    own = dict(theirs.named_parameters())
    assert all(np.array_equal(value, own[name].detach().numpy()) for name, value in model.arrays().items())


def _without_shortcut(kind: type[IncrementalPCA], **options: Any) -> IncrementalPCA:
    return kind(**options | {"lowrank": False, "lowrank_seed": None})


@pytest.mark.parametrize("base", ["llama_base", "gpt2_base"])
def test_eva_is_what_peft_finds(base: str, request, monkeypatch) -> None:
    """The span of A of each layer; PEFT is asked for as many directions a layer, and for exact ones."""
    base = request.getfixturevalue(base)
    model = loaded(base, init="eva")
    theirs = of_peft(base, init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0))
    pairs = lesson(LoraConfig(init="eva"), model.tokenizer, FORMAT, PUBLIC)
    batch = collate(pairs, pad_id=model.pad_id)
    rows = [
        {"input_ids": ids, "labels": labels, "attention_mask": torch.arange(len(ids)) < length}
        for ids, labels, length in zip(batch.input_ids_BT, batch.labels_BT, batch.lengths_B, strict=True)
    ]
    assert (batch.labels_BT != IGNORED).any()
    exact = partial(_without_shortcut, IncrementalPCA)
    monkeypatch.setattr("peft.tuners.lora.eva.IncrementalPCA", exact)
    found = peft.get_eva_state_dict(theirs, DataLoader(rows, batch_size=len(rows)), show_progress_bar=False)
    ours = model.init.factors or {}
    assert len(found) * 2 == len(ours)
    for name, directions_RI in found.items():
        a_RI = torch.from_numpy(ours[f"{name}.lora_A.default.weight"])
        own_II, their_II = a_RI.T @ a_RI, directions_RI.T @ directions_RI
        torch.testing.assert_close(own_II, their_II.float(), atol=2e-3, rtol=0)
    assert not any(value.any() for name, value in ours.items() if "lora_B" in name)


@pytest.mark.parametrize("base", ["llama_base", "gpt2_base"])
@pytest.mark.parametrize(("init", "method"), [("corda", "ipm"), ("corda_kpm", "kpm")])
def test_corda_is_what_peft_finds(base: str, init: str, method: str, request) -> None:
    base = request.getfixturevalue(base)
    model = loaded(base, init=init, target_modules=r".*\.(q_proj|down_proj|c_attn|c_proj)")
    settings = peft.LoraConfig(
        r=2,
        lora_alpha=3,
        target_modules=r".*\.(q_proj|down_proj|c_attn|c_proj)",
        task_type="CAUSAL_LM",
        init_lora_weights="corda",
        corda_config=CordaConfig(corda_method=method),
    )
    theirs = published(base)
    pairs = lesson(LoraConfig(init="corda"), model.tokenizer, FORMAT, PUBLIC)

    @torch.no_grad()
    def ask() -> None:
        for pair in pairs:
            theirs(input_ids=torch.tensor([pair.input_ids]))

    preprocess_corda(theirs, settings, run_model=ask)
    assert_alike(parts(model.module), parts(peft.get_peft_model(theirs, settings)), atol=2e-2)


# ------------------------------------------------------------------------------------ what is kept


@pytest.mark.parametrize("base", ["llama_base", "gpt2_base"])
@pytest.mark.parametrize("init", STARTS)
def test_a_start_is_the_base(base: str, init: str, request) -> None:
    base = request.getfixturevalue(base)
    model = loaded(base, init=init)
    model.fresh(1)
    assert torch.allclose(logits(model.module), logits(published(base)), atol=2e-5)
    with model.module.disable_adapter():
        gone = not torch.allclose(logits(model.module), logits(published(base)), atol=1e-2)
    assert gone == changes_base(init)


@pytest.mark.parametrize("train", ["AB", "B"])
@pytest.mark.parametrize("init", STARTS)
def test_fresh_owes_nothing_to_what_was(init: str, train: str, llama_base) -> None:
    model = loaded(llama_base, init=init, train=train)
    model.fresh(1)
    before = {name: value.detach().clone() for name, value in model.module.named_parameters()}
    model.load(random_arrays(model, 9))
    model.fresh(2)
    other = dict(model.module.named_parameters())
    changed = [name for name, value in before.items() if not torch.equal(other[name], value)]
    drawn = [name for name in before if "lora_A" in name or ("lora_B" in name and init == "orthogonal")]
    assert changed == ([] if model.init.factors is not None else drawn)
    model.load(random_arrays(model, 10))
    with torch.no_grad():
        for name, value in model.module.named_parameters():
            if "lora_A" in name:  # what a checkpoint of another seed leaves there
                value.add_(1)
    model.fresh(1)
    assert all(torch.equal(value, before[name]) for name, value in model.module.named_parameters())


@pytest.mark.parametrize("train", ["AB", "B"])
@pytest.mark.parametrize("init", STARTS)
def test_replicas_and_other_loads_start_alike(init: str, train: str, llama_base) -> None:
    """Whatever the threads of torch: another process may have others."""
    model = loaded(llama_base, init=init, train=train)
    expected, digest = model.fresh(3), model.digest
    replica = model.replicas(2)[1]
    assert same(replica.fresh(3), expected)
    torch.set_num_threads(2)
    try:
        other = loaded(llama_base, init=init, train=train)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert same(other.fresh(3), expected)
    assert frozen(replica) == frozen(other) == frozen(model)
    assert other.digest == digest
    plain = loaded(llama_base, train=train)
    plain.fresh(3)
    assert (plain.digest == digest) == (init == "default")


def test_decompositions_on_several_threads_would_differ() -> None:
    """The control: without ``one_thread``, processes with other threads would not start alike."""
    weight = torch.randn(512, 512, generator=torch_stream(0, "here"))
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(torch.linalg.svd(weight)[0])
    finally:
        torch.set_num_threads(1)
    if torch.get_num_threads() == 1 and torch.equal(*found):
        pytest.skip("this machine's library rounds alike")
    assert torch.allclose(found[0].abs(), found[1].abs(), atol=1e-2)


@pytest.mark.parametrize("init", STARTS)
def test_cohorts_train_from_every_start(init: str, llama_base) -> None:
    model = loaded(llama_base, init=init, dropout=0.0)
    start = model.fresh(1)
    jobs = [
        TrainJob(
            client=client,
            round=1,
            seed=1,
            adapter=start,
            pairs=encode(model, make_records(client, 3)),
            record_ids=("a", "b", "c"),
            local=LocalConfig(epochs=3, batch_size=2, lr=1e-2, optimizer="sgd"),
            objective=MeanNll(),
        )
        for client in (0, 1)
    ]
    executor = make_executor([model], CohortLimit(clients=2, tokens=UNLIMITED))
    assert not isinstance(executor, SequentialExecutor)
    for own, joint in zip(
        SequentialExecutor(model=model).train_clients(jobs), executor.train_clients(jobs), strict=True
    ):
        assert own.update is not None
        assert joint.update is not None, joint.error
        np.testing.assert_allclose(joint.update, own.update, atol=1e-4)
        assert np.abs(own.update).max() > 1e-3


# --------------------------------------------------------------------------------------- on disk


def assert_exported(model: AdapterModel, base: Path, folder: Path) -> None:
    """What is on disk, loaded by PEFT alone, is the trained model, and comes back bit for bit."""
    arrays = trained(model)
    model.load(arrays)
    expected = logits(model.module)
    assert (expected - logits(published(base))).abs().max() > 0.05
    with model.measuring() as module:
        assert torch.allclose(logits(module), expected, atol=1e-4)
    save_adapter(model, arrays, folder)
    theirs = peft.PeftModel.from_pretrained(published(base), folder).eval()
    assert torch.allclose(logits(theirs), expected, atol=1e-4)
    before = frozen(model)
    model.fresh(2)
    assert same(load_adapter(model, folder), arrays)
    assert frozen(model) == before
    assert torch.equal(logits(model.module), expected)


@pytest.mark.parametrize("base", ["llama_base", "gpt2_base"])
@pytest.mark.parametrize(("train", "rslora"), [("AB", True), ("B", False)])
@pytest.mark.parametrize("init", STARTS)
def test_an_export_is_for_the_base_as_published(
    base: str, train: str, rslora: bool, init: str, request, tmp_path
) -> None:
    base = request.getfixturevalue(base)
    model = loaded(base, init=init, train=train, peft={"use_rslora": rslora})
    assert_exported(model, base, tmp_path / "adapter")


OPTIONS: dict[str, dict[str, Any]] = {
    "alpha": {"alpha_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 5}},
    "bias": {"bias": "all"},
    "exclude": {"exclude_modules": ["k_proj"]},
    "head": {"modules_to_save": ["lm_head"]},
    "layers": {"layers_to_transform": 1},
    "rank": {"rank_pattern": {"q_proj": 1, "down_proj": 4}},
    "both": {"rank_pattern": {"q_proj": 1}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True},
    "tokens": {"trainable_token_indices": [3, 4]},
}


@pytest.mark.parametrize("init", ["pissa", "corda"])
@pytest.mark.parametrize("options", sorted(OPTIONS))
def test_an_export_keeps_the_options_of_peft(options: str, init: str, tmp_path) -> None:
    base = tied_base(tmp_path / "base", tied=False)
    targets = ("q_proj", "k_proj", "up_proj", "down_proj")
    model = loaded(base, init=init, target_modules=targets, peft=OPTIONS[options])
    assert_exported(model, base, tmp_path / "adapter")


@pytest.mark.parametrize("init", ["gaussian", "orthogonal", "eva"])
def test_dora_goes_with_what_leaves_the_base_alone(init: str, llama_base, tmp_path) -> None:
    assert_exported(loaded(llama_base, init=init, peft={"use_dora": True}), llama_base, tmp_path / "adapter")


def test_an_adapter_of_another_start_is_refused(llama_base, tmp_path) -> None:
    models = [loaded(llama_base, init=init) for init in ("pissa", "olora", "default")]
    for number, model in enumerate(models):
        save_adapter(model, model.fresh(1), tmp_path / str(number))
    for reader, folder in ((0, "1"), (0, "2"), (2, "0")):
        with pytest.raises(ModelError, match="another adapter layout"):
            load_adapter(models[reader], tmp_path / folder)


# --------------------------------------------------------------------------------- low precision


@pytest.mark.parametrize("init", STARTS)
def test_a_base_of_low_precision_rounds_what_is_left(init: str, llama_base, tmp_path) -> None:
    """bfloat16 has 8 bits: what is left is off by 2^-9 of itself at most, and so is all that follows."""
    model = loaded(llama_base, "bfloat16", init=init)
    arrays = model.fresh(1)
    base = published(llama_base, "bfloat16")
    sentence = rounding_sentence(model.init, "bfloat16")
    assert (sentence is None) == (not changes_base(init))
    if not changes_base(init):
        assert model.init.rounding == 0
        assert torch.equal(logits(model.module), logits(base))
        return
    assert f"{model.init.rounding:.2%}" in sentence
    assert 2**-12 < model.init.rounding < 2**-5
    exact = parts(published_with(llama_base, init)) if not needs_records(init) else {}
    for name, value in parts(model.module).items():
        if name.endswith(" base"):
            assert value.dtype == torch.bfloat16
        if name.endswith(" base") and exact:
            assert (value.float() - exact[name]).norm() <= 2**-6 * exact[name].norm()
    assert rounding_sentence(loaded(llama_base, init=init).init, "float32") is None
    save_adapter(model, arrays, tmp_path / "adapter")
    assert same(load_adapter(model, tmp_path / "adapter"), arrays)


def published_with(base: Path, init: str) -> Any:
    """The same start of the base in float32 whose weights were rounded to bfloat16 before."""
    rounded = base.parent / f"{base.name}-rounded"
    if not rounded.exists():
        published(base, "bfloat16").float().save_pretrained(rounded)
        word_tokenizer().save_pretrained(rounded)
    return loaded(rounded, init=init).module


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "init", ["pisa", "pissa_niter_", "pissa_niter_N", "pissa_niter_-1", "PiSSA", "", "true"]
)
def test_an_unknown_start_names_the_choices(init: str) -> None:
    with pytest.raises(ValidationError, match="choices: default, gaussian") as error:
        LoraConfig(init=init)
    assert error.value.errors()[0]["loc"] == ("init",)


def test_every_choice_is_tried() -> None:
    named = {init if not init.startswith("pissa_niter") else "pissa_niter_N" for init in STARTS}
    assert named == set(CHOICES)


@pytest.mark.parametrize(
    ("init", "options", "key"),
    [
        ("pissa", {"use_dora": True}, ("peft", "use_dora")),
        ("corda", {"use_dora": True}, ("peft", "use_dora")),
        ("gaussian", {"lora_bias": True}, ("peft", "lora_bias")),
        ("pissa", {"lora_bias": True}, ("peft", "lora_bias")),
        ("olora", {"target_parameters": ["mlp.gate_proj.weight"]}, ("peft", "target_parameters")),
        ("orthogonal", {"target_parameters": ["mlp.gate_proj.weight"]}, ("peft", "target_parameters")),
        ("pissa", {"layer_replication": [[0, 2]]}, ("peft", "layer_replication")),
        ("orthogonal", {"rank_pattern": {"q_proj": 3}}, ("peft", "rank_pattern", "q_proj")),
    ],
)
def test_what_does_not_go_together_is_refused_at_its_key(init: str, options: dict, key: tuple) -> None:
    with pytest.raises(ValidationError, match=f"lora.init={init}") as error:
        LoraConfig(init=init, peft=options)
    assert error.value.errors()[0]["ctx"]["error"].key == key
    LoraConfig(init="default", peft=options)
    LoraConfig(init=init, peft=dict.fromkeys(options))


def test_orthogonal_needs_an_even_rank() -> None:
    with pytest.raises(ValidationError, match=r"rank 3 is odd.*use 4") as error:
        LoraConfig(init="orthogonal", r=3)
    assert error.value.errors()[0]["ctx"]["error"].key == ("r",)


@pytest.mark.parametrize(
    ("lora", "said", "key"),
    [
        ({"target_modules": ("q_proj", "embed_tokens")}, "is of type Embedding", ("lora", "target_modules")),
        ({"target_modules": ("q_proj", "lm_head")}, r"also .*embed_tokens\.weight", ("lora", "init")),
        ({"r": 17}, "rank 17 is more than .* use 16 or less", ("lora", "r")),
        (
            {"peft": {"rank_pattern": {"v_proj": 20}}},
            "rank 20 is more than .*v_proj",
            ("lora", "peft", "rank_pattern"),
        ),
    ],
)
def test_layers_that_cannot_start_so_are_named(lora: dict, said: str, key: tuple, tmp_path) -> None:
    base = tied_base(tmp_path, tied=True)
    with pytest.raises(ModelError, match=said) as error:
        loaded(base, init="pissa", **lora)
    assert error.value.key == key
    loaded(base, init="gaussian", **lora)


def test_what_layers_share_may_be_adapted_where_the_base_stays(tmp_path) -> None:
    base = tied_base(tmp_path, tied=True)
    model = loaded(base, init="eva", target_modules=("q_proj", "lm_head"))
    model.fresh(1)
    assert torch.allclose(logits(model.module), logits(published(base)), atol=1e-5)


@pytest.mark.parametrize("init", [init for init in STARTS if needs_records(init)])
def test_starts_from_records_need_public_ones(init: str, llama_base) -> None:
    config = ModelConfig(base=str(llama_base), lora=LoraConfig(r=2, init=init))
    with pytest.raises(ModelError, match=r"the data have none; name a file of them in data\.public") as error:
        load_model(config)
    assert error.value.key == ("lora", "init")


def test_too_few_answers_are_told(llama_base) -> None:
    config = ModelConfig(base=str(llama_base), lora=LoraConfig(r=8, init="eva"))
    with pytest.raises(ModelError, match=r"init=eva finds \d tokens of answers.* rank 8 needs more"):
        load_model(config, public=PUBLIC[:1])


def test_a_record_that_the_base_cannot_take_is_told(llama_base) -> None:
    config = ModelConfig(base=str(llama_base), prompt="{question} ", lora=LoraConfig(r=2, init="corda"))
    with pytest.raises(ModelError, match="init=corda fails on this base") as error:
        load_model(
            config, public=[*PUBLIC, type(PUBLIC[0])(record_id="x", subject="x", question="w1", answer="")]
        )
    assert error.value.key == ("lora", "init")


def test_many_records_are_thinned_out_evenly() -> None:
    """257 records: every second one."""
    many = make_records(1, MOST_RECORDS + 1)
    pairs = lesson(LoraConfig(init="eva"), word_tokenizer(), FORMAT, many)
    own = [encode_pair(word_tokenizer(), r.question, r.answer, FORMAT) for r in many]
    assert pairs == own[::2]
    assert lesson(LoraConfig(init="eva"), word_tokenizer(), FORMAT, many[:MOST_RECORDS]) == own[:MOST_RECORDS]
    assert lesson(LoraConfig(init="pissa"), word_tokenizer(), FORMAT, many) == []
    with pytest.raises(ConfigError, match="the data have none"):
        lesson(LoraConfig(init="eva"), word_tokenizer(), FORMAT, ())
