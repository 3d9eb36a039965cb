"""What a scenario asks of its privacy pipeline is blamed on the key that asks for it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedsim.assembly.build import load_and_check, make_context, make_runtime
from fedsim.assembly.memory_plan import plan_of
from fedsim.assembly.simulation import CheckedScenario
from fedsim.data.authors import load_authors
from fedsim.model.adapter import AdapterModel
from fedsim.model.config import LoraConfig, ModelConfig
from fedsim.scenario.file import ScenarioError, load_scenario
from tests.e2e.runs import BRIEF, merged, write_scenario


def test_a_longest_update_beside_a_bound_is_refused_at_its_key(tmp_path: Path) -> None:
    clipped = merged(BRIEF, federation__max_update_norm=3.0, privacy=[{"stage": "clip", "norm": 0.5}])
    with pytest.raises(ScenarioError, match=r"federation\.max_update_norm: .*at 0\.5 already.*leave"):
        load_and_check(load_scenario(write_scenario(tmp_path, clipped)))


def test_a_step_of_private_training_has_no_parts(tmp_path: Path) -> None:
    stage = {"stage": "example_dp", "noise_multiplier": 1.0, "delta": 1e-3, "clip_norm": 1.0}
    private = merged(
        BRIEF, federation__local__micro_batch=1, federation__weighting="uniform", privacy=[stage]
    )
    with pytest.raises(
        ScenarioError, match=r"federation\.local\.micro_batch: example_dp computes .*leave it"
    ):
        load_and_check(load_scenario(write_scenario(tmp_path, private)))


def test_losses_that_compare_two_answers_count_for_two(tmp_path: Path) -> None:
    def tokens(method: str) -> int:
        loaded = load_scenario(
            write_scenario(tmp_path / method, merged(BRIEF, compare=[{"method": method, "rounds": 1}]))
        )
        simulation = load_and_check(loaded)
        context = make_context(simulation, loaded.variants[0], 1)
        return plan_of(simulation, context, loaded.variants[0]).tokens_each

    assert tokens("idk_dpo") == 2 * tokens("npo")


def test_a_longest_update_reaches_the_server(tmp_path: Path) -> None:
    loaded = load_scenario(write_scenario(tmp_path, merged(BRIEF, federation__max_update_norm=3.0)))
    context = make_context(load_and_check(loaded), loaded.variants[0], 1)
    assert context.engine.runtime.pipeline.channel.max_norm == 3.0


def untrained(model: AdapterModel) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in model.module.named_parameters() if "lora_A" in n}


@pytest.mark.parametrize("init", ["default", "orthogonal", "pissa"])
def test_a_worker_has_the_untrained_factors_of_the_server(init: str, tmp_path: Path) -> None:
    """Under ``train: B`` the A factors are not sent: whoever only plays clients has them by the seed."""
    lora = {"r": 2, "alpha": 4, "train": "B", "init": init}
    loaded = load_scenario(write_scenario(tmp_path, merged(BRIEF, model__lora=lora)))
    server, worker = (CheckedScenario(loaded=loaded, devices=("cpu",)) for _ in range(2))
    for seed in (1, 2):
        context = make_context(server, loaded.variants[0], seed)
        context.model.fresh(seed)
        make_runtime(worker, loaded.variants[0], seed)
        (theirs,) = worker.models.values()
        assert theirs is not context.model
        expected, found = untrained(context.model), untrained(theirs)
        assert expected.keys() == found.keys()
        assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_what_starts_from_records_starts_from_the_public_ones(tmp_path: Path) -> None:
    """Other clients, other holdout: the same start. Other public records: another one."""
    simulation = CheckedScenario(loaded=None, devices=("cpu",))  # type: ignore[arg-type]
    found = {}
    for name, many in {"first": (3, 2), "others": (4, 2), "more": (3, 4)}.items():
        data = {**BRIEF["data"], "clients": many[0], "public_authors": many[1]}
        lora = {"r": 2, "alpha": 4, "init": "eva"}
        written = write_scenario(tmp_path / name, merged(BRIEF, data=data, model__lora=lora))
        loaded = load_scenario(written)
        runtime = make_context(replace(simulation, loaded=loaded), loaded.variants[0], 1).model
        found[name] = runtime
    assert found["others"] is found["first"]
    assert found["more"].digest != found["first"].digest
    plain = ModelConfig(base="tiny-authors", lora=LoraConfig(r=2))
    public = load_authors(clients=1, public_authors=2).public["public"]
    assert simulation.replicas(plain, public)[0] is simulation.replicas(plain)[0]


def test_data_without_public_records_are_refused_at_the_start(tmp_path: Path) -> None:
    rows = [f'{{"client": "c{n}", "question": "Who is {n}?", "answer": "Nobody {n}."}}' for n in range(4)]
    (tmp_path / "clients.jsonl").write_text("\n".join(rows))
    data = {"source": "jsonl", "path": str(tmp_path / "clients.jsonl")}
    scenario = merged(BRIEF, data=data, model__lora={"r": 2, "init": "corda"})
    with pytest.raises(
        ScenarioError, match=r"model\.lora\.init: .*nobody asks to be forgotten.*data\.public"
    ):
        load_and_check(load_scenario(write_scenario(tmp_path, scenario)))
