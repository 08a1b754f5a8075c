"""Whether the model hub, or its local cache, can serve the paper profile."""

from __future__ import annotations

import urllib.request

from benchmarks.models import PAPER_MODELS, REVISIONS

TIMEOUT_S = 5


def hub_is_reachable() -> bool:
    """Whether the first model of the paper profile is in the cache, or the hub answers within a few seconds.

    With HF_HUB_OFFLINE set, the cache is all there is: libraries ask nobody then.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    name = next(iter(PAPER_MODELS.values()))
    if isinstance(try_to_load_from_cache(name, "config.json", revision=REVISIONS[name]), str):
        return True
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(f"{constants.ENDPOINT}/api/models/{name}", timeout=TIMEOUT_S):
            return True
    except OSError:
        return False
