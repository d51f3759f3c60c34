"""The export of classifiers of trees."""

from __future__ import annotations

from typing import Any

from everstep.networks.forms import Exported
from everstep.networks.stand_ins import Runtime
from everstep.networks.tree_classifier import TreeClassifier
from everstep.networks.tree_forms import TreeStandIn, tree_forms


class ExportsTrees:
    """What a job of trees has of the capability `Exports`."""

    recipe: Any
    answers: Any
    code: Any

    def exported(self, model: Any) -> Exported:
        """Words and children of trees to log p of each answer at each node."""
        return tree_forms(model)

    def stand_in(self, runtime: Runtime) -> TreeClassifier:
        """The same in another runtime."""
        return TreeStandIn(self.answers, self.recipe.model.composition(self.code.find), runtime)
