"""What a life asks at most: by hand."""

from fedsim.federation.draws import draw_of
from fedsim.federation.worst_cases import draws_of, most_invitations
from fedsim.life.config import FixedCohort
from fedsim.life.steps import Branch, Step
from privacy import Draw
from tests.fedsim.life.lives import life_of, records_of, scenario_of

EVENTS = [
    {"join": {"clients": "0-5"}},
    {"train": {"rounds": 1}},
    {"forget": {"client": 1, "fraction": 0.5}},
    {"train": {"rounds": 4}},
    {"forget": {"client": 1}},
    {"train": {"rounds": 4}},
]


def branch_of(*sizes: tuple[int, int]) -> Branch:
    """A branch with so many clients there, and so many nominal ones, in each round."""
    steps = tuple(Step(round=i + 1, cohort=(), nominal_size=n) for i, (_, n) in enumerate(sizes))
    return Branch(name="keep", steps=steps, rosters=tuple(tuple(range(here)) for here, _ in sizes))


def test_draws_by_rule() -> None:
    assert draw_of(1.0, here=3, nominal=4) == Draw(kind="none", rate=1.0, population=4, nominal=4)
    assert draw_of(0.5, here=3, nominal=4) == Draw(kind="poisson", rate=0.5, population=4, nominal=4)
    capped = draw_of(FixedCohort(cohort=2, rate=0.5), here=3, nominal=4)
    assert capped == Draw(kind="truncated_poisson", rate=0.5, population=3, size=2, nominal=4)
    fixed = draw_of(FixedCohort(cohort=2), here=3, nominal=4)
    assert fixed == Draw(kind="without_replacement", population=3, size=2, nominal=4)
    places = draw_of(FixedCohort(cohort=2, replacement="none"), here=3, nominal=4)
    assert places.population == 4


def test_every_way_of_drawing_is_there_once() -> None:
    branches = [branch_of((6, 6), (6, 6), (5, 6)), branch_of((6, 6), (0, 6))]
    populations = [draw.population for draw in draws_of(FixedCohort(cohort=2, rate=0.5), branches)]
    assert populations == [5, 6]
    assert len(draws_of(0.5, branches)) == 1


def test_invitations_add_up_over_a_clients_requests() -> None:
    methods = [{"method": "grad_diff", "rounds": 2}, {"method": "npo", "rounds": 1}]
    life = life_of(EVENTS, records_of(6, each=4), methods)
    assert most_invitations(scenario_of(EVENTS, methods).compare, life) == 4
    assert most_invitations((), life) == 0
