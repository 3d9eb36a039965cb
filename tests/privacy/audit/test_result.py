import numpy as np
import pytest

from privacy.accounting import Mechanism
from privacy.audit.claims import Claim
from privacy.audit.result import AuditResult, judge, tails_correct

CLAIM = Claim(composition=((Mechanism(noise_multiplier=3.73), 1),), delta=1e-5)


def test_guesses_by_hand():
    scores = np.array([3.0, -1.0, 0.2, 0.8, 2.0, -2.0])
    included = np.array([True, True, False, True, False, False])
    told = judge(scores, included, level="client", claim=CLAIM, threshold=0.5)
    assert (told.canaries, told.guesses, told.correct) == (6, 6, 4)
    assert tails_correct(scores, included, 2) == 2
    assert tails_correct(scores, included, 4) == 2
    assert tails_correct(scores, included, 6) == 4
    assert (told.level, told.bound, told.delta, told.broken) == ("client", "accuracy", 1e-5, False)


def test_broken_is_audited_above_claimed():
    rest = {
        "level": "example",
        "bound": "one_run",
        "canaries": 9,
        "guesses": 2,
        "correct": 2,
        "delta": 0.1,
        "confidence": 0.9,
    }
    for audited, broken in ((0.99, False), (1.0, False), (1.01, True)):
        told = AuditResult(**rest, audited_epsilon=audited, claimed_epsilon=1.0, certifiable_epsilon=5.0)
        assert told.broken is broken


@pytest.mark.parametrize("bound", ["accuracy", "one_run"])
def test_scores_without_information(bound):
    rng = np.random.default_rng(0)
    for _ in range(10):
        told = judge(
            rng.normal(size=5000),
            rng.random(5000) < 0.5,
            level="example",
            claim=CLAIM,
            threshold=0.0,
            bound=bound,
        )
        assert told.audited_epsilon < 0.5 < told.claimed_epsilon < told.certifiable_epsilon


def test_bad_requests():
    scores, included = np.zeros(4), np.ones(4, dtype=bool)
    known = {"level": "example", "claim": CLAIM, "threshold": 0.0}
    for wrong in (3, 0, 6):
        with pytest.raises(ValueError, match=f"guesses={wrong}"):
            judge(scores, included, **known, bound="one_run", guesses=wrong)
    with pytest.raises(ValueError, match="leave guesses out"):
        judge(scores, included, **known, guesses=2)
    with pytest.raises(ValueError, match="choose 'accuracy' or 'one_run'"):
        judge(scores, included, **known, bound="best")
