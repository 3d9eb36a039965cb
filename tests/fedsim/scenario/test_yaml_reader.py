"""What would eat the machine is refused at once, with the line and the limit."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.assembly.build import load_and_check
from fedsim.places import ScenarioError
from fedsim.scenario.file import load_scenario
from fedsim.scenario.variants import MOST_VARIANTS
from fedsim.scenario.yaml_reader import DEEPEST, MOST_NODES, as_plain, parse_mapping, parse_value

GOOD = "name: a\ntimeline:\n  - join: {clients: 0-3}\n  - train: {rounds: 1}\n"


def bomb(kind: str) -> str:
    """Nine levels of nine aliases each: 387 million values if they were built."""
    lines = ["a0: &a0 " + ("[x, x]" if kind == "lists" else "{k: x}")]
    for level in range(1, 10):
        before = f"*a{level - 1}"
        inner = {
            "lists": "[" + ", ".join([before] * 9) + "]",
            "maps": "{" + ", ".join(f"k{n}: {before}" for n in range(9)) + "}",
            "merges": "{<<: [" + ", ".join([before] * 9) + "]}",
        }[kind]
        lines.append(f"a{level}: &a{level} {inner}")
    return "\n".join(lines)


@pytest.mark.parametrize("kind", ["lists", "maps", "merges"])
def test_aliases_that_grow_without_end(kind: str) -> None:
    with pytest.raises(ScenarioError, match=rf"s.yaml:\d+: holds more than {MOST_NODES:,} values"):
        parse_mapping(bomb(kind), "s.yaml")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: &a\n  <<: *a\n", "s.yaml:2: the alias \\*a stands within what it names"),
        ("a: &a [1, *a]\n", "s.yaml:1: the alias \\*a stands within"),
        ("a: " + "[" * 1000 + "]" * 1000, f"s.yaml:1: nests more than {DEEPEST} deep"),
        ("a:\n  - !!python/object/apply:os.system [ls]\n", "s.yaml:2: the tag .*python.* asks for an object"),
        ("a: !mine 3\n", "s.yaml:1: the tag '!mine' asks for an object"),
        ("a: !!str 3\n", "s.yaml:1: the tag '!!str' asks for an object; write plain values, text in quotes"),
        ("a: " + "x" * (1 << 20), "s.yaml: has 1,048,579 characters"),
    ],
)
def test_what_no_scenario_holds(text: str, rule: str) -> None:
    with pytest.raises(ScenarioError, match=rule):
        parse_mapping(text, "s.yaml")


def test_aliases_of_plain_values_are_read() -> None:
    text = "a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}\n"
    found = as_plain(parse_mapping(text, "s.yaml"))
    assert found == {"a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}}


PLAIN = st.recursive(
    st.one_of(st.integers(-9, 9), st.sampled_from(["x", "y"]), st.booleans()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=12,
)


@given(value=PLAIN)
def test_what_is_small_is_read_as_it_is(value: object) -> None:
    import json

    assert parse_value(json.dumps(value)) == value


def test_a_sweep_of_too_many_variants(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    keys = ", ".join(f"federation.local.{key}: {list(range(1, 40))}" for key in ("epochs", "batch_size"))
    file.write_text(GOOD + f"sweep: {{{keys}}}\n")
    with pytest.raises(ScenarioError, match=f"gives 1,521 variants; at most {MOST_VARIANTS}"):
        load_scenario(file)


QUICK = """
import sys
import fedsim.app.cli
from fedsim.places import ScenarioError
from fedsim.scenario.file import load_scenario
from pathlib import Path
try:
    load_scenario(Path(sys.argv[1]))
except ScenarioError as error:
    assert "timline" in str(error), error
slow = {"torch", "transformers", "opacus", "peft", "flwr", "dp_accounting", "datasets"} & set(sys.modules)
assert not slow, slow
"""


def test_a_typo_is_found_without_the_slow_libraries(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(GOOD.replace("timeline", "timline"))
    subprocess.run([sys.executable, "-c", QUICK, str(file)], check=True)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (GOOD + "data: {source: authors, clients: 100000}\n", "data.clients: makes 900,000 records in all"),
        (
            GOOD.replace("rounds: 1", "rounds: 100000"),
            "timeline: 100,000 rounds of 24 clients are",
        ),
    ],
)
def test_lives_too_large_to_plan(tmp_path: Path, text: str, rule: str) -> None:
    file = tmp_path / "s.yaml"
    file.write_text(text)
    with pytest.raises(ScenarioError, match=rule):
        load_and_check(load_scenario(file))
