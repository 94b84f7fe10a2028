"""Signals that a process received."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

#: Signals within so many seconds are one: schedulers send several, and another one would interrupt the clean-up.
TOGETHER = 1.0


@dataclass
class Received:
    """The last signal that counts.

    Attributes:
        number: its number, or 0 before the first.
        since: when it came, in seconds of a clock that only goes forward.
    """

    number: int = 0
    since: float = -math.inf

    def counts(self, number: int) -> bool:
        """Note a signal; return whether it counts, because it did not come together with the one before."""
        now = time.monotonic()
        if now - self.since <= TOGETHER:
            return False
        self.number, self.since = number, now
        return True
