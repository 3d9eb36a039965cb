"""What a life may ask of a client at most: the weights and steps that privacy is sized for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from fedsim.data.records import Corpus
from fedsim.federation.draws import draw_of
from fedsim.life.config import FixedCohort
from fedsim.life.schedule import answers
from fedsim.life.script import Life
from fedsim.life.steps import Branch
from fedsim.training.config import LocalConfig
from fedsim.training.objectives import LocalWork
from fedsim.unlearning.protocol import MethodConfig, Role, RoundPlan
from fedsim.unlearning.request import Request
from privacy import Draw


def planned_rounds(method: MethodConfig, life: Life) -> Iterator[tuple[Request, int, RoundPlan]]:
    """Every unlearning round that a method takes in a life: the request it answers, its index, its plan."""
    for answer in answers(life, method):
        for index in range(method.rounds_for(answer.request)):
            yield answer.request, index, method.plan(answer.request, index)


def planned_weights(methods: Sequence[MethodConfig], life: Life) -> Iterator[float]:
    """Every weight that an unlearning round of this life may give to one client."""
    for method in methods:
        for _, _, plan in planned_rounds(method, life):
            for work in plan.work().values():
                yield from (work.weight, work.most or 0.0)


def planned_work(method: MethodConfig, life: Life) -> list[tuple[Role, LocalWork]]:
    """What each role of a method is asked to compute, in any of its rounds."""
    found = [
        (role, method.local(role, index))
        for _, index, plan in planned_rounds(method, life)
        for role in plan.work()
    ]
    return list(dict.fromkeys(found))


def has_losses_told(methods: Sequence[MethodConfig], life: Life) -> bool:
    """Whether a client may be asked for its loss in this life."""
    return any(work.tells for method in methods for _, work in planned_work(method, life))


def retains_on_public(methods: Sequence[MethodConfig], life: Life) -> bool:
    """Whether a retain term of this life is on public records."""
    terms = [work.retain for method in methods for _, work in planned_work(method, life)]
    return any(term is not None and term.records == "public" for term in terms)


def most_texts(methods: Sequence[MethodConfig], life: Life) -> int:
    """The most texts of a record that a step of this life computes at once."""
    works = [work for method in methods for _, work in planned_work(method, life)]
    return 2 if any(work.objective.needs.answers == "both" for work in works) else 1


def most_invitations(methods: Sequence[MethodConfig], life: Life) -> int:
    """The most unlearning rounds in which a client is asked regardless of sampling; DP is sized for it."""
    most = 0
    for method in methods:
        forgetting: Counter[int] = Counter()
        helping = 0
        for request, index, plan in planned_rounds(method, life):
            forgetting[request.client] += plan.target is not None
            helping += plan.helper is not None and method.helped_by(request, index) is not None
        most = max(most, helping + max(forgetting.values(), default=0))
    return most


def draws_of(rule: float | FixedCohort, branches: Sequence[Branch]) -> tuple[Draw, ...]:
    """Every way in which cohorts are drawn in a life, as rosters grow and shrink."""
    sizes = {
        (len(here), step.nominal_size)
        for branch in branches
        for here, step in zip(branch.rosters, branch.steps, strict=True)
        if here
    }
    return tuple(dict.fromkeys(draw_of(rule, here=here, nominal=nominal) for here, nominal in sorted(sizes)))


def most_steps(
    branches: Sequence[Branch],
    local: LocalConfig,
    methods: Sequence[MethodConfig],
    life: Life,
    corpus: Corpus,
) -> dict[int, int]:
    """The most local steps each client takes in any branch, unlearning included: what noise is sized for."""
    steps_of = {client: local.planned_steps(len(held)) for client, held in corpus.clients.items()}
    by_branch = {method.branch: method for method in methods}
    most: Counter[int] = Counter()
    for branch in branches:
        taken: Counter[int] = Counter()
        for step in branch.steps:
            if step.unlearning is None:
                taken.update({p.client: steps_of[p.client] for p in step.cohort})
        if branch.name in by_branch:
            taken.update(_unlearning_steps(by_branch[branch.name], branch, life, corpus, local))
        most |= taken
    return dict(most)


def _unlearning_steps(
    method: MethodConfig, branch: Branch, life: Life, corpus: Corpus, local: LocalConfig
) -> Counter[int]:
    """Local steps of each client in a method's unlearning rounds: of whoever forgets, and of helpers."""
    plans = {
        (request.number, index): (request, plan) for request, index, plan in planned_rounds(method, life)
    }
    taken: Counter[int] = Counter()
    for step in branch.steps:
        if step.unlearning is None:
            continue
        request, plan = plans[step.unlearning.request, step.unlearning.index]
        asked = dict.fromkeys((p.client for p in step.cohort), plan.helper)
        if plan.target is not None:
            asked[request.client] = plan.target
        for client, work in asked.items():
            if work is not None:
                own = local.instead(lr=work.lr, epochs=work.epochs)
                taken[client] += own.planned_steps(len(corpus.clients[client]))
    return taken
