import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.clipping import AdaptiveClipStage, ClipConfig, ClipStage
from privacy.contexts import ClientContext, Metric, Nominal, RoundContext
from privacy.errors import ClientUpdateError, CohortTooSmall, PipelineError, RoundAborted, ViewError
from privacy.example_dp import ExampleDpConfig, ExampleDpStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.stage import Facts, Stage
from privacy.transport import Payload
from tests.privacy.rounds import (
    HERE,
    Round,
    masked_pipeline,
    plain_pipeline,
    random_updates,
    run_round,
    weighted_mean,
)

CLIP = ClipStage(ClipConfig(norm=1.0))
DP = ExampleDpStage(ExampleDpConfig(noise_multiplier=1.0, delta=1e-5, clip_norm=1.0))
MASK = SecureAggregationStage(SecureAggregationConfig())
BOTH = pytest.mark.parametrize(
    "pipeline",
    [Pipeline(nominal=Nominal(max_weight=9.0)), masked_pipeline(max_weight=9.0)],
    ids=["plain", "masked"],
)


def test_weighted_mean_by_hand():
    updates = {"a": np.float32([1.0, 0.0]), "b": np.float32([0.0, 4.0])}
    result = run_round(Pipeline(weighting="examples"), updates, weights={"a": 1, "b": 3})
    assert result.update.tolist() == [0.25, 3.0]
    assert result.update.dtype == np.float32
    assert result.total_weight == 4.0
    assert result.metrics == {"contributors": 2.0}


def test_a_plain_round_gives_each_update_as_its_stages_left_it():
    """Clipped, not weighted, in the order of ids; whoever was rejected is not among them."""
    updates = {"b": np.float32([0.0, 4.0]), "a": np.float32([0.5, 0.0]), "c": np.float32([1.0, 1.0])}
    open_round = Round(Pipeline([CLIP], weighting="examples"), updates, weights={"a": 1, "b": 3, "c": 1})
    with pytest.raises(RoundAborted, match="call receive"):
        open_round.server.individuals()
    payloads = open_round.payloads({})
    payloads["c"] = Payload(array=np.float32([np.nan, 0.0]), fields=payloads["c"].fields)
    open_round.server.receive(payloads)
    sent = open_round.server.individuals()
    assert list(sent) == ["a", "b"]
    assert sent["a"].update.tolist() == [0.5, 0.0]
    assert sent["b"].update == pytest.approx([0.0, 1.0])
    assert [sent[name].weight for name in sent] == [1.0, 3.0]
    mean = sum(one.update * one.weight for one in sent.values()) / 4
    assert open_round.server.aggregate({}).update == pytest.approx(mean)


def test_a_sum_gives_no_single_update():
    masked = Round(masked_pipeline(), {"a": np.float32([0.5]), "b": np.float32([0.1])})
    masked.received()
    with pytest.raises(ViewError, match="the sum of the updates and none of them"):
        masked.server.individuals()
    adaptive = AdaptiveClipStage(ClipConfig(norm=1.0, quantile=0.5))
    plain = Round(Pipeline([adaptive]), {"a": np.float32([0.5])})
    plain.received()
    with pytest.raises(ViewError, match="clip acts on the sum"):
        plain.server.individuals()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([MASK], "put clip before"),
        ([MASK, CLIP], "clip after secure_aggregation"),
        ([CLIP, DP], "example_dp after clip"),
        ([CLIP, MASK, DP], "example_dp after secure_aggregation"),
        ([CLIP, CLIP], "appears 2 times"),
        ([CLIP, MASK, MASK], "appears 2 times"),
    ],
)
def test_order_of_stages(stages, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline(stages, nominal=Nominal(max_cohort=10))


def test_a_modular_stage_needs_the_worst_case():
    with pytest.raises(PipelineError, match="max_cohort=None"):
        Pipeline([CLIP, MASK])
    with pytest.raises(PipelineError, match="max_weight=None"):
        Pipeline([CLIP, MASK], nominal=Nominal(max_cohort=10), weighting="examples")


@pytest.mark.parametrize(
    "wrong", [{"weighting": "median"}, {"max_weight": 0.0}, {"max_cohort": -1}, {"min_cohort": 0}]
)
def test_bad_numbers(wrong):
    with pytest.raises(PipelineError, match=next(iter(wrong))):
        plain_pipeline(**wrong)


def test_unaccounted_numbers_beside_dp_are_construction_errors():
    loss, steps = Metric(name="loss", bound=10.0), Metric(name="steps", bound=100.0, public=True)
    with pytest.raises(PipelineError, match="loss"):
        Pipeline([DP, CLIP], nominal=Nominal(metrics=[loss]))
    Pipeline([DP, CLIP], nominal=Nominal(metrics=[steps]))
    Pipeline([CLIP], nominal=Nominal(metrics=[loss]))
    with pytest.raises(PipelineError, match=r"number of records.*use weighting='uniform'$"):
        Pipeline([DP], weighting="examples")
    Pipeline([DP], weighting="examples", public_counts=True)
    with pytest.raises(PipelineError, match="twice"):
        Pipeline(nominal=Nominal(metrics=[loss, loss]))


class _Noise(Stage):
    """A stage that refuses unbounded updates, as server noise will."""

    @property
    def facts(self):
        return Facts(name="noise", place="update", charges="client")

    def wire(self, incoming, nominal):
        if incoming.l2_bound is None:
            raise PipelineError("noise without clip")
        return incoming

    def sum(self, total, context):
        return total + 1.0, {"std": 0.0}

    def server(self, update, context):
        return 2 * update, {}


def test_noise_without_clip_and_hooks_in_order():
    with pytest.raises(PipelineError, match="noise without clip"):
        Pipeline([_Noise()])
    pipeline = Pipeline([CLIP, _Noise()])
    assert pipeline.protects == {"client"}
    updates = {"a": np.float32([0.5]), "b": np.float32([0.25])}
    result = run_round(pipeline, updates)
    assert result.update.tolist() == [2 * (0.75 + 1.0) / 2]
    assert result.metrics["noise.std"] == 0.0


def test_facts_are_derived():
    plain, masked = Pipeline([CLIP]), masked_pipeline()
    assert (plain.reveals, plain.interactive, plain.l2_bound) == ("individual", False, 1.0)
    assert (masked.reveals, masked.interactive) == ("sum", True)
    assert plain.local_rule() is None
    assert Pipeline([DP]).local_rule() is not None
    assert plain.client(ClientContext(client="a", **HERE)).advertise() == b""


@pytest.mark.parametrize(
    "update",
    [
        np.array([1.0, np.nan], dtype=np.float32),
        np.array([np.inf, 0.0], dtype=np.float32),
        np.zeros(3, dtype=np.float32),
        np.zeros((1, 2), dtype=np.float32),
        np.zeros(0, dtype=np.float32),
        np.zeros(2, dtype=np.float64),
        [0.0, 0.0],
    ],
    ids=["nan", "inf", "size", "matrix", "empty", "float64", "list"],
)
@pytest.mark.parametrize("make", [plain_pipeline, masked_pipeline], ids=["plain", "masked"])
def test_unusable_updates_fail_at_the_client(make, update):
    """No broadcast is needed to see it: the check comes before masking."""
    with pytest.raises(ClientUpdateError, match="update"):
        make(dimension=2).client(ClientContext(client="a", **HERE)).prepare(update)


@pytest.mark.parametrize("weight", [0, -1, 1.5, np.nan, np.inf, 11])
def test_weights_are_counts_within_the_bound(weight):
    party = Pipeline(nominal=Nominal(max_weight=10), weighting="examples").client(
        ClientContext(client="a", **HERE)
    )
    with pytest.raises(ClientUpdateError, match="weight="):
        party.prepare(np.zeros(2, np.float32), weight=weight)


def test_metrics_must_be_the_declared_ones():
    party = Pipeline(nominal=Nominal(metrics=[Metric(name="loss", bound=2.0)])).client(
        ClientContext(client="a", **HERE)
    )
    update = np.zeros(2, np.float32)
    for wrong in ({}, {"loss": 1.0, "extra": 2.0}, {"loss": np.nan}):
        with pytest.raises(ClientUpdateError, match="metrics"):
            party.prepare(update, metrics=wrong)
    assert party.prepare(update, metrics={"loss": 9.0}).payload.fields["metric.loss"] == 2.0


def test_stage_metrics_stay_at_the_client_and_inputs_stay_as_they_are():
    update = np.float32([3.0, 4.0])
    prepared = Pipeline([CLIP]).client(ClientContext(client="a", **HERE)).prepare(update)
    assert prepared.metrics == {"clip.norm": 5.0, "clip.clipped": 1.0}
    assert set(prepared.payload.fields) == {"client", "round", "branch", "attempt", "weight"}
    assert update.tolist() == [3.0, 4.0]


@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_order_of_arrival_changes_no_bit(pipeline, seed):
    updates = random_updates(6, 25, seed=seed)
    shuffled = dict(sorted(updates.items(), key=lambda item: item[1][0]))
    assert run_round(pipeline, updates).update.tobytes() == run_round(pipeline, shuffled).update.tobytes()


@BOTH
def test_mean_of_identical_updates_is_that_update(pipeline):
    update = random_updates(1, 40)["c000"]
    result = run_round(pipeline, {str(i): update for i in range(7)})
    np.testing.assert_allclose(result.update, update, atol=result.metrics.get("quantisation_error", 0.0))


@BOTH
@pytest.mark.parametrize("factor", [0.25, 2.0, 3.0])
def test_weights_scale_out(pipeline, factor):
    updates = random_updates(4, 25)
    planned = {n: 1.0 + i / 4 for i, n in enumerate(updates)}
    scaled = {n: w * factor for n, w in planned.items()}
    one, two = (run_round(pipeline, updates, planned=p) for p in (planned, scaled))
    np.testing.assert_allclose(one.update, two.update, rtol=1e-6, atol=2e-6)
    assert two.total_weight == pytest.approx(factor * one.total_weight, rel=1e-6)


def test_splitting_a_cohort_changes_no_aggregate():
    pipeline = Pipeline(weighting="examples")
    updates = random_updates(9, 30)
    weights = {n: i + 1 for i, n in enumerate(updates)}
    names = list(updates)
    whole = run_round(pipeline, updates, weights=weights)
    parts = [run_round(pipeline, {n: updates[n] for n in g}, weights=weights) for g in (names[:4], names[4:])]
    total = sum(p.update.astype(np.float64) * p.total_weight for p in parts)
    np.testing.assert_allclose(whole.update, total / sum(p.total_weight for p in parts), rtol=1e-5, atol=1e-8)
    assert whole.total_weight == sum(p.total_weight for p in parts)


@BOTH
@pytest.mark.parametrize("normalise", [True, False])
def test_combination_rule_of_an_unlearning_round(pipeline, normalise):
    """gamma for the target that ascends, alpha / n for each of n helpers."""
    updates = random_updates(5, 12)
    planned = {"c000": 0.7} | dict.fromkeys(list(updates)[1:], 0.3 / 4)
    result = run_round(pipeline, updates, planned=planned, normalise=normalise)
    expected = weighted_mean(updates, planned) * (1.0 if normalise else sum(planned.values()))
    np.testing.assert_allclose(result.update, expected, atol=1e-6)


@BOTH
def test_a_signed_sum_is_possible_and_a_mean_without_weight_is_not(pipeline):
    updates = random_updates(2, 5)
    planned = {"c000": 1.0, "c001": -1.0}
    result = run_round(pipeline, updates, planned=planned, normalise=False)
    np.testing.assert_allclose(result.update, updates["c000"] - updates["c001"], atol=1e-6)
    with pytest.raises(RoundAborted, match="positive total"):
        run_round(pipeline, updates, planned=planned)


def test_planned_weights_are_checked():
    pipeline = masked_pipeline(max_weight=2.0)
    with pytest.raises(ValueError, match="must cover"):
        pipeline.open_round(RoundContext(cohort=["a", "b"], planned_weights={"a": 1.0}, **HERE))
    with pytest.raises(CohortTooSmall, match="leave 1 clients"):
        pipeline.open_round(RoundContext(cohort=["a", "b"], planned_weights={"a": 1.0, "b": 0.0}, **HERE))
    with pytest.raises(ClientUpdateError, match="max_weight"):
        run_round(pipeline, random_updates(2, 3), planned={"c000": 2.5, "c001": 1.0})
    updates = random_updates(2, 3)
    running = Round(pipeline, updates, planned={"c000": 2.0, "c001": 1.0})
    running.planned = {"c000": 1.5, "c001": 1.0}
    with pytest.raises(RoundAborted, match="planned"):
        running.result()


def test_one_bad_plain_payload_is_that_clients_failure():
    pipeline = Pipeline()
    updates = random_updates(6, 4)
    running = Round(pipeline, updates)
    payloads = running.payloads({})
    good = payloads["c000"]
    payloads["c001"] = Payload(array=np.float32([1, np.nan, 0, 0]), fields=payloads["c001"].fields)
    payloads["c002"] = Payload(array=np.zeros(3, np.float32), fields=payloads["c002"].fields)
    payloads["c003"] = good
    payloads["c004"] = Payload(array=good.array, fields={**payloads["c004"].fields, "weight": "x"})
    running.server.receive({**payloads, "stranger": good})
    result = running.server.aggregate({})
    assert result.contributors == ("c000", "c005")
    assert sorted(result.rejected) == ["c001", "c002", "c003", "c004", "stranger"]
    with pytest.raises(CohortTooSmall, match="min_cohort=1"):
        Round(pipeline, updates).server.receive({"c001": payloads["c001"]})
    with pytest.raises(CohortTooSmall):
        Round(pipeline, updates).server.receive({})


def test_cohort_names_nobody_twice():
    with pytest.raises(ValueError, match="twice"):
        Pipeline().open_round(RoundContext(cohort=["a", "a"], **HERE))


def test_example_dp_clip_and_masks_build_together():
    pipeline = Pipeline([DP, CLIP, MASK], nominal=Nominal(max_cohort=5))
    assert [fact.name for fact in pipeline.facts] == ["example_dp", "clip", "secure_aggregation"]
    assert pipeline.protects == {"example"}
    assert run_round(pipeline, random_updates(3, 4)).metrics["contributors"] == 3.0
