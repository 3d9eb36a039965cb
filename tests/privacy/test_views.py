import pytest

from privacy.client_dp import ClientDpConfig
from privacy.clipping import ClipConfig
from privacy.errors import ViewError
from privacy.local_dp import LocalDpConfig
from privacy.pipeline import Pipeline
from privacy.registry import build_pipeline
from privacy.views import Capability, colluders, curious_server, honest_server, require, require_individuals
from tests.privacy.rounds import masked_pipeline


def test_masks_hide_individuals_from_both_servers():
    for view in (honest_server(masked_pipeline()), curious_server(masked_pipeline())):
        assert Capability.INDIVIDUAL_UPDATES not in view.capabilities
        assert Capability.INDIVIDUAL_WEIGHTS not in view.capabilities
        assert Capability.SUM in view.capabilities
        assert view.hidden_among == 2
    assert honest_server(Pipeline()).hidden_among == 1


def test_colluders_eat_into_the_crowd():
    pipeline = masked_pipeline(min_cohort=5)
    assert [colluders(pipeline, count=n).hidden_among for n in (0, 2, 3, 4)] == [5, 3, 2, 1]
    assert Capability.INDIVIDUAL_UPDATES not in colluders(pipeline, count=3).capabilities
    assert Capability.INDIVIDUAL_UPDATES in colluders(pipeline, count=4).capabilities
    with pytest.raises(ValueError, match="count=-1"):
        colluders(pipeline, count=-1)


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
