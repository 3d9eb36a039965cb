"""Libraries' own logs, bars and notices, kept off the terminal."""

from __future__ import annotations

import logging
import warnings


def quiet_libraries() -> None:
    """Turn down what libraries say by themselves; faults are reported by the run."""
    import flwr  # noqa: F401  (sets up its logger on import, so its level is set afterwards)
    import transformers

    for name in ("flwr", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    for module in ("transformers", "ray"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
