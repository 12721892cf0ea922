"""Models made of transformers modules: their memory, their tokens, their configurations."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mpklab as mk
from mpklab import models
from mpklab.errors import ModelError

transformers = pytest.importorskip("transformers", reason="the modules are transformers' own")

SIZES: dict[str, Any] = {
    "vocab_size": 131, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 80, "max_position_embeddings": 96, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
MODULES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama untied, its own head_dim": ("Llama", {"tie_word_embeddings": False, "head_dim": 20}),
    "llama 3 rope": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "qwen3 tied": ("Qwen3", {"tie_word_embeddings": True, "head_dim": 32}),
    "qwen3 untied": ("Qwen3", {"tie_word_embeddings": False, "head_dim": 12, "rms_norm_eps": 1e-5}),
    "qwen3, one kv head": ("Qwen3", {"num_key_value_heads": 1, "head_dim": 16}),
    "llama, as many kv heads as heads": ("Llama", {"num_key_value_heads": 4}),
    "llama, another rope_theta": ("Llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "qwen3, a sliding window that is off": ("Qwen3", {"use_sliding_window": False, "sliding_window": 8}),
}
PROMPT = [3, 99, 21, 7, 7, 56, 130]


def make(kind: str = "Qwen3", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A module with random weights, large enough that tokens differ."""
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **changes})
    torch.manual_seed(4)
    module = getattr(transformers, f"{kind}ForCausalLM")(config).to(dtype).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.normal_(1.0, 0.1) if parameter.ndim == 1 else parameter.normal_(0.0, 1.3 / parameter.shape[1] ** 0.5)
    return module


def greedy(module: Any, count: int) -> list[int]:
    with torch.inference_mode():
        ids = torch.tensor([PROMPT])
        return module.generate(ids, max_new_tokens=count, do_sample=False, use_cache=True)[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("name", MODULES)
def test_its_tokens_are_those_of_the_module(name: str) -> None:
    kind, changes = MODULES[name]
    module = make(kind, **changes)
    model = models.from_hf(module)
    kernel = mk.compile(model, machine=mk.Machine.cpu(2), context=64)
    assert kernel.generate(PROMPT, max_new_tokens=40).tokens == greedy(module, 40)


def test_nothing_is_copied() -> None:
    module = make(tie_word_embeddings=True)
    model = models.from_hf(module)
    assert model.config.tied and model.config.head_dim == module.config.head_dim
    parameters = {p.data_ptr() for p in module.parameters()}
    assert {t.data_ptr() for t in model.weights.values()} == parameters
    kernel = mk.compile(model, machine=mk.Machine.cpu(2), context=64)
    session = kernel.new_session()
    weights = {n: t for n, t in session.tensors.items() if kernel.graph.tensors[n].role == "weight" and n != "rope"}
    assert {t.data_ptr() for t in weights.values()} <= parameters
    before = kernel.generate(PROMPT, max_new_tokens=20).tokens
    for layer in module.model.layers:
        layer.self_attn.v_proj.weight.mul_(-2.0)
        layer.mlp.up_proj.weight.mul_(0.5)
    after = kernel.generate(PROMPT, max_new_tokens=20).tokens
    assert after == greedy(module, 20) and after != before


def test_bfloat16_agrees_up_to_ties() -> None:
    module = make(dtype=torch.bfloat16)
    kernel = mk.compile(models.from_hf(module), machine=mk.Machine.cpu(2), context=64)
    found = kernel.generate(PROMPT, max_new_tokens=30).tokens
    with torch.inference_mode():
        logits = module.float()(torch.tensor([PROMPT + found])).logits[0, len(PROMPT) - 1 : -1]
    chosen = logits.gather(1, torch.tensor(found)[:, None])[:, 0]
    assert (logits.max(1).values - chosen).max() <= 2**-6 * logits.abs().max()


def test_end_tokens_are_the_module_s() -> None:
    module = make()
    expected = greedy(module, 30)
    module.generation_config.eos_token_id = [expected[5], 0]
    model = models.from_hf(module)
    assert model.config.eos == (expected[5], 0)
    tokens = mk.compile(model, machine=mk.Machine.cpu(2), context=64).generate(PROMPT, max_new_tokens=30).tokens
    ends = [i for i, t in enumerate(expected) if t in model.config.eos]
    assert tokens == expected[: ends[0] + 1]


def test_a_model_of_a_module_goes_back_to_transformers() -> None:
    module = make(tie_word_embeddings=False)
    peer = models.from_hf(module).to_transformers()
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        assert peer(ids).logits.equal(module(ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.model, r"pass the …ForCausalLM"),
        (lambda m: m.half(), "kept in torch.float16"),
        (lambda m: torch.nn.Linear(3, 3), "not Linear"),
        (lambda m: "qwen3-0.6b", "not str"),
        (lambda m: m.model.layers[1].mlp.bfloat16() and m, "model.layers.1.mlp.gate_proj.weight.*should be dense"),
    ],
)
def test_what_is_no_such_module_is_refused(change: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.from_hf(change(make()))


class Renamed(transformers.LlamaForCausalLM):
    """Somebody's subclass that computes the same."""


class Doubled(transformers.LlamaForCausalLM):
    """Somebody's subclass that computes something else."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = out.logits * 2
        return out


class Adapter(torch.nn.Module):
    """A linear with a low-rank addition, as peft wraps one."""

    def __init__(self, base: torch.nn.Linear):
        super().__init__()
        self.base_layer = base
        self.lora_A = torch.nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = torch.nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


def look(*_: Any) -> None:
    """A hook."""


def changed(module: Any, change: Any) -> Any:
    change(module)
    return module


def resize(module: Any) -> None:
    module.resize_token_embeddings(140, mean_resizing=False)


SAME = {
    "in train mode": lambda: make("Llama", attention_dropout=0.5).train(),
    "compiled by torch": lambda: torch.compile(make()),
    "a subclass": lambda: changed(make("Llama"), lambda m: setattr(m, "__class__", Renamed)),
    "more tokens": lambda: changed(make("Llama", tie_word_embeddings=True), resize),
    "tied by hand": lambda: changed(
        make("Llama", tie_word_embeddings=False), lambda m: setattr(m.lm_head, "weight", m.model.embed_tokens.weight)
    ),
    "after its outputs were recorded": lambda: changed(
        make(), lambda m: m(torch.tensor([PROMPT]), output_hidden_states=True)
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_what_does_not_change_the_tokens_is_taken(name: str) -> None:
    module = SAME[name]()
    kernel = mk.compile(models.from_hf(module), machine=mk.Machine.cpu(2), context=64)
    module = getattr(module, "_orig_mod", module).eval()
    assert kernel.generate(PROMPT, max_new_tokens=30).tokens == greedy(module, 30)


def with_adapter(module: Any) -> None:
    module.model.layers[1].self_attn.q_proj = Adapter(module.model.layers[1].self_attn.q_proj)


def without_numbers() -> Any:
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(make("Llama").config)


def patched(module: Any) -> None:
    forward = module.model.norm.forward
    module.model.norm.forward = lambda x: 2 * forward(x)


class Packed(torch.Tensor):
    """What libraries for quantised weights hide theirs behind: its shape and dtype are those of a plain tensor."""


def packed(module: Any) -> None:
    up = module.model.layers[0].mlp.up_proj
    up.weight = torch.nn.Parameter(up.weight.data.as_subclass(Packed), requires_grad=False)


@pytest.mark.filterwarnings("ignore:.*quantiz")
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (lambda: changed(make("Llama"), lambda m: setattr(m, "__class__", Doubled)), r"Doubled.* has a forward\(\)"),
        (lambda: changed(make(), patched), r"'model.norm', a Qwen3RMSNorm.* has a forward\(\)"),
        (lambda: changed(make(), with_adapter), r"'model.layers.1.self_attn.q_proj', a Adapter .*merge_and_unload"),
        (lambda: changed(make(), lambda m: m.model.layers[0].register_forward_hook(look)), "'model.layers.0' has forward"),
        (lambda: changed(make(), lambda m: m.lm_head.register_forward_pre_hook(look)), "'lm_head' has forward hooks"),
        (lambda: torch.ao.quantization.quantize_dynamic(make(), {torch.nn.Linear}), "'model.layers.0.self_attn.q_proj'"),
        (lambda: changed(make(), packed), "'model.layers.0.mlp.up_proj.weight'.* is a Packed, not a plain tensor"),
        (without_numbers, "on the meta device"),
        (lambda: torch.nn.DataParallel(make()), "not DataParallel"),
        (lambda: make().double(), "kept in torch.float64"),
        (lambda: changed(make(), lambda m: setattr(m.config, "rms_norm_eps", 1e-3)), "variance_epsilon 1e-06"),
        (lambda: changed(make(), lambda m: m.model.rotary_emb.inv_freq.mul_(2)), "'model.rotary_emb.inv_freq' is not"),
        (lambda: changed(make(), lambda m: setattr(m.model.rotary_emb, "attention_scaling", 1.1)), "attention_scaling 1.1"),
        (lambda: make("Llama", rope_parameters={**LLAMA3, "partial_rotary_factor": 0.5}), "inv_freq' is not"),
        (lambda: changed(make(), lambda m: setattr(m.model, "layers", m.model.layers[:1])), "no parameter 'model.layers.1"),
        (lambda: changed(make(), lambda m: setattr(m.config, "num_hidden_layers", 1)), "parameters that .* not model"),
        (lambda: transformers.LlamaForSequenceClassification(make("Llama").config), "no lm_head.weight"),
        (lambda: make("Qwen3", use_sliding_window=True, sliding_window=8, max_window_layers=0), "use_sliding_window"),
        (lambda: make("Qwen3", layer_types=["full_attention", "sliding_attention"]), "layer_types to sliding_attention"),
        (lambda: make("Mistral"), "'mistral' model"),
        (lambda: make("Gemma", head_dim=12), "'gemma' model"),
        (lambda: make("Qwen2"), "'qwen2' model"),
        (lambda: make("Llama", mlp_bias=True), "mlp_bias"),
        (lambda: make("Llama", hidden_act="gelu"), "activation 'gelu'"),
    ],
)  # fmt: skip
def test_what_would_change_the_tokens_is_refused(module: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        models.from_hf(module())


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "longrope"])
def test_scaled_ropes_but_llama_3_s_are_refused(kind: str) -> None:
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 48}
    factors = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6} if kind == "longrope" else {}
    with pytest.raises(ModelError, match=f"scales its rope by '{kind}'"):
        models.from_hf(make("Llama", rope_parameters={**rope, **factors}))


def test_what_the_graph_does_not_model_is_refused() -> None:
    with pytest.raises(ModelError, match="attention_bias"):
        models.from_hf(make("Llama", attention_bias=True))
    with pytest.raises(ModelError, match="describes a 'gpt2' model"):
        models.from_hf(
            transformers.GPT2LMHeadModel(transformers.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=9))
        )
