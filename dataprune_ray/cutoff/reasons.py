"""Why a row was kept or dropped, as decisions store it."""

from __future__ import annotations

#: Why a row was kept or dropped, by the code that ``KeepRule.reason`` gives. Codes are stored:
#: append at the end only.
REASONS = (
    "kept: at or above the cutoff",
    "kept: at or below the cutoff",
    "kept: within the kept scores",
    "kept: every row is",
    "kept: tie at the cutoff, chosen by hash",
    "kept: chosen by hash",
    "dropped: below the cutoff",
    "dropped: above the cutoff",
    "dropped: between the kept scores",
    "dropped: tie at the cutoff, not chosen by hash",
    "dropped: not chosen by hash",
    "dropped: nothing of its group is kept",
    "dropped: cut as noise",
    "kept: drawn by weight",
    "dropped: not drawn by weight",
    "dropped: duplicate of a kept row",
)
#: Code of each reason.
CODE = {reason: code for code, reason in enumerate(REASONS)}
BELOW = CODE["dropped: below the cutoff"]
ABOVE = CODE["dropped: above the cutoff"]
BETWEEN = CODE["dropped: between the kept scores"]
NOTHING = CODE["dropped: nothing of its group is kept"]
NOT_CHOSEN = CODE["dropped: not chosen by hash"]
NOISE = CODE["dropped: cut as noise"]
DRAWN = CODE["kept: drawn by weight"]
NOT_DRAWN = CODE["dropped: not drawn by weight"]
DUPLICATE = CODE["dropped: duplicate of a kept row"]
