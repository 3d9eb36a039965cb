"""Federated averaging of LoRA adapters in pfl-research; runs in its own environment (see benchmarks/pfl.py).

    python pfl_rounds.py FOLDER

One user is one client's records, padded to its longest; a batch is cut to the longest in it. The loss is the
mean over records of the mean over answer tokens, as everywhere in this project. All users take part in every
iteration. Only the first iteration evaluates (pfl always does there); it is not measured.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.internal.ops import pytorch_ops
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel

IGNORED = -100


class Trained(torch.nn.Module):
    """The base with its adapter, and the loss pfl asks for."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def loss(self, ids: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        self.inner.train()
        width = int(lengths.max())
        ids, labels = ids[:, :width], labels[:, :width]
        mask = torch.arange(width) < lengths[:, None]
        logits = self.inner(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
        targets = labels[:, 1:]
        nll = torch.nn.functional.cross_entropy(
            logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none"
        )
        return (nll.sum(1) / (targets != IGNORED).sum(1)).mean()

    @torch.no_grad()
    def metrics(self, ids: torch.Tensor, labels: torch.Tensor, lengths: torch.Tensor) -> dict[str, Any]:
        return {"loss": Weighted(float(self.loss(ids, labels, lengths)), 1)}


class Clock(TrainingProcessCallback):  # type: ignore[misc]
    """Notes when each iteration ends, and the adapter after the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.first: np.ndarray | None = None

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        self.ends.append(time.perf_counter())
        if self.first is None:
            named = {name.removeprefix("inner."): value for name, value in model.variable_map.items()}
            self.first = np.concatenate([named[name].detach().numpy().ravel() for name in sorted(named)])
            self.ends[-1] = time.perf_counter()
        return False, Metrics()


def load(settings: dict[str, Any]) -> Trained:
    """The base with the adapter it starts from."""
    base = transformers.AutoModelForCausalLM.from_pretrained(settings["base"])
    config = peft.LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    inner = peft.get_peft_model(base, config)
    trained = {name: value for name, value in inner.named_parameters() if value.requires_grad}
    if trained.keys() != settings["start"].keys():
        raise ValueError("the adapter to start from has other parameters than this one")
    with torch.no_grad():
        for name, value in trained.items():
            value.copy_(torch.tensor(settings["start"][name]))
    return Trained(inner)


def user(records: list[dict[str, Any]], pad_id: int) -> PyTorchTensorDataset:
    """One client's records as tensors."""
    width = max(len(record["ids"]) for record in records)
    ids = torch.full((len(records), width), pad_id)
    labels = torch.full((len(records), width), IGNORED)
    for row, record in enumerate(records):
        tokens, answer = torch.tensor(record["ids"]), record["answer"]
        ids[row, : len(tokens)] = tokens
        labels[row, answer : len(tokens)] = tokens[answer:]
    lengths = torch.tensor([len(record["ids"]) for record in records])
    return PyTorchTensorDataset((ids, labels, lengths))


def adamw(settings: dict[str, Any]) -> Any:
    def create(parameters: Any, lr: float) -> torch.optim.Optimizer:
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        return torch.optim.AdamW(trained, lr=lr, weight_decay=settings["weight_decay"])

    return create


def main(folder: Path) -> None:
    settings = json.loads((folder / "settings.json").read_text())
    torch.set_num_threads(settings["threads"])
    users = {str(n): user(records, settings["pad_id"]) for n, records in enumerate(settings["clients"])}
    data = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    network = load(settings)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    model = PyTorchModel(network, adamw(settings), torch.optim.SGD(trained, lr=1.0))
    clock = Clock()
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=1 + settings["rounds"],
            evaluation_frequency=1 + settings["rounds"],
            train_cohort_size=len(users),
            val_cohort_size=None,
        ),
        backend=SimulatedBackend(training_data=data, val_data=data),
        model=model,
        model_train_params=NNTrainHyperParams(
            local_num_epochs=settings["epochs"],
            local_learning_rate=settings["lr"],
            local_batch_size=settings["batch_size"],
            local_max_grad_norm=settings["max_grad_norm"],
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=settings["batch_size"]),
        callbacks=[clock],
        send_metrics_to_platform=False,
    )
    if pytorch_ops.distributed.global_rank == 0:
        assert clock.first is not None
        np.save(folder / "result-adapter.npy", clock.first)
        rounds = np.diff(clock.ends).tolist()
        (folder / "result.json").write_text(json.dumps({"rounds": rounds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
