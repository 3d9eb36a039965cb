import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError
from scipy import stats

from privacy.client_dp import ClientDpConfig, ClientDpStage
from privacy.clipping import AdaptiveClipStage, ClipConfig, ClipStage, clip, l2_norm
from privacy.codecs import GridCodec, SignCodec, ValueCodec, levels, pack
from privacy.compression import CompressionConfig, CompressionStage, coarse_step, quantise, ternary, top_k
from privacy.contexts import ClientContext, Draw, Nominal, RoundContext
from privacy.distributed_dp import DistributedDpConfig, DistributedDpStage
from privacy.errors import ClientUpdateError, CohortTooSmall, PipelineError
from privacy.ledger import Ledger
from privacy.local_dp import LocalDpConfig, LocalDpStage
from privacy.pipeline import Pipeline
from privacy.secagg import SecureAggregationConfig, SecureAggregationStage
from privacy.stage import Stage, Wire
from privacy.transport import Payload
from tests.privacy.rounds import HERE, Round, random_updates

CONFIGS = {
    "ternary": {"method": "ternary"},
    "thin": {"method": "ternary", "density": 0.05, "alpha": 3.0},
    "top_k": {"method": "top_k"},
    "half": {"method": "top_k", "values": "float16", "density": 0.5},
    **{f"{bits} bits": {"method": "quantise", "bits": bits} for bits in range(1, 9)},
}
EACH = pytest.mark.parametrize("name", CONFIGS)
CODECS = [
    SignCodec(density=0.3),
    ValueCodec(density=0.3, values="float16"),
    ValueCodec(density=0.3, values="float32"),
    *(GridCodec(bits=bits, step=step) for bits in (1, 3, 8) for step in (None, 0.25)),
]
finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
vectors = hnp.arrays(np.float32, st.integers(1, 60), elements=finite)
modest = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-(2.0**100), 2.0**100, width=32))
MASK = SecureAggregationStage(SecureAggregationConfig())


def stage(name):
    return CompressionStage(CompressionConfig(**CONFIGS[name]))


def clipped(norm=1.0):
    return ClipStage(ClipConfig(norm=norm))


def generators(updates, seed=0):
    return {name: np.random.default_rng([seed, i]) for i, name in enumerate(updates)}


def prepared(pipeline, update, seed=0):
    return pipeline.client(ClientContext(client="a", generator=np.random.default_rng(seed), **HERE)).prepare(
        update
    )


# ----------------------------------------------------------------------------------- by hand


def test_ternary_by_hand():
    """Entries 3, -1, -1, -1: mean 0, deviation sqrt(3); one of four is kept."""
    assert ternary(np.float32([3, -1, -1, -1]), density=0.25).tolist() == pytest.approx([3**0.5, 0, 0, 0])
    doubled = ternary(np.float32([3, -1, -1, -1]), density=0.5, alpha=2.0)
    assert doubled.tolist() == pytest.approx([12**0.5, -(12**0.5), 0, 0])


def test_top_k_by_hand():
    update = np.float32([0.1, -3.0, 2.0, 0.0, 1e-9])
    assert top_k(update, density=0.4).tolist() == [0.0, -3.0, 2.0, 0.0, 0.0]
    assert top_k(update, density=0.01).tolist() == [0.0, -3.0, 0.0, 0.0, 0.0]
    assert top_k(np.float32([1.0, 1.0, 1.0]), density=0.7).tolist() == [1.0, 1.0, 0.0]
    assert top_k(np.float32([1e9, 1e-9]), density=1.0, values="float16").tolist() == [65504.0, 0.0]


def test_quantise_by_hand():
    """Three bits: multiples -3 to 3. What lies on the grid stays, what does not goes to a neighbour."""
    generator = np.random.default_rng(0)
    update = np.float32([0.75, -0.5, 0.0, 0.25])
    assert quantise(update, bits=3, step=0.25, generator=generator).tolist() == update.tolist()
    moved = [float(quantise(np.float32([0.3]), bits=3, step=0.25, generator=generator)[0]) for _ in range(50)]
    assert set(moved) == {0.25, 0.5}
    assert set(quantise(np.zeros(50, np.float32), bits=1, step=1.0, generator=generator)) == {-1.0, 1.0}


def test_packed_bytes_by_hand():
    """Length, which of 5 are sent, the size, which of 2 are negative."""
    update = np.float32([0.0, -0.5, 0.0, 0.0, 0.5])
    expected = b"\x05\0\0\0" + bytes([0b10010]) + np.float32(0.5).tobytes() + bytes([0b01])
    assert pack(SignCodec(density=0.4), update).tobytes() == expected
    grid = pack(GridCodec(bits=2, step=0.5), update)
    assert grid.tobytes() == b"\x05\0\0\0" + bytes([0b01010001, 0b10])


@pytest.mark.parametrize("size", [1, 2, 7])
def test_zero_and_constant_updates(size):
    zero, same = np.zeros(size, np.float32), np.full(size, 2.0, np.float32)
    for name in CONFIGS:
        pipeline = Pipeline([stage(name)])
        sent = pipeline.channel.codec.decode(prepared(pipeline, zero).payload.array)
        assert sent.tobytes() == zero.tobytes(), name
    assert not ternary(same, density=0.5).any()
    assert quantise(same, bits=1, step=2.0, generator=np.random.default_rng(0)).tolist() == same.tolist()


@pytest.mark.parametrize("bits", range(2, 9))
def test_grids_of_the_smallest_numbers_arrive(bits):
    """Here steps are so coarse that a finer one, with more multiples than there are codes, fits too."""
    codec = GridCodec(bits=bits, step=None)
    for step in (1, 2, 3):
        units = np.arange(1, levels(bits) + 1) * step
        for vector in units[:, None] * np.float64(2.0**-149):
            assert codec.decode(pack(codec, vector.astype(np.float32))).tolist() == vector.tolist()


# --------------------------------------------------------------------------------- properties


@EACH
@settings(max_examples=60, deadline=None)
@given(update=modest, norm=st.sampled_from([None, 1e-3, 1.0, 1e4]), seed=st.integers(0, 99))
def test_what_is_sent_arrives_bit_by_bit_and_within_the_bound(name, update, norm, seed):
    stages = [stage(name)] if norm is None else [clipped(norm), stage(name)]
    pipeline = Pipeline(stages, nominal=Nominal(dimension=update.size))
    payload = prepared(pipeline, update, seed).payload
    assert payload.array.dtype == np.uint8
    arrived = pipeline.channel.codec.decode(payload.array)
    start = update if norm is None else clip(update, norm=norm)[0]
    party = pipeline.client(ClientContext(client="a", generator=np.random.default_rng(seed), **HERE))
    sent, metrics = pipeline.stages[-1].client(start.astype(np.float64), party.context)
    assert arrived.tobytes() == sent.astype(np.float32).tobytes()
    assert metrics["error"] >= 0
    assert (pipeline.l2_bound is None) == (norm is None)
    if norm is not None:
        assert l2_norm(arrived) <= pipeline.l2_bound


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_bound_of_a_grid_is_nearly_reached(bits):
    """Each coordinate just above a multiple is rounded up with a chance; force it, and compare."""

    class Up:
        def random(self, size):
            return np.zeros(size)

    size = 100
    wire = Wire(kind="float", l2_bound=1.0, dimension=size)
    one = CompressionStage(CompressionConfig(method="quantise", bits=bits))
    bound = one.wire(wire, Nominal()).l2_bound
    step = coarse_step(1.0, bits)
    update = np.full(size, np.float32(0.1 * (1 - 1e-6)))
    worst = l2_norm(quantise(update, bits=bits, step=step, generator=Up()))
    assert bound / 3 < worst <= bound
    assert worst >= (1.0 if bits == 8 else 1.05)


@settings(max_examples=200)
@given(vectors, st.floats(0.01, 1.0), st.floats(0.1, 10.0))
def test_ternary_stays_within_its_bound(update, density, alpha):
    try:
        sent = ternary(update, density=density, alpha=alpha)
    except ClientUpdateError:
        return
    count = max(1, math.floor(density * update.size))
    assert np.count_nonzero(sent) <= count
    assert l2_norm(sent) <= alpha * math.sqrt(count / update.size) * l2_norm(update)


@given(vectors, st.floats(0.01, 1.0), st.sampled_from(["float16", "float32"]))
def test_top_k_never_grows_a_coordinate_and_keeps_the_largest(update, density, values):
    sent = top_k(update, density=density, values=values)
    assert (np.abs(sent) <= np.abs(update)).all()
    assert l2_norm(sent) <= l2_norm(update)
    if values == "float32":
        rest = np.abs(update[sent == 0]).max(initial=0.0)
        assert rest <= np.abs(sent[sent != 0]).min(initial=np.inf)


@given(st.floats(1e-40, 1e37), st.integers(1, 8))
def test_every_multiple_of_a_step_is_an_fp32_number(largest, bits):
    step = coarse_step(largest, bits)
    most = 2 ** max(bits - 1, 1) - 1
    multiples = step * np.arange(most + 1)
    assert (multiples.astype(np.float32).astype(np.float64) == multiples).all()
    assert most * step >= largest
    assert step * most <= largest * (1 + 2**-14) + most * 2.0**-149


def mean_z(rounding, bits, repeats=4000):
    """How many standard errors the mean of repeated roundings lies off, the largest of all coordinates."""
    update = np.float32([0.9, -0.31, 0.123, -0.77, 0.0])
    step, generator = coarse_step(1.0, bits), np.random.default_rng(5)
    found = np.array([rounding(update, bits, step, generator) for _ in range(repeats)], dtype=np.float64)
    spread = np.maximum(found.std(axis=0), 1e-12) / math.sqrt(repeats)
    return np.abs((found.mean(axis=0) - update) / spread).max()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_rounding_is_unbiased(bits):
    limit = stats.norm.isf(1e-4)
    assert mean_z(lambda x, b, s, g: quantise(x, bits=b, step=s, generator=g), bits) < limit
    shifted = mean_z(
        lambda x, b, s, g: quantise((x * np.float32(0.9)).astype(np.float32), bits=b, step=s, generator=g),
        bits,
    )
    assert shifted > limit, "negative control: a shrunken update must be noticed"


@given(st.sampled_from(CODECS), st.binary(max_size=80))
def test_arbitrary_bytes_are_a_vector_or_a_typed_error(codec, data):
    packed = np.frombuffer(data, dtype=np.uint8)
    try:
        vector = codec.decode(packed)
    except ClientUpdateError:
        return
    assert vector.dtype == np.float32
    assert np.isfinite(vector).all()


@settings(max_examples=200)
@given(st.sampled_from(CODECS), st.integers(1, 40), st.data())
def test_damaged_bytes_never_crash(codec, size, data):
    update = np.random.default_rng(size).choice(np.float32([0, 0, 0, 0, 0.25, -0.25]), size)
    update = top_k(update, density=0.3) if not isinstance(codec, GridCodec) else update
    if isinstance(codec, GridCodec) and codec.bits == 1:
        update = np.where(update > 0, np.float32(0.25), np.float32(-0.25))
    packed = bytearray(pack(codec, update).tobytes())
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= data.draw(st.integers(1, 255))
    packed = packed[: data.draw(st.integers(0, len(packed)))] + data.draw(st.binary(max_size=3))
    try:
        vector = codec.decode(np.frombuffer(bytes(packed), dtype=np.uint8))
    except ClientUpdateError:
        return
    assert np.isfinite(vector).all()
    if isinstance(codec, (SignCodec, ValueCodec)):
        assert pack(codec, vector).tobytes() == bytes(packed), "one vector, one form"


# ------------------------------------------------------------------------------------- rounds


@EACH
def test_a_round_gives_the_mean_of_what_was_sent(name):
    updates = random_updates(5, 200)
    pipeline = Pipeline([clipped(), stage(name)], nominal=Nominal(dimension=200))
    running = Round(pipeline, updates, generators=generators(updates))
    result = running.result()
    sent = [
        pipeline.channel.codec.decode(prepared_payload.array)
        for prepared_payload in Round(pipeline, updates, generators=generators(updates)).payloads({}).values()
    ]
    np.testing.assert_allclose(result.update, np.mean(sent, axis=0, dtype=np.float64), atol=1e-7)
    assert len(result.contributors) == 5


RATIOS = {
    "ternary": 32 / 1.2,
    "thin": 32 / 1.05,
    "top_k": 32 / (1 + 0.2 * 32),
    "half": 32 / (1 + 0.5 * 16),
    **{f"{bits} bits": 32 / bits for bits in range(1, 9)},
}


@EACH
def test_bytes_shrink_as_promised(name):
    """ComPEFT reports 8 to 50 times fewer; a mask of positions costs 1 bit each, so 32 is the most here."""
    update = random_updates(1, 20_000)["c000"]
    made = prepared(Pipeline([stage(name)]), update)
    assert made.metrics["compression.ratio"] == update.nbytes / made.payload.array.nbytes
    assert made.metrics["compression.ratio"] == pytest.approx(RATIOS[name], rel=0.01)
    if "ternary" in CONFIGS[name].values():
        assert 8 <= made.metrics["compression.ratio"] <= 50


def test_malformed_payloads_are_that_clients_fault():
    updates = random_updates(8, 64)
    pipeline = Pipeline([stage("ternary")])
    running = Round(pipeline, updates)
    payloads = running.payloads({})
    good = payloads["c000"].array
    wrong = {
        "c001": good[:-1],
        "c002": np.append(good, np.uint8(0)),
        "c003": np.zeros(64, np.float32),
        "c004": good.reshape(1, -1),
        "c005": np.zeros(0, np.uint8),
        "c006": np.frombuffer(b"\xff\xff\xff\xff" + good.tobytes()[4:], np.uint8),
    }
    payloads |= {n: Payload(array=array, fields=payloads[n].fields) for n, array in wrong.items()}
    running.server.receive({**payloads, "stranger": payloads["c000"]})
    result = running.server.aggregate({})
    assert result.contributors == ("c000", "c007")
    assert sorted(result.rejected) == [*sorted(wrong), "stranger"]
    sent = [pipeline.channel.codec.decode(payloads[n].array) for n in ("c000", "c007")]
    np.testing.assert_allclose(result.update, np.mean(sent, axis=0), atol=1e-8)
    with pytest.raises(CohortTooSmall):
        Round(pipeline, updates).server.receive({"c001": payloads["c001"]})


def test_a_vector_of_another_length_is_left_out():
    updates = random_updates(3, 16)
    running = Round(Pipeline([stage("8 bits")]), updates, generators=generators(updates))
    payloads = running.payloads({})
    other = prepared(Pipeline([stage("8 bits")]), np.ones(8, np.float32)).payload.array
    payloads["c001"] = Payload(array=other, fields=payloads["c001"].fields)
    running.server.receive(payloads)
    assert running.server.aggregate({}).contributors == ("c000", "c002")


# ------------------------------------------------------------------------------------ legality


def test_the_noise_of_client_dp_is_sized_for_what_arrives():
    for name in CONFIGS:
        noise = ClientDpStage(ClientDpConfig(noise_multiplier=1.0, delta=1e-5))
        pipeline = Pipeline([clipped(2.0), stage(name), noise], nominal=Nominal(dimension=100))
        assert noise.sensitivity == pipeline.wires[2].l2_bound == pipeline.l2_bound
        assert pipeline.wires[-1].codec is not None
    ternary_noise = ClientDpStage(ClientDpConfig(noise_multiplier=1.0, delta=1e-5))
    Pipeline([clipped(2.0), stage("ternary"), ternary_noise], nominal=Nominal(dimension=100))
    assert ternary_noise.sensitivity == pytest.approx(2.0 * math.sqrt(0.2))


def test_a_private_round_travels_packed():
    updates = random_updates(4, 50)
    noise = ClientDpStage(ClientDpConfig(noise_multiplier=1e-6, delta=1e-5))
    pipeline = Pipeline([clipped(), stage("ternary"), noise], nominal=Nominal(dimension=50))
    draw = Draw(kind="poisson", rate=1.0, population=4)
    running = Round(pipeline, updates)
    running.server = pipeline.open_round(
        RoundContext(
            cohort=list(updates), draw=draw, ledger=Ledger(), generator=np.random.default_rng(0), **HERE
        )
    )
    expected = np.mean([ternary(clip(u, norm=1.0)[0], density=0.2) for u in updates.values()], axis=0)
    np.testing.assert_allclose(running.result().update, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["ternary", "top_k"])
def test_masks_refuse_what_depends_on_the_data(name):
    with pytest.raises(PipelineError, match="depends on the data, and the masked vector is as long"):
        Pipeline([clipped(), stage(name), MASK], nominal=Nominal(dimension=10, max_cohort=5))


def test_masks_refuse_a_grid_of_ones_own_and_take_a_public_one():
    own = Wire(kind="float", l2_bound=1.0, dimension=4, codec=GridCodec(bits=4, step=None))
    with pytest.raises(PipelineError, match="depends on the data"):
        MASK.wire(own, Nominal(max_cohort=5, max_weight=1.0))
    pipeline = Pipeline([clipped(), stage("4 bits"), MASK], nominal=Nominal(dimension=30, max_cohort=5))
    assert pipeline.wires[-1].codec is None
    updates = random_updates(3, 30)
    found = Round(pipeline, updates, generators=generators(updates))
    plain = Pipeline([clipped(), stage("4 bits")], nominal=Nominal(dimension=30))
    expected = Round(plain, updates, generators=generators(updates)).result()
    result = found.result()
    np.testing.assert_allclose(result.update, expected.update, atol=result.metrics["quantisation_error"])


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (
            LocalDpStage(LocalDpConfig(noise_multiplier=1.0, delta=1e-5)),
            "local_dp after compression undoes it",
        ),
        (
            DistributedDpStage(DistributedDpConfig(noise_multiplier=1.0, delta=1e-5, min_survivors=2)),
            "distributed_dp after compression undoes it",
        ),
    ],
)
@EACH
def test_noise_at_the_client_undoes_compression(name, after, message):
    with pytest.raises(PipelineError, match=message):
        Pipeline([clipped(), stage(name), after], nominal=Nominal(dimension=10, max_cohort=5))


def test_clips_come_first_and_compression_once():
    for late in (clipped(), AdaptiveClipStage(ClipConfig(norm=1.0, quantile=0.5))):
        with pytest.raises(PipelineError, match="clip after compression undoes it"):
            Pipeline([stage("ternary"), late], nominal=Nominal(dimension=10))
    with pytest.raises(PipelineError, match="appears 2 times"):
        Pipeline([stage("ternary"), stage("top_k")])
    with pytest.raises(PipelineError, match="compression after secure_aggregation"):
        Pipeline([clipped(), MASK, stage("8 bits")], nominal=Nominal(dimension=10, max_cohort=5))


def test_a_clip_that_follows_a_quantile_keeps_its_bit():
    adaptive = AdaptiveClipStage(ClipConfig(norm=2.0, quantile=0.5))
    for name in ("ternary", "top_k"):
        with pytest.raises(PipelineError, match="would lose the bit"):
            Pipeline([adaptive, stage(name)], nominal=Nominal(dimension=10))
    pipeline = Pipeline([adaptive, stage("8 bits")], nominal=Nominal(dimension=2))
    updates = {f"c{i}": np.float32([3.0, 4.0]) for i in range(200)}
    result = Round(pipeline, updates, generators=generators(updates)).result()
    assert result.update.tolist() == pytest.approx([1.2, 1.6], abs=0.01)
    assert result.state["clip.norm"] > 2.05


def test_a_grid_needs_a_generator():
    with pytest.raises(ValueError, match="needs a generator"):
        Pipeline([stage("8 bits")]).client(ClientContext(client="a", **HERE)).prepare(np.ones(3, np.float32))


def test_unknown_dimension():
    assert Pipeline([clipped(2.0), stage("ternary")]).l2_bound == 2.0
    assert Pipeline([clipped(2.0), stage("top_k")]).l2_bound == 2.0
    assert Pipeline([clipped(2.0), stage("8 bits")]).l2_bound is None


def test_a_stage_that_changes_what_was_compressed_is_caught():
    class Half(Stage):
        @property
        def facts(self):
            return clipped().facts.__class__(name="half", place="update")

        def client(self, update, context):
            return update * np.linspace(0.1, 1.0, update.size), {}

    with pytest.raises(ClientUpdateError, match="not as compression left it"):
        prepared(Pipeline([stage("ternary"), Half()]), random_updates(1, 50)["c000"])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_raises(bad):
    update = np.float32([1.0, bad])
    for lossy in (
        lambda: ternary(update, density=0.5),
        lambda: top_k(update, density=0.5),
        lambda: quantise(update, bits=4, step=1.0, generator=np.random.default_rng(0)),
    ):
        with pytest.raises(ClientUpdateError, match="NaN or infinity"):
            lossy()
    with pytest.raises(ClientUpdateError, match="leaves the grid"):
        quantise(np.float32([2.0]), bits=2, step=1.0, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0.0},
        {"density": 1.1},
        {"alpha": 0.0},
        {"method": "quantise", "bits": 9},
        {"method": "quantise", "bits": 0},
        {"method": "quantise", "density": 0.5},
        {"method": "top_k", "bits": 4},
        {"method": "top_k", "alpha": 2.0},
        {"values": "float16"},
        {"method": "golomb"},
        {"levels": 3},
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(ValidationError):
        CompressionConfig(**wrong)
