"""Scenario values: what is allowed, what stands for what, and what comes back from a dump."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from fedsim.federation.strategies.registry import STRATEGIES
from fedsim.life.config import FixedCohort
from fedsim.life.written import parse_clients
from fedsim.scenario.compare import method_positions
from fedsim.scenario.file import dump_scenario, load_scenario
from fedsim.scenario.rules import TypeRule
from fedsim.scenario.scenario import Scenario

LIFE = [{"join": {"clients": "0-3"}}, {"train": {"rounds": 2}}]


def scenario(**more: Any) -> Scenario:
    return Scenario.model_validate({"name": "t", "timeline": LIFE, **more})


@pytest.mark.parametrize(
    ("written", "kept"),
    [(3, (3,)), ("3", ("3",)), ("0-2, 5", ("0-2, 5",)), ([4, "clinic-a"], (4, "clinic-a"))],
)
def test_clients_are_names_numbers_or_lists_of_both(written: object, kept: tuple[int | str, ...]) -> None:
    assert parse_clients(written) == kept


@pytest.mark.parametrize("written", ["", " ", [], [-1], 1.5, True, None, [["a"]], {"a": 1}])
def test_what_names_no_client_is_refused_at_once(written: object) -> None:
    with pytest.raises(ValueError, match=r"found .*; (must be a client's name|name at least one)"):
        parse_clients(written)


def test_a_strategy_may_be_a_bare_name_or_an_object() -> None:
    assert scenario(federation={"strategy": "fedadam"}) == scenario(
        federation={"strategy": {"name": "fedadam"}}
    )


def test_a_strategy_hands_on_only_its_own_parameters() -> None:
    made = scenario(federation={"strategy": {"name": "fedavgm", "server_momentum": 0.5}})
    assert made.federation.strategy.parameters() == {"server_learning_rate": 1.0, "server_momentum": 0.5}


def test_branches_that_are_always_there_may_be_named() -> None:
    written = ["keep", "npo", {"method": "retrain"}, "leave", "grad_diff"]
    assert [method.branch for method in scenario(compare=written).compare] == ["npo", "grad_diff"]
    assert method_positions(written) == (1, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [1, 1]},
        {"seeds": ["1"]},
        {"seeds": [True]},
        {"timeline": [{"train": {"rounds": 3.0}}]},
        {"timeline": [{"train": {"rounds": True}}]},
        {"federation": {"participation": "0.5"}},
        {"federation": {"participation": True}},
        {"federation": {"local": {"lr": float("inf")}}},
        {"federation": {"local": {"lr": float("nan")}}},
        {"compare": ["npo", {"method": "npo", "beta": 1.0}]},
        {"compare": [{"method": "npo", "label": "retrain-1"}]},
        {"compare": [{"method": "npo", "label": "keep"}]},
    ],
)
def test_what_is_not_exactly_meant_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        scenario(**change)


def test_rules_in_words_follow_types_and_bounds() -> None:
    def rule(*keys: str | int) -> str:
        spec = TypeRule(Scenario)
        for key in keys:
            spec = spec.below(key)
        return spec.rule()

    assert rule("model", "lora", "r") == "a whole number from 1 to 1024"
    assert rule("federation", "local", "max_grad_norm") == "a number above 0 or null"
    assert rule("federation", "local", "momentum") == "a number of at least 0 and below 1"
    assert rule("execution", "threads") == "a whole number from 1 to 256 or 'auto'"
    assert rule("data") == "a mapping with the key source; choices: authors, tofu, jsonl, hf, muse"
    assert rule("timeline", 0, "forget", "fraction") == "a number above 0 and below 1"


# ------------------------------------------------------------------------- dump and load again

words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
ids = st.integers(0, 40)
records = st.lists(words, min_size=1, max_size=3)
clients = st.one_of(ids, st.lists(ids, min_size=1), st.just("0-3, 7"))
events = st.one_of(
    st.builds(
        lambda c: {"join": {"clients": c}}, st.one_of(ids, st.lists(ids, min_size=1), st.just("0-3, 7"))
    ),
    st.builds(lambda n: {"train": {"rounds": n}}, st.integers(1, 9)),
    st.builds(lambda c: {"forget": {"client": c}}, ids),
    st.builds(lambda c, r: {"forget": {"client": c, "records": r}}, ids, records),
    st.builds(lambda c, f: {"forget": {"client": c, "fraction": f}}, ids, st.floats(0.01, 0.99)),
    st.builds(lambda c: {"leave": {"client": c}}, ids),
    st.builds(lambda c, r: {"rejoin": {"client": c, "records": r}}, ids, st.one_of(st.just("all"), records)),
    st.builds(lambda w: {"probe": {"label": w}}, words),
)


@st.composite
def strategies(draw: st.DrawFn) -> object:
    name = draw(st.sampled_from(sorted(STRATEGIES)))
    parameters = sorted(set(STRATEGIES[name].model_fields) - {"name"})
    own = draw(st.sets(st.sampled_from(parameters))) if parameters else set()
    whole, share = st.integers(1, 9), st.floats(0.001, 0.49)
    kinds = {"bias_correction": st.booleans(), "num_malicious_nodes": whole, "num_nodes_to_select": whole}
    values = {key: draw(kinds.get(key, share)) for key in sorted(own)}
    return {"name": name, **values} if own else name


methods = st.sampled_from(
    [
        "keep",
        "npo",
        "grad_ascent",
        {"method": "simnpo", "rounds": 2, "lr": 1e-5, "delta": 0.5},
        {"method": "grad_diff", "label": "gentle", "alpha": 2.0, "retain": "kl"},
    ]
)
stages = st.sampled_from(
    [
        {"stage": "clip", "norm": 0.5},
        {"stage": "example_dp", "target_epsilon": 8.0, "delta": 1e-5, "clip_norm": 1.0},
        {"stage": "secure_aggregation", "threshold": 1.0},
    ]
)
data = st.sampled_from(
    [
        {"source": "authors", "clients": 3, "partition": "dirichlet", "dirichlet_alpha": 0.1},
        {"source": "tofu", "path": "/some/folder"},
        {"source": "jsonl", "path": "/a b/c.jsonl", "holdout": "h.jsonl"},
        {
            "source": "hf",
            "files": ["/a.json", "/b.csv"],
            "clients": 3,
            "partition": {"by": "shards", "column": "t"},
        },
        {
            "source": "hf",
            "name": "some/where",
            "client_column": "who",
            "format": "messages",
            "holdout": "test",
        },
        {"source": "muse", "hub": "muse-bench/MUSE-News", "fold": "sust", "clients": 12},
    ]
)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    lora = st.one_of(
        st.none(), st.just({"r": 4, "target_modules": ["q_proj", "1e-5"], "peft": {"bias": "none"}})
    )
    part = st.one_of(st.floats(0.01, 1.0), st.just({"cohort": 3, "replacement": "none"}))
    return scenario(
        description=draw(
            st.one_of(words, st.sampled_from(["null", "1e-5", "yes", "two\nlines", "# no", "- a"]))
        ),
        seeds=draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True)),
        model={"lora": draw(lora), "base": f"hub/{draw(words)}"},  # no folder of that name is there
        data=draw(data),
        federation={
            "strategy": (strategy := draw(strategies())),
            "participation": draw(part),
            "local": {
                "lr": draw(st.floats(1e-8, 1.0)),
                "max_grad_norm": draw(st.sampled_from([None, 0.5])),
                "optimizer": "sgd" if strategy == "scaffold" else draw(st.sampled_from(["adamw", "sgd"])),
            },
        },
        privacy=draw(st.lists(stages, max_size=2)),
        timeline=draw(st.lists(events, min_size=1, max_size=6)),
        compare=draw(st.lists(methods, max_size=3, unique_by=str)),
        execution={"threads": draw(st.sampled_from(["auto", 2]))},
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=scenarios())
def test_a_dumped_scenario_reads_back_the_same(made: Scenario, tmp_path: Path) -> None:
    file = tmp_path / "scenario.yaml"
    file.write_text(dump_scenario(made), encoding="utf-8")
    assert load_scenario(file).scenario == made


def test_a_dumped_sweep_expands_to_the_same_variants(tmp_path: Path) -> None:
    made = scenario(
        sweep={"federation.local.lr": [1e-3, 1e-5], "federation.participation": [0.5, {"cohort": 2}]}
    )
    file = tmp_path / "scenario.yaml"
    file.write_text(dump_scenario(made))
    again = load_scenario(file)
    assert again.scenario == made
    assert len(again.variants) == 4
    assert again.variants[1].scenario.federation.participation == FixedCohort(cohort=2)
