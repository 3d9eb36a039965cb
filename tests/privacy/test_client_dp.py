"""Noise on the sum at the server: its scale, what it is charged, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from privacy.accounting import Mechanism, epsilon
from privacy.client_dp import ClientDpConfig, ClientDpStage
from privacy.clipping import ClipConfig, ClipStage
from privacy.compression import CompressionConfig, CompressionStage
from privacy.contexts import Draw, Nominal, RoundContext
from privacy.errors import PipelineError
from privacy.ledger import Ledger
from privacy.local_dp import LocalDpConfig, LocalDpStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from tests.privacy.rounds import HERE, Round, random_updates

CLIP = ClipStage(ClipConfig(norm=0.5))
POISSON = Draw(kind="poisson", rate=0.5, population=8)


def noisy(noise=2.0, *, target=None, rest=(), **fields):
    config = ClientDpConfig(noise_multiplier=None if target else noise, target_epsilon=target, delta=1e-5)
    fields = {"dimension": 4000, "max_cohort": 8, "draws": (POISSON,)} | fields
    return Pipeline([CLIP, ClientDpStage(config), *rest], nominal=Nominal(**fields))


def run(
    pipeline,
    updates,
    *,
    ledger=None,
    seed=0,
    draw=POISSON,
    roster=tuple("abcdefgh"),
    normalise=True,
    **fields,
):
    """One round; (result, ledger)."""
    ledger = Ledger() if ledger is None else ledger
    running = Round(pipeline, updates, planned=fields.get("planned_weights"))
    running.server = pipeline.open_round(
        RoundContext(
            cohort=list(updates),
            ledger=ledger,
            generator=np.random.default_rng(seed),
            draw=draw,
            roster=roster,
            **HERE,
            **fields,
        ),
        normalise=normalise,
    )
    return running.result(), ledger


def zeros(names, size=4000):
    return {name: np.zeros(size, np.float32) for name in names}


def test_noise_has_the_scale_that_is_charged():
    """Kolmogorov-Smirnov against noise_multiplier * clip / divisor; half of it is noticed."""
    result, ledger = run(noisy(2.0), zeros("ab"))
    std = 2.0 * 0.5 / 4  # multiplier * clip norm, over the expected cohort
    assert stats.kstest(result.update, "norm", args=(0, std)).pvalue > 1e-3
    assert stats.kstest(result.update, "norm", args=(0, std / 2)).pvalue < 1e-6
    (release,) = ledger.releases()
    assert (release.noise_multiplier, release.sampling, release.sampling_rate) == (2.0, "poisson", 0.5)


def test_the_mean_is_over_a_public_constant():
    quiet = noisy(1e-6)
    updates = random_updates(2, 4000, scale=1e-3)
    result, _ = run(quiet, updates)
    expected = sum(u.astype(float) for u in updates.values()) / 4
    np.testing.assert_allclose(result.update, expected, atol=1e-6)


def test_everybody_who_could_have_come_is_charged():
    _, ledger = run(noisy(), zeros("ab"))
    expected = epsilon(((Mechanism(noise_multiplier=2.0, sampling_rate=0.5), 1),), delta=1e-5)
    assert {ledger.epsilon(name, unit="client", delta=1e-5) for name in "abcdefgh"} == {expected}
    assert ledger.epsilon("z", unit="client", delta=1e-5) == 0.0


def test_a_round_to_which_nobody_came_is_released_and_charged():
    pipeline = noisy()
    assert pipeline.releases_anyway
    result, ledger = run(pipeline, {})
    assert result.contributors == ()
    assert result.update.std() == pytest.approx(2.0 * 0.5 / 4, rel=0.1)
    assert len(ledger.releases()) == 1


@pytest.mark.parametrize(
    ("draw", "fields"),
    [
        (Draw(kind="none", population=8), {"sampling": "none", "neighbours": "add_remove"}),
        (
            Draw(kind="truncated_poisson", rate=0.5, population=8, size=6),
            {"sampling": "truncated_poisson", "sampling_rate": 0.5, "population": 8, "sample_size": 6},
        ),
        (Draw(kind="truncated_poisson", rate=0.5, population=8, size=9), {"sampling": "poisson"}),
        (
            Draw(kind="without_replacement", population=8, size=3),
            {"sampling": "without_replacement", "neighbours": "replace_one", "sample_size": 3},
        ),
    ],
    ids=["none", "capped", "cap above all", "fixed"],
)
def test_the_draw_that_was_made_is_the_one_accounted(draw, fields):
    _, ledger = run(noisy(draws=(draw,)), zeros("abc"), draw=draw)
    (release,) = ledger.releases()
    assert {name: getattr(release, name) for name in fields} == fields


def test_whoever_is_asked_whatever_the_draw_is_charged_without_amplification():
    planned = {"a": -1.0, "b": 0.125}
    result, ledger = run(
        noisy(), zeros("ab"), invited=("a",), planned_weights=planned, planned_total=1.5, normalise=True
    )
    both = {(r.clients, r.sampling) for r in ledger.releases()}
    assert both == {(tuple("abcdefgh"), "poisson"), (("a",), "none")}
    assert result.update.std() == pytest.approx(2.0 * 0.5 / 1.5, rel=0.1), "noise is for the largest weight"


def test_under_masks_who_takes_part_is_known():
    """Contributors are charged without amplification; the mean, the noise and the promise are those of
    that."""
    masks = SecureAggregationStage(SecureAggregationConfig())
    pipeline = noisy(1e-6, rest=[masks], dimension=40)
    assert not pipeline.releases_anyway
    updates = random_updates(3, 40, scale=1e-3)
    result, ledger = run(pipeline, updates)
    (release,) = ledger.releases()
    assert (release.clients, release.sampling, release.neighbours) == (tuple(updates), "none", "zero_out")
    expected = sum(u.astype(float) for u in updates.values()) / 4
    np.testing.assert_allclose(result.update, expected, atol=1e-6)
    strict = noisy(target=4.0, rest=[masks], dimension=40, rounds=5)
    bare = epsilon(
        ((Mechanism(noise_multiplier=strict.stages[1].noise_multiplier, sampling="none"), 5),), delta=1e-5
    )
    assert 3.9 < bare <= 4.0, "calibrated for what is charged"
    assert strict.stages[1].promise(strict.nominal, ()) == 4.0


def test_where_draws_can_be_computed_nothing_is_amplified():
    _, ledger = run(noisy(cohort_known=True), zeros("ab"))
    (release,) = ledger.releases()
    assert (release.clients, release.sampling) == (("a", "b"), "none")


def test_noise_is_for_the_largest_weight_of_the_plan_and_not_of_those_who_came():
    for planned in ({"a": -0.5, "b": 0.1}, {"b": 0.1}, {}):
        result, _ = run(
            noisy(),
            zeros(planned),
            planned_weights=planned,
            planned_total=1.0,
            largest_weight=0.5,
            normalise=False,
        )
        assert result.update.std() == pytest.approx(2.0 * 0.5 * 0.5, rel=0.1)


def test_an_invited_client_is_charged_for_both_at_once():
    pipeline = noisy(target=5.0, rounds=1)
    sampled = RoundContext(round_id=1, branch="main", roster=("a",), draw=POISSON)
    asked = replace(sampled, invited=("a",))
    assert pipeline.affordable("a", sampled, Ledger())
    assert not pipeline.affordable("a", asked, Ledger())
    assert noisy(target=5.0, rounds=1, invitations=1).affordable("a", asked, Ledger())


@pytest.mark.parametrize("behind", ["compression", "local"])
def test_nothing_may_lengthen_updates_behind_the_noise(behind):
    stage = {
        "compression": CompressionStage(CompressionConfig(method="quantise", bits=1)),
        "local": LocalDpStage(LocalDpConfig(noise_multiplier=1.0, delta=1e-5)),
    }[behind]
    with pytest.raises(PipelineError, match="after client_dp lengthens updates"):
        noisy(rest=[stage], dimension=1000)


def test_a_cap_is_sized_for_every_roster_there_will_be():
    """With fewer to draw from, a cap hides each one less."""
    many, few = (
        Draw(kind="truncated_poisson", rate=0.5, population=n, size=10, nominal=40) for n in (40, 12)
    )
    both = noisy(target=4.0, rounds=5, draws=(many, few)).stages[1].noise_multiplier
    alone = [noisy(target=4.0, rounds=5, draws=(one,)).stages[1].noise_multiplier for one in (many, few)]
    assert both == max(alone)
    assert many.expected() == few.expected() == 10.0


def test_a_target_is_met_over_the_whole_life_and_not_exceeded():
    pipeline = noisy(target=2.0, rounds=6, dimension=3)
    ledger = Ledger()
    sampled = RoundContext(round_id=7, branch="main", roster=("a",), draw=POISSON)
    for round_id in range(6):
        here = {**HERE, "round_id": round_id}
        assert pipeline.affordable("a", replace(sampled, round_id=round_id), ledger)
        running = pipeline.open_round(
            RoundContext(
                cohort=[],
                ledger=ledger,
                generator=np.random.default_rng(0),
                draw=POISSON,
                roster=["a"],
                **here,
            )
        )
        running.receive({})
        running.aggregate({})
    spent = ledger.epsilon("a", unit="client", delta=1e-5)
    assert 1.9 < spent <= 2.0
    before = ledger.to_json()
    assert not pipeline.affordable("a", sampled, ledger)
    assert pipeline.affordable("b", replace(sampled, roster=("b",)), ledger)
    assert ledger.to_json() == before


def test_invitations_are_calibrated_for():
    without, within = noisy(target=2.0, rounds=6), noisy(target=2.0, rounds=6, invitations=2)
    assert within.stages[1].noise_multiplier > without.stages[1].noise_multiplier


def test_what_cannot_be_built():
    stage = ClientDpStage(ClientDpConfig(noise_multiplier=1.0, delta=1e-5))
    with pytest.raises(PipelineError, match="put clip before"):
        Pipeline([stage])
    with pytest.raises(PipelineError, match="weighting='uniform'"):
        Pipeline([CLIP, stage], weighting="examples", public_counts=True)
    with pytest.raises(PipelineError, match="number of rounds"):
        noisy(target=1.0)
    with pytest.raises(ValueError, match="exactly one"):
        ClientDpConfig(delta=1e-5)
    server = noisy().open_round(RoundContext(cohort=[], **HERE))
    server.receive({})
    with pytest.raises(ValueError, match="generator"):
        server.aggregate({})
