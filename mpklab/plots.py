"""Figures from frames: plotly, one per question, computing nothing; and the colours that every view shares."""

from __future__ import annotations

# Readable for colour-blind readers (after Paul Tol's bright and muted sets); the second list is for dark backgrounds.
PALETTE = {
    "light": [
        "#4477AA",
        "#EE6677",
        "#228833",
        "#CCBB44",
        "#AA3377",
        "#EE8844",
        "#44AA99",
        "#882255",
        "#999933",
        "#5544AA",
        "#66BBDD",
    ],
    "dark": [
        "#6FA8DC",
        "#F4838F",
        "#5FBF6B",
        "#E3D36B",
        "#D77BB0",
        "#F5A66B",
        "#6FCFC0",
        "#C96A94",
        "#C2C264",
        "#9A8CF0",
        "#8ADCF5",
    ],
}
# Operator kinds that keep their colour in every picture; others follow in the order they come.
KINDS = (
    "linear", "attention", "rms_norm", "silu_mul", "attention_merge", "embedding", "add", "argmax_partial",
    "argmax_reduce", "advance", "rope",
)  # fmt: skip
# Phases of a lane: light and dark colour; whether the time is idle; whether it is an operator's own work.
PHASES: dict[str, tuple[str, str, bool, bool]] = {
    "execute": ("#4477AA", "#6FA8DC", False, True),
    "wait": ("#BBC0C8", "#555B66", True, False),
    "gather": ("#7FBFB4", "#4A9488", False, False),
    "fetch": ("#D6BC6E", "#A08C48", False, False),
    "signal": ("#E39A68", "#BF7848", False, False),
    "step": ("#D3D6DB", "#40454E", True, False),
    "load": ("#AA3377", "#D77BB0", False, True),
    "ring": ("#CBB6D9", "#665374", True, False),
    "load_wait": ("#B9CCE4", "#485970", True, False),
    "operand": ("#DBBFC8", "#6E4D58", True, False),
    "push": ("#94B060", "#78924A", False, False),
    "pop": ("#C6CDA2", "#626A46", True, False),
}
UNKNOWN_PHASE = ("#999999", "#777777", False, False)


def kind_colours(kinds: list[str]) -> list[int]:
    """A palette index for each kind: fixed for the known ones, the next free ones for the rest."""
    following = iter(range(len(KINDS), len(KINDS) + len(kinds)))
    return [KINDS.index(kind) if kind in KINDS else next(following) for kind in kinds]
