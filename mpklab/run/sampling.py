"""How tokens are chosen: the rules that `generate` takes, and the schedule of the step that draws by them."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mpklab.errors import RunError
from mpklab.graph import Graph
from mpklab.models import Model
from mpklab.ops.sample import COLUMNS, SEED_WORDS
from mpklab.schedule import POLICIES, POOLS, Schedule, assign
from mpklab.tasks import Plan, lower

COLDEST = 1e-4


@dataclass(frozen=True)
class Sampling:
    """The rules for one request, as in transformers and applied in its order; the defaults choose the likeliest token.

    `temperature` 0 chooses the likeliest; otherwise a token is drawn from softmax(logits / temperature), after
    `repetition_penalty` has divided the positive logits of tokens that occurred (and multiplied the negative ones),
    among the `top_k` likeliest (0: all), of these the fewest whose probabilities reach `top_p`, and of these those not
    less likely than `min_p` times the likeliest. Random numbers depend on `seed`, the number of the request in its
    batch, the token's position and the token: not on the schedule, the workers or the backend. RunError for values out
    of range, and for filters without a temperature.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most, says in (
            ("temperature", 0.0, math.inf, "0 for the likeliest token, or a positive number"),
            ("top_k", 0, (1 << 24) - 1, "a whole number, 0 for all tokens"),
            ("top_p", 0.0, 1.0, "above 0 and at most 1, for all tokens"),
            ("min_p", 0.0, 1.0, "from 0, for all tokens, to 1"),
            ("repetition_penalty", 0.0, math.inf, "a positive number, 1 for none"),
            ("seed", -(1 << 63), (1 << 64) - 1, "a whole number of 64 bits"),
        ):
            given = getattr(self, name)
            try:
                value = _whole(name, given) if name in ("top_k", "seed") else float(given)
                kept = value if name == "seed" else _as_float32(value)  # what the kernel reads
                fits = least <= value <= most and not math.isinf(kept)
            except (TypeError, ValueError):
                fits = False
            if not fits or (kept == 0 and name in ("top_p", "repetition_penalty")):
                raise RunError(f"{name} must be {says}; it is {given!r}")
            object.__setattr__(self, name, value)  # a plain number, whatever stood for it
        if 0 < self.temperature < COLDEST:
            raise RunError(f"temperature must be 0 or at least {COLDEST:g}, not {self.temperature:g}")
        for field in fields(self):
            if not self.temperature and field.name in ("top_k", "top_p", "min_p", "seed"):
                value = getattr(self, field.name)
                if value != field.default:
                    raise RunError(
                        f"{field.name}={value} needs a temperature: without one the likeliest token is chosen, "
                        "whatever the filters leave. Give temperature=1.0, say"
                    )

    @property
    def plain(self) -> bool:
        """Whether a greedy kernel does this."""
        return not self.temperature and self.repetition_penalty == 1.0

    def rules(self, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The operands `sampling` float32[rows, 5] and `seed` int32[rows, 3]; requests are numbered by row."""
        seed = self.seed & 0xFFFFFFFFFFFFFFFF
        words = torch.tensor([seed & 0xFFFFFFFF, seed >> 32, 0]).repeat(rows, 1)
        words[:, SEED_WORDS - 1] = torch.arange(rows)
        rules = [float(getattr(self, c)) for c in COLUMNS]
        return torch.tensor([rules] * rows, dtype=torch.float32), words.to(torch.int32)

    def __str__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name):g}" for f in fields(self) if getattr(self, f.name) != f.default]
        return ", ".join(given) or "greedy"


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise RunError(f"{name} must be a whole number, not {value!r}") from None


def _as_float32(value: float) -> float:
    """The number that float32 holds instead: 0 and infinity beyond what it can."""
    return float(torch.tensor(value, dtype=torch.float64).float())


def draws(graph: Graph) -> bool:
    """Whether the graph's step draws its token by rules given as data."""
    return any(o.op == "sample_reduce" for o in graph.operators)


def drawing(schedule: Schedule, model: Model | None) -> Schedule:
    """The schedule of the same model's step that draws its token, cut and assigned alike; RunError where there is none."""
    tasks = schedule.tasks
    given = tasks.graph.origin
    says = "this kernel chooses the likeliest token; build one from decode_graph(…, sampling=True) to draw tokens"
    if model is None or "embed.weight" not in given.tensors:
        raise RunError(says)
    choices: dict[str, Any] = {
        "batch": given.tensors["token"].shape[0],
        "context": given.meta["context"],
        "layers": given.meta["layers"],
        "dtype": given.tensors["embed.weight"].dtype,
    }
    if model.decode_graph(**choices).hash != given.hash:
        raise RunError(f"{says}: its graph is not the model's own")
    graph = model.decode_graph(**choices, sampling=True)
    made = lower(graph, tasks.machine, _plan_for_drawing(tasks.plan))
    policy = schedule.policy
    if schedule.mode == "static" and policy in POLICIES:
        return assign(made, policy=policy, workers=schedule.workers)
    handout = schedule.handout
    if handout is None or policy not in (*POLICIES, *POOLS):
        raise RunError(f"{says}: its schedule ({policy}) was made by hand, so draw the other one up by hand too")
    shared: dict[str, Any] = {
        "workers": schedule.workers,
        "early_push": handout.early_push,
        "pop_ahead": handout.pop_ahead,
        "priority": handout.priority,
    }
    if schedule.mode == "dynamic":
        return assign(made, "dynamic", policy, **shared)
    known = {o.name for o in made.operators}
    pooled = {tasks.operators[o].name for o in set(tasks.operator_of[schedule.pool].tolist())}
    return assign(made, "hybrid", policy, dynamic=sorted(pooled & known), pool=handout.pool, **shared)


def _plan_for_drawing(plan: Plan) -> Plan:
    """The same choices where the step ends in sample instead of argmax; scores are cut as logits are. Hand-offs are all by
    counters."""
    passes = [text.replace("split_argmax", "split_sample") for text in plan.passes if text != "fuse_argmax"]
    tilings = {name: tiling for name, tiling in plan.tilings.items() if name != "argmax_partial"}
    tilings["sample_partial"] = plan.tilings.get("argmax_partial", plan.tilings["logits"])
    return replace(plan, passes=tuple(passes), tilings=tilings, handoffs={})
