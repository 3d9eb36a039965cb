"""Numbers of a size that nobody can mean are refused in every configuration there is."""

import types
import typing
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, ValidationError

from fedsim.config import Config
from fedsim.scenario.scenario import Scenario
from fedsim.unlearning.protocol import MethodConfig
from privacy.config import Config as StageBase

EDGES = (5e-324, 1e-300, 1e300, 1e308, -5e-324, -1e308)


def models(annotation: object, seen: set[type[BaseModel]]) -> Iterator[type[BaseModel]]:
    """All models that a type can hold, each once."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation not in seen:
            seen.add(annotation)
            yield annotation
            for field in annotation.model_fields.values():
                yield from models(field.annotation, seen)
        return
    for part in typing.get_args(annotation):
        yield from models(part, seen)


def holds_float(annotation: object) -> bool:
    if annotation is float:
        return True
    unions = (typing.Union, types.UnionType, typing.Annotated)
    return typing.get_origin(annotation) in unions and any(map(holds_float, typing.get_args(annotation)))


EVERY = sorted(models(Scenario, set()), key=lambda model: model.__name__)
FLOATS = [
    (model, name) for model in EVERY for name, f in model.model_fields.items() if holds_float(f.annotation)
]


def test_all_configurations_were_found() -> None:
    names = {name for _, name in FLOATS}
    assert {"lr", "norm", "eta", "beta", "target_epsilon", "tolerance", "delta"} <= names
    assert len(FLOATS) >= 25
    assert all(issubclass(model, (Config, MethodConfig, StageBase)) for model, _ in FLOATS)


@pytest.mark.parametrize(("model", "name"), FLOATS, ids=[f"{m.__name__}.{n}" for m, n in FLOATS])
@pytest.mark.parametrize("value", EDGES)
def test_sizes_that_cannot_be_meant_are_refused(model: type[BaseModel], name: str, value: float) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate({name: value})
    assert any(problem["loc"] and problem["loc"][0] == name for problem in error.value.errors())


@pytest.mark.parametrize("epsilon", [1e-300, 1e-9, 1e7, 1e308])
def test_budgets_that_say_nothing_are_refused(epsilon: float) -> None:
    from privacy.noise import Budget

    with pytest.raises(ValidationError):
        Budget(target_epsilon=epsilon, delta=1e-5)
    assert Budget(target_epsilon=8.0, delta=1e-5).target_epsilon == 8.0
