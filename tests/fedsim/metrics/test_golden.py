"""TOFU's published numbers of a 7B model, reproduced from its published per-sample losses and texts.

The numbers come from locuslab/tofu (MIT): logs of its own evaluation, aggregates of its own scripts. The
repository carries an extract; FEDSIM_GOLDEN names the whole file where it is at hand.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.metrics.forget_quality import forget_quality
from fedsim.metrics.likelihood import choice_probability, probability
from fedsim.metrics.rouge import rouge
from fedsim.metrics.truth_ratio import forget_score, retain_score, truth_ratio
from fedsim.metrics.utility import model_utility

EXTRACT = Path(__file__).parents[2] / "golden" / "tofu_7b_extract.json"
TOLERANCE = 1e-9

FORGET = "eval_log_forget.json"
OPTIONS = {
    "Real Authors": "eval_real_author_wo_options.json",
    "Real World": "eval_real_world_wo_options.json",
}
SECTIONS = {"Retain": "eval_log.json", "Forget": FORGET, **OPTIONS}


def extract() -> dict[str, Any]:
    return json.loads(EXTRACT.read_text())


def whole() -> dict[str, Any]:
    path = os.environ.get("FEDSIM_GOLDEN")
    if not path:
        pytest.skip("FEDSIM_GOLDEN does not name the whole golden file")
    return json.loads(Path(path).read_text())


def losses(log: dict[str, Any], name: str) -> np.ndarray:
    """The logs hold float32 losses; the extract writes them with the fewest digits that round-trip."""
    return np.array(log[name], dtype=np.float32).astype(np.float64)


def ratios(log: dict[str, Any]) -> np.ndarray:
    return truth_ratio(losses(log, "avg_paraphrased_loss"), losses(log, "average_perturb_loss"))


def aggregates(golden: dict[str, Any], section: str) -> dict[str, float]:
    """TOFU's three aggregates of one section: real authors and world facts are scored among options."""
    log = golden["evaluated_log"][SECTIONS[section]]
    gold = losses(log, "avg_gt_loss")
    wrong = losses(log, "average_perturb_loss")
    share = choice_probability(gold, wrong) if section in OPTIONS else probability(gold)
    score = forget_score if section == "Forget" else retain_score
    found = {f"Prob. {section}": share.mean(), f"Truth Ratio {section}": score(ratios(log)).mean()}
    if "rougeL_recall" in log:
        found[f"ROUGE {section}"] = np.mean(log["rougeL_recall"])
    return found


def check_forget_quality(golden: dict[str, Any]) -> None:
    result = forget_quality(ratios(golden["evaluated_log"][FORGET]), ratios(golden["retain_log"][FORGET]))
    expected = golden["expected"]
    assert result.ks_distance == pytest.approx(expected["KS Test Forget"], abs=TOLERANCE)
    assert result.p_value == pytest.approx(expected["KS Test PVal Forget"], rel=TOLERANCE)
    assert result.p_value == pytest.approx(expected["Forget Quality"], rel=TOLERANCE)
    assert (result.n_unlearned, result.n_retrain) == (300, 300)


def utility_parts(numbers: dict[str, float]) -> dict[str, float]:
    return {
        f"{metric} {section}": numbers[f"{metric} {section}"]
        for metric in ("Prob.", "ROUGE", "Truth Ratio")
        for section in ("Retain", *OPTIONS)
    }


@pytest.mark.parametrize("section", ["Forget", "Real Authors"])
def test_extract_gives_the_published_aggregates(section: str) -> None:
    golden = extract()
    for name, value in aggregates(golden, section).items():
        assert value == pytest.approx(golden["expected"][name], abs=TOLERANCE), name


def test_extract_gives_the_published_forget_quality() -> None:
    check_forget_quality(extract())


def test_published_components_give_the_published_utility() -> None:
    expected = extract()["expected"]
    value, components = model_utility(utility_parts(expected))
    assert value == pytest.approx(expected["Model Utility"], abs=TOLERANCE)
    assert len(components) == 9


def test_extract_gives_the_published_rouge_of_each_text() -> None:
    rows = extract()["generated"]
    assert len(rows) == 12
    for row in rows:
        scores = rouge(row["reference"], row["generated"])
        assert scores.rouge_l_recall == pytest.approx(row["rougeL_recall"], abs=TOLERANCE)
        assert scores.rouge_1_recall == pytest.approx(row["rouge1_recall"], abs=TOLERANCE)


def test_the_other_orientation_does_not_give_the_published_truth_ratio() -> None:
    golden = extract()
    inverted = 1.0 / ratios(golden["evaluated_log"][OPTIONS["Real Authors"]])
    expected = golden["expected"]["Truth Ratio Real Authors"]
    assert retain_score(inverted).mean() != pytest.approx(expected, abs=0.1)


def test_whole_file_gives_every_published_aggregate() -> None:
    golden = whole()
    found: dict[str, float] = {}
    for section in SECTIONS:
        found |= aggregates(golden, section)
    found["Model Utility"], _ = model_utility(utility_parts(found))
    check_forget_quality(golden)
    by_test = {"Forget Quality", "KS Test PVal Forget", "KS Test Forget"}
    assert set(found) | by_test == set(golden["expected"])
    for name, value in found.items():
        assert value == pytest.approx(golden["expected"][name], abs=TOLERANCE), name


def test_whole_file_gives_the_published_rouge_of_each_text() -> None:
    for log in whole()["evaluated_log"].values():
        for index, (_, generated, reference) in enumerate(log["generated_text"]):
            scores = rouge(reference, generated)
            assert scores.rouge_l_recall == pytest.approx(log["rougeL_recall"][index], abs=TOLERANCE)
            assert scores.rouge_1_recall == pytest.approx(log["rouge1_recall"][index], abs=TOLERANCE)
