import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.accounting import Mechanism, epsilon
from privacy.audit.bounds import LARGEST
from privacy.audit.claims import RATIO, REACH, Claim, claim_of, measured
from privacy.audit.planning import planned_guesses
from privacy.ledger import Ledger, Release


def gaussian(noise_multiplier, steps=1, rate=1.0):
    return ((Mechanism(noise_multiplier=noise_multiplier, sampling_rate=rate), steps),)


CLAIM = Claim(composition=gaussian(3.73), delta=1e-5)


def variation(composition):
    return measured(composition, 1e-5).total_variation


def separation(mean_shift):
    """Total variation between unit normals, in closed form."""
    return 2 * stats.norm.cdf(mean_shift / 2) - 1


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (2.0, 9), (5.0, 100)])
def test_total_variation_of_gaussians(noise, steps):
    exact = separation(steps**0.5 / noise)
    assert exact - 1e-9 <= variation(gaussian(noise, steps)) <= exact + 1e-3


def test_total_variation_of_one_sampled_step():
    """A mixture moves by the rate times what the full step moves."""
    assert variation(gaussian(1.0, rate=0.2)) == pytest.approx(0.2 * separation(1.0), abs=1e-5)


def test_total_variation_of_unlike_releases():
    mixed = gaussian(2.0, 4) + gaussian(3.0, 9)
    assert variation(mixed) == pytest.approx(separation(2**0.5), abs=1e-3)
    assert variation(()) == 0.0


@pytest.mark.parametrize(
    ("noise", "steps", "rate"), [(1.0, 1, 1.0), (2.0, 20, 0.2), (0.6, 20, 0.2), (1.5, 2000, 0.01)]
)
def test_epsilon_agrees_with_the_ledger(noise, steps, rate):
    """Two grids, both pessimistic."""
    ours, theirs = (
        measured(gaussian(noise, steps, rate), 1e-5).epsilon,
        epsilon(gaussian(noise, steps, rate), delta=1e-5),
    )
    assert ours == pytest.approx(theirs, rel=0.005)


def test_members_scale_the_noise():
    ((mechanism, steps),) = Claim(composition=gaussian(2.0, 5, 0.3), delta=1e-5).member(7)
    assert (mechanism.sampling_rate, steps) == (0.3, 5)
    assert mechanism.noise_multiplier == pytest.approx(2.0 * RATIO**7)
    assert Claim(composition=gaussian(2.0, 5, 0.3), delta=1e-5).expected_shares == pytest.approx(1.5)
    assert CLAIM.epsilon == pytest.approx(1.0, abs=0.01)


def test_vacuous_members_explain_everything():
    assert Claim(composition=gaussian(0.05), delta=1e-5).accuracy(0) == 1.0
    assert (
        Claim(composition=gaussian(0.05), delta=1e-5).audited_epsilon(
            guesses=500, correct=500, confidence=0.99
        )
        <= LARGEST
    )


@pytest.mark.parametrize("guesses", [100, 1000, 20_000])
def test_exact_false_alarm_rate(guesses):
    """The fewest right answers that refute the claim are improbable under it, but not absurdly so."""
    refuting = [
        v for v in range(guesses // 2, guesses) if stats.binom.sf(v - 1, guesses, CLAIM.accuracy(0)) < 0.02
    ]
    first = next(
        v
        for v in refuting
        if CLAIM.audited_epsilon(guesses=guesses, correct=v, confidence=0.99) > CLAIM.epsilon
    )
    assert 5e-4 < stats.binom.sf(first - 1, guesses, CLAIM.accuracy(0)) <= 0.01


@settings(max_examples=25, deadline=None)
@given(guesses=st.integers(1, 2000), share=st.floats(0, 1), confidence=st.sampled_from([0.9, 0.99]))
def test_monotone_and_within_the_certifiable(guesses, share, confidence):
    correct = min(guesses - 1, int(share * guesses))
    known = {"guesses": guesses, "confidence": confidence}
    found = CLAIM.audited_epsilon(**known, correct=correct)
    assert 0 <= found <= CLAIM.audited_epsilon(**known, correct=correct + 1)
    assert found <= CLAIM.highest_certifiable(**known) <= LARGEST
    assert found >= CLAIM.audited_epsilon(guesses=guesses, correct=correct, confidence=0.999)


def test_certifiable_grows_with_canaries():
    reach = [CLAIM.highest_certifiable(guesses=m, confidence=0.99) for m in (4, 16, 64, 256)]
    assert reach == sorted(reach)
    assert reach[0] < 2.0 < 10.0 < reach[-1]
    assert CLAIM.audited_epsilon(guesses=100, correct=50, confidence=0.99) == 0.0


def test_the_weakest_claim_counts():
    def release(client, noise, steps):
        return Release(
            round_id=1, branch="main", clients=(client,), unit="client", noise_multiplier=noise, steps=steps
        )

    ledger = Ledger([release("a", 4.0, 1), release("b", 4.0, 3)])
    claim = claim_of(ledger, ["a", "b", "c"], unit="client", delta=1e-5)
    assert claim.epsilon == ledger.epsilon("b", unit="client", delta=1e-5)
    ledger.append(release("a", 4.0, 1))
    assert claim_of(ledger, ["a", "c"], unit="client", delta=1e-5).composition == gaussian(4.0, 2)
    with pytest.raises(ValueError, match="no claim"):
        claim_of(ledger, ["a"], unit="example", delta=1e-5)


def test_bad_numbers():
    with pytest.raises(ValueError, match="correct=11"):
        CLAIM.audited_epsilon(guesses=10, correct=11, confidence=0.99)
    with pytest.raises(ValueError, match=r"confidence=1\.0"):
        CLAIM.audited_epsilon(guesses=10, correct=5, confidence=1.0)
    with pytest.raises(ValueError, match="canaries=1"):
        planned_guesses(CLAIM, 1)
    assert CLAIM.accuracy(REACH) < CLAIM.accuracy(0) < CLAIM.accuracy(-REACH // 4)


@pytest.mark.parametrize("canaries", [2, 40, 1000, 50_000])
@pytest.mark.parametrize("noise", [0.3, 1.0, 3.73, 40.0])
def test_plans_are_even_and_possible(canaries, noise):
    planned = planned_guesses(Claim(composition=gaussian(noise), delta=1e-5), canaries)
    assert planned % 2 == 0
    assert 2 <= planned <= canaries


@pytest.mark.parametrize("noise", [1e-4, 3e-3, 0.05, 1.0])
def test_perfect_guesses_prove_as_much_however_little_noise_is_claimed(noise):
    """What they prove does not depend on the claim, as long as the family reaches noise that is too much."""
    claim = Claim(composition=((Mechanism(noise_multiplier=noise, sampling_rate=0.4), 40),), delta=1e-3)
    assert 40 < claim.audited_epsilon(guesses=20_000, correct=20_000, confidence=0.99) <= LARGEST
