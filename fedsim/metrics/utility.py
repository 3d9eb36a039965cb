"""Model utility: what the model is still good for, as one number.

TOFU (Maini et al., 2024, arXiv:2401.06121) takes the harmonic mean of nine: probability, ROUGE-L recall and
truth ratio on the retain set, real authors and world facts. Any named components work here.

>>> value, components = model_utility({"retain.probability": 1.0, "world.probability": 0.5})
>>> round(value, 4), sorted(components)
(0.6667, ['retain.probability', 'world.probability'])
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy import stats


def model_utility(components: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Harmonic mean of the components, in [0, 1], and the components themselves.

    Edge cases: 0 when one component is 0: a model that lost one ability altogether is not useful.

    Raises:
        ValueError: no component, or one outside [0, 1] or NaN.
    """
    if not components:
        raise ValueError("components={} is empty; model utility needs one component at least")
    for name, value in components.items():
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"component {name}={value} must be in [0, 1]; leave out what was not measured")
    values = np.array(list(components.values()), dtype=np.float64)
    return float(stats.hmean(values)) if values.all() else 0.0, dict(components)
