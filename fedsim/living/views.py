"""A life's models as their users see them: bare, or behind the guard of a method."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedsim.life.steps import Composed
from fedsim.living.context import LifeContext
from fedsim.model.predictor import Predictor, predictor_of
from fedsim.model.vectors import Arrays

BARE = ""
"""The view of a model that nothing guards."""


class Views:
    """Which views there are of a segment's model, and the predictor of each.

    A method that guards may share all its training with other branches: then one model is asked twice, once
    for those that see it bare and once through the guard.
    """

    def __init__(self, context: LifeContext) -> None:
        self.context = context
        self._methods = {method.branch: method for method in context.methods}
        self._guarding = {name: method for name, method in self._methods.items() if method.guards}
        longest = max(probe.ids_ST.shape[1] for _, _, probe in context.probes.named())
        self._shares_prefixes = longest <= context.model.packs_up_to

    def of(self, branches: Sequence[str]) -> dict[str, list[str]]:
        """View -> the branches whose users have it: ``BARE``, or the branch of a method that guards."""
        found: dict[str, list[str]] = {}
        for branch in branches:
            found.setdefault(branch if branch in self._guarding else BARE, []).append(branch)
        return found

    def onto(self, branch: str) -> tuple[str, ...]:
        """The views there are of a branch's model: bare, and that of its users where a method guards it."""
        return (BARE, branch) if branch in self._guarding else (BARE,)

    def granted(self, view: str, round_: int) -> tuple[int, ...]:
        """The requests that a view has answered after a round; none for the bare model.

        Like any method, a guard begins with the round after the request.
        """
        if view == BARE:
            return ()
        return tuple(request.number for request in self.context.life.requests if request.round < round_)

    def joined(self, ensemble: Composed, parts: Sequence[tuple[int, Arrays]]) -> Predictor:
        """An ensemble of one base, given each part's version and adapter.

        Only parts that have trained have a say, unless none has.
        """
        adapters = [adapter for version, adapter in parts if version] or [parts[0][1]]
        replicas = self.context.model.replicas(len(adapters))
        for replica, adapter in zip(replicas, adapters, strict=True):
            replica.load(adapter)
        asked = [predictor_of(one, one.module, shares_prefixes=self._shares_prefixes) for one in replicas]
        return self._methods[ensemble.method].joined(asked, self.context.model)

    def predictor(self, module: torch.nn.Module, view: str, round_: int) -> Predictor:
        """The model in ``module``, as `AdapterModel.measuring` gives it, through a view."""
        plain = predictor_of(self.context.model, module, shares_prefixes=self._shares_prefixes)
        granted = self.granted(view, round_)
        if not granted:
            return plain
        records = self.context.engine.runtime.records
        asked = [self.context.life.request(number) for number in granted]
        forgotten = [
            record
            for request in asked
            for record in records[request.client]
            if record.record_id in request.record_ids
        ]
        return self._guarding[view].guard(plain, self.context.model.tokenizer, forgotten)
