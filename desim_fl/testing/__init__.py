"""What every strategy must hold to, as a check that anybody can run on a strategy of their own, in one line of a test.

>>> from desim_fl.testing import check_strategy
>>> check_strategy("fedbuff", buffer_size=2).kept[:3]
('complete', 'storable', 'pure')

:data:`desim_fl.testing.promises.PROMISES` lists the promises; PromiseError says which one is broken, and by which call.
:func:`check_selector` is the same for a selector. :class:`Playground` is a server without a clock, for tests with numbers worked out by hand.
"""

from __future__ import annotations

from desim_fl.testing.playground import Playground
from desim_fl.testing.promises import PROMISES, Kept, check_strategy
from desim_fl.testing.script import Scene, Values, play, requests
from desim_fl.testing.selectors import SELECTOR_PROMISES, check_selector

__all__ = [
    "PROMISES",
    "SELECTOR_PROMISES",
    "Kept",
    "Playground",
    "Scene",
    "Values",
    "check_selector",
    "check_strategy",
    "play",
    "requests",
]
