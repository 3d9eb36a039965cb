import pytest

from privacy.client_dp import ClientDpConfig, ClientDpStage
from privacy.clipping import ClipConfig, ClipStage
from privacy.contexts import Draw, Nominal
from privacy.distributed_dp import DistributedDpConfig, DistributedDpStage
from privacy.errors import ViewError
from privacy.local_dp import LocalDpConfig, LocalDpStage
from privacy.pipeline import Pipeline
from privacy.registry import build_pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.views import (
    Capability,
    colluders,
    curious_server,
    honest_server,
    require,
    require_individuals,
    views,
)
from tests.privacy.rounds import masked_pipeline


def test_masks_hide_individuals_from_both_servers():
    for view in (honest_server(masked_pipeline()), curious_server(masked_pipeline())):
        assert Capability.INDIVIDUAL_UPDATES not in view.capabilities
        assert Capability.INDIVIDUAL_WEIGHTS not in view.capabilities
        assert Capability.SUM in view.capabilities
        assert view.hidden_among == 2
    assert honest_server(Pipeline()).hidden_among == 1


def test_colluders_eat_into_the_crowd():
    """Of five clients three give away a secret: two colluders leave three hidden, three leave nobody."""
    pipeline = masked_pipeline(min_cohort=5)
    assert pipeline.bearable_colluders == 2
    assert [colluders(pipeline, count=n).hidden_among for n in (0, 1, 2, 3, 4)] == [5, 4, 3, 1, 1]
    assert Capability.INDIVIDUAL_UPDATES not in colluders(pipeline, count=2).capabilities
    assert Capability.INDIVIDUAL_UPDATES in colluders(pipeline, count=3).capabilities
    with pytest.raises(ValueError, match="count=-1"):
        colluders(pipeline, count=-1)


CLIP = ClipStage(ClipConfig(norm=1.0))
MASKS = SecureAggregationStage(SecureAggregationConfig())


def promised(pipeline, unit="client"):
    """The epsilon that holds against each adversary, None without."""
    found = {view.adversary: view.guarantee(unit) for view in views(pipeline)}
    return {who: None if one is None else round(one.epsilon, 3) for who, one in found.items()}


def test_noise_of_the_server_holds_against_readers_alone():
    stage = ClientDpStage(ClientDpConfig(target_epsilon=3.0, delta=1e-5))
    found = promised(Pipeline([CLIP, stage], nominal=Nominal(rounds=10, dimension=4)))
    assert found == {
        "reader of the models": 3.0,
        "honest server": None,
        "curious server": None,
        "server and colluders": None,
    }


def test_noise_of_each_client_holds_against_everybody():
    stage = LocalDpStage(LocalDpConfig(target_epsilon=3.0, delta=1e-5))
    assert set(promised(Pipeline([CLIP, stage], nominal=Nominal(rounds=10))).values()) == {3.0}


def test_shared_noise_is_less_for_those_who_know_shares():
    config = DistributedDpConfig(target_epsilon=3.0, delta=1e-5, min_survivors=9)
    pipeline = Pipeline(
        [CLIP, DistributedDpStage(config), MASKS], nominal=Nominal(rounds=10, dimension=8, max_cohort=12)
    )
    found = promised(pipeline)
    assert found["honest server"] == 3.0
    assert found["server and colluders"] > 3.5
    alone = colluders(pipeline, count=9).guarantee("client")
    assert alone is None, "nobody's share is left"


def test_a_known_multiplier_promises_what_the_whole_life_costs():
    stage = ClientDpStage(ClientDpConfig(noise_multiplier=1.0, delta=1e-3))
    draw = Draw(kind="poisson", rate=0.1, population=100)
    pipeline = Pipeline([CLIP, stage], nominal=Nominal(rounds=50, draws=(draw,), dimension=4))
    assert promised(pipeline)["reader of the models"] == pytest.approx(3.31, abs=0.01)
    assert promised(Pipeline([CLIP, stage], nominal=Nominal(dimension=4)))["reader of the models"] is None


def test_requirements_are_refused_with_the_reason():
    require(Pipeline(), ["individual_updates", "sum"], method="fed_eraser")
    require(masked_pipeline(), ["sum", "client_cooperation"], method="ascent")
    with pytest.raises(ViewError, match=r"fed_eraser.*individual_updates.*secure_aggregation hides"):
        require(masked_pipeline(), ["individual_updates"], method="fed_eraser")
    with pytest.raises(ValueError, match="unknown"):
        require(Pipeline(), ["telepathy"], method="x")


def test_updates_one_by_one_are_refused_where_something_acts_on_their_sum():
    clip, adaptive = ClipConfig(norm=1.0), ClipConfig(norm=1.0, quantile=0.5)
    noise = ClientDpConfig(noise_multiplier=1.0, delta=1e-5)
    own = LocalDpConfig(noise_multiplier=1.0, delta=1e-5)
    for stages in ([], [clip], [clip, own]):
        require_individuals(build_pipeline(stages), method="krum")
    with pytest.raises(ViewError, match=r"individual_updates.*secure_aggregation hides"):
        require_individuals(masked_pipeline(), method="krum")
    with pytest.raises(ViewError, match="client_dp adds its noise to their sum"):
        require_individuals(build_pipeline([clip, noise]), method="krum")
    with pytest.raises(ViewError, match="clip with a quantile reads the next norm"):
        require_individuals(build_pipeline([adaptive]), method="krum")
