"""The large scenarios, checked with stand-ins for what cannot be here, and the plans of their bases."""

from pathlib import Path

import pytest

from fedsim.app.stand_in import describe_stand_in
from fedsim.assembly.stand_in import bytes_of, stood_in
from fedsim.config import ConfigError
from fedsim.model.config import ModelConfig
from fedsim.model.quantising import base_bytes
from fedsim.model.shapes import known_shape, known_shapes, shape_for
from fedsim.model.skeleton import skeleton_of
from fedsim.places import ScenarioError
from fedsim.scenario.file import load_scenario

FOLDER = Path(__file__).parents[3] / "scenarios"
LARGE = sorted(
    path for path in FOLDER.glob("*.yaml") if load_scenario(path).scenario.model.base in known_shapes()
)


def test_there_are_four() -> None:
    assert [path.stem for path in LARGE] == ["flowertune", "oblivionis-1b", "oblivionis-3b", "tofu-1b"]


@pytest.mark.slow
@pytest.mark.parametrize("file", LARGE, ids=lambda path: path.stem)
def test_large_scenarios_are_valid_and_fit(file: Path) -> None:
    loaded = load_scenario(file)
    lines = describe_stand_in(loaded, "80GB")
    assert "is valid with stand-ins" in lines[0]
    (memory,) = [line for line in lines if line.startswith("  memory:")]
    assert "of 80.0 GB" in memory
    assert "Not tried on a GPU yet" in loaded.scenario.description


@pytest.mark.slow
def test_a_gpu_that_is_too_small_is_refused_at_the_key_to_turn() -> None:
    file = FOLDER / "tofu-1b.yaml"
    with pytest.raises(
        ScenarioError, match=r"federation\.local\.micro_batch: \d+, or model\.checkpointing: true"
    ):
        describe_stand_in(load_scenario(file), "16GB")


def test_what_is_wrong_with_the_life_is_still_found() -> None:
    more = ["federation.participation={cohort: 20}", "privacy=[{stage: clip, norm: 1.0}]"]
    loaded = load_scenario(FOLDER / "tofu-1b.yaml", more)
    assert stood_in(loaded).scenario.privacy == loaded.scenario.privacy
    with pytest.raises(ScenarioError, match="timeline"):
        describe_stand_in(
            load_scenario(FOLDER / "tofu-1b.yaml", ["timeline=[{forget: {client: 3}}]"]), "80GB"
        )


def test_names_become_numbers_behind_those_that_are_there() -> None:
    timeline = (
        "timeline=[{join: {clients: 'ward-117, 0-2'}}, {train: {rounds: 2}}, {forget: {client: ward-117}}, "
        "{forget: {client: 1, records: ['three:4', 'three:9']}}, {train: {rounds: 1}}]"
    )
    loaded = load_scenario(FOLDER / "oblivionis-1b.yaml", [timeline, "compare=[]"])
    scenario = stood_in(loaded).scenario
    assert scenario.data.clients == 4
    lines = describe_stand_in(loaded, "80GB")
    assert "client 3 asks to be forgotten" in lines[2]
    assert "client 1 asks to forget 2 of 9 records" in lines[3]


def test_stand_ins_leave_the_rest_as_it_is() -> None:
    loaded = load_scenario(FOLDER / "oblivionis-1b.yaml")
    one, two = loaded.scenario, stood_in(loaded).scenario
    for part in ("name", "seeds", "federation", "privacy", "timeline", "compare", "audits", "probes"):
        assert getattr(one, part) == getattr(two, part)
    assert two.model.lora == one.model.lora
    assert two.data.clients == 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B-Instruct", 3_212_749_824),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
    ],
)
def test_shapes_have_the_parameters_that_their_publishers_count(name: str, parameters: int) -> None:
    """Numbers of parameters as the models' pages on the hub have them."""
    model = skeleton_of(known_shape(name), ModelConfig(base=name, dtype="bfloat16"))
    trained = sum(parameter.numel() for parameter in model.parameters().values())
    assert sum(parameter.numel() for parameter in model.module.parameters()) - trained == parameters
    assert base_bytes(model.module) == 2 * parameters + 4 * trained


def test_a_base_without_a_shape_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"mistralai/Mistral-7B-v0\.3") as raised:
        shape_for(ModelConfig(base="no/such/base"))
    assert raised.value.key == ("base",)


@pytest.mark.parametrize("text", ["80", "80 TB", "-3GB", "0GB", "GB"])
def test_sizes_of_memory_have_a_unit(text: str) -> None:
    with pytest.raises(ScenarioError, match="must be a size"):
        bytes_of(text)
