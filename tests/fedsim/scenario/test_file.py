"""Scenario files: line numbers, overrides, sweeps, and one clear message for each problem."""

# ruff: noqa: E501  (messages as the user sees them)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedsim.life.events import registry as events
from fedsim.places import ScenarioError
from fedsim.scenario.file import anchored, json_schema, load_scenario
from fedsim.unlearning import registry

HEAD = """\
name: t
timeline:
  - join: {clients: 0-3}
  - train: {rounds: 2}
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("s.yaml")


def message(file: Path, text: str, *overrides: str) -> str:
    file.write_text(text)
    with pytest.raises(ScenarioError) as caught:
        load_scenario(file, overrides)
    return str(caught.value)


def test_exponents_without_a_dot_are_numbers(file: Path) -> None:
    file.write_text(HEAD + "federation: {local: {lr: 1e-5}}\n")
    assert load_scenario(file).scenario.federation.local.lr == 1e-5


def test_keys_merged_from_an_anchor_are_read(file: Path) -> None:
    file.write_text(HEAD + "federation:\n  local: &l {lr: 0.5}\nprobes:\n  <<: {every: 3}\n")
    assert load_scenario(file).scenario.probes.every == 3


TOP = "name, description, seeds, model, data, federation, privacy, timeline, compare, audits, probes, execution, sweep"
LOCAL = (
    "epochs, steps, batch_size, micro_batch, lr, schedule, optimizer, weight_decay, momentum, max_grad_norm"
)
EVENTS = ", ".join(events.EVENTS)
ALGORITHMS = (
    "fedavg, fedprox, fedavgm, scaffold, fedadagrad, fedadam, fedyogi, "
    "fedmedian, fedtrimmedavg, krum, multikrum, bulyan"
)
METHODS = ", ".join(["keep", "leave", *registry.METHODS])
STAGES = "example_dp, clip, compression, client_dp, local_dp, distributed_dp, secure_aggregation"
SHARE = "must be a number above 0 and at most 1 or a mapping with the keys cohort, rate, replacement"

WRONG = {
    # unknown keys
    "privcy: []": f"s.yaml:5: privcy: unknown key 'privcy'; did you mean 'privacy'? choices: {TOP}",
    "federation:\n  local:\n    epoch: 3": "s.yaml:7: federation.local.epoch: unknown key 'epoch'; did you mean "
    f"'epochs'? choices: {LOCAL}",
    "3: 4": f"s.yaml:5: 3: unknown key '3'; choices: {TOP}",
    # numbers and text
    "federation: {local: {lr: -1.0e-3}}": "s.yaml:5: federation.local.lr: found -0.001; must be a number above 0",
    "federation: {local: {lr: .inf}}": "s.yaml:5: federation.local.lr: found inf; must be a number above 0",
    "federation: {local: {epochs: 1.5}}": "s.yaml:5: federation.local.epochs: found 1.5; must be a whole number "
    "from 1 to 1000",
    "model: {base: 3}": "s.yaml:5: model.base: found 3; must be text; put it in quotes",
    "description: 2020-01-01": "s.yaml:5: description: found 2020-01-01; must be text; put it in quotes",
    "model: {prompt: hello}": "s.yaml:5: model.prompt: found 'hello'; must contain the placeholder {question}, "
    "or be chat",
    "seeds: [1, x]": "s.yaml:5: seeds[1]: found 'x'; must be a whole number from 0 to 2147483647",
    "seeds: [-1]": "s.yaml:5: seeds[0]: found -1; must be a whole number from 0 to 2147483647",
    "seeds: []": "s.yaml:5: seeds: found []; must be a list with at least one item, each a whole number from 0 "
    "to 2147483647",
    "seeds: [1, 1]": "s.yaml:5: seeds: found [1, 1]; seeds must differ from each other",
    "probes: {headline: fact_prob}": "s.yaml:5: probes.headline: found 'fact_prob'; did you mean "
    "'fact_probability'? choices: probability, fact_probability, paraphrase_probability, exact_memorisation, "
    "extraction_strength",
    # unions give one line
    "federation: {participation: 2}": f"s.yaml:5: federation.participation: found 2; {SHARE}",
    "federation: {participation: half}": f"s.yaml:5: federation.participation: found 'half'; {SHARE}",
    "federation: {participation: [1]}": f"s.yaml:5: federation.participation: found [1]; {SHARE}",
    "federation: {participation: null}": f"s.yaml:5: federation.participation: found null; {SHARE}",
    "federation: {participation: {cohort: 0}}": "s.yaml:5: federation.participation.cohort: found 0; must be a "
    "whole number of at least 1",
    "federation: {participation: {cohrt: 4}}": "s.yaml:5: federation.participation.cohrt: unknown key 'cohrt'; did "
    "you mean 'cohort'? choices: cohort, rate, replacement",
    "execution: {threads: many}": "s.yaml:5: execution.threads: found 'many'; must be a whole number from 1 to 256 "
    "or 'auto'",
    "model: {lora: {target_modules: [3, q]}}": "s.yaml:5: model.lora.target_modules[0]: found 3; must be text; put "
    "it in quotes",
    "model: {lora: true}": "s.yaml:5: model.lora: found true; must be a mapping with the keys r, alpha, dropout, "
    "target_modules, train, init, peft or null",
    # strategies
    "federation: {strategy: fedavgg}": "s.yaml:5: federation.strategy: unknown name 'fedavgg'; did you mean 'fedavg'? "
    f"choices: {ALGORITHMS}",
    "federation:\n  strategy:\n    name: fedavg\n    eta: 0.1": "s.yaml:8: federation.strategy.eta: unknown "
    "key 'eta'; choices: name; fedadagrad, fedadam and fedyogi take it",
    "federation: {strategy: {name: bulyan, num_nodes_to_select: 2}}": "s.yaml:5: "
    "federation.strategy.num_nodes_to_select: unknown key 'num_nodes_to_select'; choices: name, "
    "num_malicious_nodes; multikrum takes it",
    "federation: {strategy: {name: fedtrimmedavg, beta: 0.5}}": "s.yaml:5: federation.strategy.beta: found 0.5; "
    "must be a number of at least 0 and below 0.5",
    "federation: {strategy: 3}": "s.yaml:5: federation.strategy: found 3; must be a name or a mapping with the key "
    f"name; choices: {ALGORITHMS}",
    # methods: positions and lines are those of the file, though keep and leave stand before
    "compare: [grad_dif]": f"s.yaml:5: compare[0]: unknown method 'grad_dif'; did you mean 'grad_diff'? choices: {METHODS}",
    "compare:\n  - keep\n  - npo\n  - {method: simnpo, beta: -1}": "s.yaml:8: compare[2].beta: found -1; must be a "
    "number above 0",
    "compare:\n  - keep\n  - leave\n  - {method: grad_diff, retain: klx}": "s.yaml:8: compare[2].retain: found 'klx'; "
    "did you mean 'kl'? choices: nll, kl",
    "compare: [{metod: npo}]": "s.yaml:5: compare[0]: unknown key 'metod'; did you mean 'method'?",
    "compare: npo": "s.yaml:5: compare: found 'npo'; must be a list of methods, by name or with parameters",
    "compare:\n  - npo\n  - {method: npo, beta: 1}": "s.yaml:5: compare: two branches are named 'npo'; give one of "
    "them another label",
    # stages
    "privacy:\n  - {stage: clip, norm: 1}\n  - {stage: clipp}": "s.yaml:7: privacy[1]: unknown stage 'clipp'; did you "
    f"mean 'clip'? choices: {STAGES}",
    "privacy:\n  - {stage: clip, norm: -1}": "s.yaml:6: privacy[0].norm: found -1; must be a number above 0",
    "privacy:\n  - {stage: clip}": "s.yaml:6: privacy[0].norm: the key 'norm' is required; it must be a number above 0",
    "privacy:\n  - stage: clip\n    nrm: 1": "s.yaml:7: privacy[0].nrm: unknown key 'nrm'; did you mean 'norm'? "
    "choices: stage, norm, quantile, learning_rate, quantile_weight",
    "privacy: [{stage: clip, norm: true}]": "s.yaml:5: privacy[0].norm: found true; must be a number above 0",
    "privacy: [{stage: secure_aggregation, min_cohort: '5'}]": "s.yaml:5: privacy[0].min_cohort: found '5'; must be "
    "a whole number of at least 2",
    "privacy: [{stage: secure_aggregation, neighbours: 3}]": "s.yaml:5: privacy[0].neighbours: neighbours=3 must be "
    "even: half of them stand on each side of a client; the nearest are 2 and 4",
    "privacy: [{stage: local_dp, noise_multiplier: 1.0e-200, delta: 1e-5}]": "s.yaml:5: privacy[0].noise_multiplier: "
    "found 1e-200; must be a number from 1e-12 to 1048576.0",
    "privacy: [{norm: 1}]": f"s.yaml:5: privacy[0]: the key 'stage' is required; choices: {STAGES}",
    "privacy: [clip]": f"s.yaml:5: privacy[0]: found 'clip'; must be a mapping with the key stage; choices: {STAGES}",
    # data
    "data: {source: author}": "s.yaml:5: data: unknown source 'author'; did you mean 'authors'? choices: authors, "
    "tofu, jsonl, hf, muse",
    "data: {source: hf, files: [a.json], clients: 2, partition: {by: iid, column: c}}": "s.yaml:5: "
    "data.partition.column: unknown key 'column'; choices: by; dirichlet and shards take it",
    "data: {source: hf, files: [a.json]}": "s.yaml:5: data.clients: say whose rows are whose: either client_column, or "
    "clients, how many to deal them to",
    "data: {source: hf, clients: 2}": "s.yaml:5: data.name: give one of name, of a data set on the hub, and files",
    "data: {source: muse, path: a, clients: 4, fold: sust}": "s.yaml:5: data.clients: 4 of 4 clients would hold texts "
    "to forget, and nobody one to retain; use 5 or more",
    "data: {source: jsonl}": "s.yaml:5: data.path: the key 'path' is required; it must be a path",
    "data: {source: tofu}": "s.yaml:5: data: give exactly one of path and hub, for example --set data.path=FOLDER "
    "or --set data.hub=locuslab/TOFU",
    # events
    "  - trian: {rounds: 3}": f"s.yaml:5: timeline[2].trian: unknown key 'trian'; did you mean 'train'? choices: {EVENTS}",
    "  - train: 5": "s.yaml:5: timeline[2].train: found 5; must be a mapping with the keys rounds",
    "  - {}": f"s.yaml:5: timeline[2]: an event has exactly one of {EVENTS}; this one has none",
    "  - train: {rounds: 5}\n    leave: {client: 3}": f"s.yaml:5: timeline[2]: an event has exactly one of {EVENTS}; "
    "this one has train and leave",
    "  - forget: {clients: 3}": "s.yaml:5: timeline[2].forget.clients: unknown key 'clients'; did you mean 'client'? "
    "choices: client, records, fraction",
    "  - forget: {client: 3, fraction: 2}": "s.yaml:5: timeline[2].forget.fraction: found 2; must be a number above 0 "
    "and below 1",
    "  - forget: {client: 3, fraction: 0.5, records: [a]}": "s.yaml:5: timeline[2].forget: give records or fraction, "
    "not both; leave both out to forget the whole client",
    "  - rejoin: {client: 3, records: al}": "s.yaml:5: timeline[2].rejoin.records: found 'al'; must be a list of one "
    "or more record ids or 'all'",
    "  - join: {clients: [1, -2]}": "s.yaml:5: timeline[2].join.clients: found -2; must be a client's name, or its "
    "number from 0; put a name in quotes where YAML takes it for something else",
    # sweeps name the key and the value's place
    "sweep: {federation.local.lr: 3}": "s.yaml:5: sweep.federation.local.lr: found 3; must be a list with at least "
    "one item",
    "sweep: {federation.local.lr: [1, -3]}": "s.yaml:5: sweep.federation.local.lr[1]: found -3; must be a number above 0",
    "sweep: {federation.locl.lr: [1]}": "s.yaml:5: sweep.federation.locl.lr[0]: federation.locl: unknown key 'locl'; "
    "did you mean 'local'? choices: strategy, participation, weighting, max_update_norm, local",
    "sweep: {timeline.1.train.rounds: [1, 2]}": "s.yaml:5: sweep.timeline.1.train.rounds: timeline is common to all "
    "variants of a run; write one scenario for each value",
    "sweep: {federation.local.lr: [1, 1]}": "s.yaml:5: sweep: gives two variants named 'lr=1'; each value may stand "
    "once",
    "sweep: {federation..lr: [1]}": "s.yaml:5: sweep.federation..lr: must be a dotted key such as federation.local.lr",
    # YAML itself
    "name: b": 's.yaml:5: found duplicate key "name": each key may stand once; remove one',
    "federation:\n  local:\n    lr: 1\n    lr: 2": 's.yaml:8: found duplicate key "lr": each key may stand once; '
    "remove one",
    "federation: {lr: 1": "s.yaml:6: not valid YAML: while parsing a flow mapping, expected ',' or '}', but got "
    "'<stream end>'",
    "description: \x01": "s.yaml: not valid YAML: unacceptable character #x0001: special characters are not allowed",
}


@pytest.mark.parametrize("addition", WRONG)
def test_one_problem_gives_one_clear_line(file: Path, addition: str) -> None:
    assert message(file, HEAD + addition + "\n") == WRONG[addition]


def test_several_problems_give_a_line_each_in_the_order_of_the_file(file: Path) -> None:
    text = (
        HEAD
        + "model: {lora: {r: 0}}\nfederation:\n  participation: 'no'\n  strategy: {name: fedadam, tau: x}\n"
    )
    places = [line.split(": ")[:2] for line in message(file, text).splitlines()]
    assert places == [
        ["s.yaml:5", "model.lora.r"],
        ["s.yaml:7", "federation.participation"],
        ["s.yaml:8", "federation.strategy.tau"],
    ]


def test_of_many_problems_the_first_are_told_and_the_others_counted(file: Path) -> None:
    lines = message(file, HEAD + "".join(f"odd{number}: 1\n" for number in range(1234))).splitlines()
    assert len(lines) == 21
    assert "odd0" in lines[0]
    assert "odd19" in lines[19]
    assert lines[20] == "and 1,214 more problems"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "s.yaml:1: a scenario is a mapping that starts with name: and timeline:"),
        ("- a\n", "s.yaml:1: a scenario is a mapping that starts with name: and timeline:"),
        ("name: A b\ntimeline: [train: {rounds: 1}]\n", "s.yaml:1: name: found 'A b'; must be lower-case letters, "
         "digits, dot, dash and underscore, beginning with a letter or digit"),
        ("name: a\n", "s.yaml: timeline: the key 'timeline' is required; it must be a list with at least one item, "
         f"each a mapping with the keys {EVENTS}"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_scenario(file: Path, text: str, expected: str) -> None:
    assert message(file, text) == expected


# ---------------------------------------------------------------------------------- overrides


def test_overrides_reach_keys_lists_and_missing_mappings(file: Path) -> None:
    file.write_text(HEAD + "compare: [keep, npo]\n")
    overrides = [
        "federation.local.lr=1e-3",
        "timeline[1].train.rounds=7",
        "timeline.0.join.clients=0-5",
        "federation.strategy=fedadam",
        "federation.strategy.eta = 0.5",
        "compare.1.beta=0.25",
        "sweep.federation.local.epochs=[1, 2]",
    ]
    loaded = load_scenario(file, overrides)
    made = loaded.scenario
    assert made.federation.local.lr == 1e-3
    assert made.timeline[1].train is not None
    assert made.timeline[1].train.rounds == 7
    assert made.timeline[0].join is not None
    assert made.timeline[0].join.clients == ("0-5",)
    assert made.federation.strategy.parameters()["eta"] == 0.5
    assert made.compare[0].model_dump()["beta"] == 0.25
    assert [variant.name for variant in loaded.variants] == ["epochs=1", "epochs=2"]


BAD_OVERRIDES = {
    "federation.local.lr=-1": "found -1; must be a number above 0",
    "federation.locl.lr=1": "federation.locl: unknown key 'locl'; did you mean 'local'? choices: strategy, "
    "participation, weighting, max_update_norm, local",
    "federation={local: {lr: -1}}": "federation.local.lr: found -1; must be a number above 0",
    "federation.strategy.eta=3": "unknown key 'eta'; choices: name; fedadagrad, fedadam and fedyogi take it",
    "data.source=tofu": "data: give exactly one of path and hub, for example --set data.path=FOLDER or --set "
    "data.hub=locuslab/TOFU",
    "timeline.9.train.rounds=3": "timeline is a list with items 0 to 1, as in timeline[0]",
    "timeline.x.train=3": "timeline is a list with items 0 to 1, as in timeline[0]",
    "privacy.0.norm=1": "privacy is not in the scenario; give it as a whole",
    "name.x=1": "name is the value 't', not a mapping",
    "a": "must be KEY=VALUE, for example federation.local.lr=1e-3",
    "=3": "must be KEY=VALUE, for example federation.local.lr=1e-3",
    "federation..lr=3": "must be KEY=VALUE, for example federation.local.lr=1e-3",
    "seeds=[": "the value is not valid YAML: while parsing a flow node, expected the node content, but found "
    "'<stream end>'; a text with brackets needs quotes of its own",
}


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_a_bad_override_is_named(file: Path, override: str) -> None:
    assert message(file, HEAD, override) == f"--set {override}: {BAD_OVERRIDES[override]}"


def test_an_override_is_not_blamed_for_a_fault_of_the_file(file: Path) -> None:
    text = HEAD + "federation: {local: {epochs: 0}}\n"
    expected = "s.yaml:5: federation.local.epochs: found 0; must be a whole number from 1 to 1000"
    assert message(file, text, "federation.local.lr=1") == expected


def test_a_fault_between_a_key_of_the_file_and_an_override_names_both(file: Path) -> None:
    text = message(file, HEAD + "data:\n  source: tofu\n  path: a\n", "data.hub=b/c")
    assert text.startswith("s.yaml:5: data (with --set data.hub=b/c): give exactly one of path and hub")


# ------------------------------------------------------------------------------------- sweeps


def test_a_sweep_is_every_combination(file: Path) -> None:
    file.write_text(HEAD + "sweep: {federation.local.lr: [0.1, 1e-5], model.lora.r: [4, 8]}\n")
    loaded = load_scenario(file)
    assert [variant.name for variant in loaded.variants] == [
        "lr=0.1,r=4",
        "lr=0.1,r=8",
        "lr=1e-05,r=4",
        "lr=1e-05,r=8",
    ]
    last = loaded.variants[-1]
    assert last.overrides == {"federation.local.lr": 1e-5, "model.lora.r": 8}
    assert last.scenario.federation.local.lr == 1e-5
    assert last.scenario.model.lora is not None
    assert last.scenario.model.lora.r == 8
    assert loaded.scenario.federation.local.lr == 2e-3


def test_variant_names_are_plain_and_tell_equal_endings_apart(file: Path) -> None:
    keys = "model.base: [a/b, 'c d'], model.lora.r: [4], model.lora.peft.rank_pattern.r: [2]"
    file.write_text(HEAD + f"sweep: {{{keys}}}\n")
    names = [variant.name for variant in load_scenario(file).variants]
    assert names == [
        "base=a-b,model-lora-r=4,model-lora-peft-rank_pattern-r=2",
        "base=c-d,model-lora-r=4,model-lora-peft-rank_pattern-r=2",
    ]


def test_a_sweep_may_not_change_the_branches(file: Path) -> None:
    text = message(file, HEAD + "sweep: {compare: [[npo], [grad_diff]]}\n")
    assert text == (
        "s.yaml:5: sweep.compare: compare is common to all variants of a run; "
        "list the method once for each value, with labels"
    )


# ------------------------------------------------------------------------------ files and schema


def test_a_missing_file_names_the_nearest(file: Path) -> None:
    file.write_text(HEAD)
    with pytest.raises(ScenarioError, match=r"^s2\.yaml: no such file; did you mean s\.yaml\?$"):
        load_scenario(Path("s2.yaml"))
    with pytest.raises(ScenarioError, match=r"^none/of/this\.yaml: no such file$"):
        load_scenario(Path("none/of/this.yaml"))


def test_files_that_are_no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ScenarioError, match=r"^s\.yaml:1: the file is in UTF-16.* and must be in UTF-8"):
        load_scenario(file)
    file.write_bytes("name: a\ndescription: café\n".encode("latin-1"))
    with pytest.raises(ScenarioError, match=r"^s\.yaml:2: byte 0xe9 at column 17 .* iconv -f ISO-8859-1"):
        load_scenario(file)
    file.write_text(f"name: a\ntimeline: [{{train: {{rounds: {'1' * 5000}}}}}]\n")
    with pytest.raises(ScenarioError, match=r"^s\.yaml:2: a number of 5,000 digits"):
        load_scenario(file)
    with pytest.raises(ScenarioError, match=r"^\.: cannot be read \(Is a directory\)"):
        load_scenario(Path())


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_scenario_in_the_repository_is_valid(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    needs = ["data.path=somewhere"] if path.stem == "tofu" else []
    assert load_scenario(path, needs).scenario.name == path.stem


def test_the_stored_schema_is_the_generated_one() -> None:
    stored = json.loads((ROOT / "scenarios" / "schema.json").read_text())
    assert stored == json_schema(), "write it again: fedsim schema --out scenarios/schema.json"


def test_the_schema_allows_every_way_of_writing() -> None:
    parts = json_schema()["$defs"]
    kinds = {each.get("type") for each in parts["Join"]["properties"]["clients"]["anyOf"]}
    assert kinds == {"integer", "string", "array"}
    strategy = parts["FederationConfig"]["properties"]["strategy"]["anyOf"]
    assert {"type": "string", "enum": ALGORITHMS.split(", ")} in strategy
    methods = json_schema()["properties"]["compare"]["items"]["anyOf"]
    assert {"type": "string", "enum": METHODS.split(", ")} in methods


def test_paths_are_relative_to_the_scenarios_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "data.jsonl").write_text("")
    (mine / "s.yaml").write_text(
        HEAD + "data: {source: jsonl, path: data.jsonl}\nmodel: {base: tiny-authors}\n"
    )
    monkeypatch.chdir(tmp_path)
    data = load_scenario(Path("mine/s.yaml")).scenario.data
    assert data.path == mine / "data.jsonl"
    (tmp_path / "elsewhere.jsonl").write_text("")
    over = load_scenario(Path("mine/s.yaml"), ["data.path=elsewhere.jsonl"]).scenario
    assert over.data.path == Path("elsewhere.jsonl")
    assert anchored(over).data.path == tmp_path / "elsewhere.jsonl"
    assert anchored(over).model.base == "tiny-authors"


def test_files_are_relative_to_the_scenario_and_splits_are_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    (mine / "test").mkdir(parents=True)
    (mine / "a.json").write_text("[]")
    (mine / "s.yaml").write_text(
        HEAD + "data: {source: hf, files: [a.json, b.json], clients: 2, holdout: test}\n"
    )
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(Path("mine/s.yaml")).scenario
    assert scenario.data.files == (mine / "a.json", mine / "b.json"), (
        "what is nowhere is missed beside the file"
    )
    assert scenario.data.holdout == "test"
    (tmp_path / "b.json").write_text("[]")
    scenario = load_scenario(Path("mine/s.yaml")).scenario
    assert scenario.data.files == (mine / "a.json", Path("b.json"))
    (tmp_path / "test").mkdir()
    assert anchored(scenario).data.files == (mine / "a.json", tmp_path / "b.json")
    assert anchored(scenario).data.holdout == "test"
