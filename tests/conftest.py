"""Settings that all tests share."""

from __future__ import annotations

import os

from hypothesis import settings

# The same examples every time, so that a red test is about the change at hand. HYPOTHESIS_PROFILE=explore looks further.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
