"""A two-layer model on eight SMs, for compute-sanitizer: `sanitized.py static|dynamic`; prints its tokens."""

import sys

import mpklab as mk

SIZES = {"layers": 2, "vocab": 2048, "hidden": 512, "heads": 8, "kv_heads": 4, "head_dim": 64, "intermediate": 1024}
CHOICES: dict[str, dict] = {
    "static": {},
    "dynamic": {"mode": "dynamic", "early_push": True},
    "per_worker": {"mode": "dynamic", "policy": "per_worker"},
}

if __name__ == "__main__":
    model = mk.models.random("qwen3-0.6b", device="cuda", **SIZES)
    tasks = mk.lower(model.decode_graph(context=128), mk.Machine.cuda(8))
    kernel = mk.build(mk.assign(tasks, **CHOICES[sys.argv[1]]), weights=model)
    # One token: nothing goes through prefill, so that no kernel but this one takes the tool's time.
    print("tokens", kernel.generate([5], max_new_tokens=6, profile=int(sys.argv[2])).tokens)
