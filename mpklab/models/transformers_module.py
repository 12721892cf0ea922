"""A transformers module as a Model: its own configuration and its own weights, used where they lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from mpklab.errors import ModelError, suggest
from mpklab.models.config import layout
from mpklab.models.model import Model
from mpklab.models.rope import inverse_frequencies
from mpklab.models.safetensors_folder import config_of, stored_name
from mpklab.models.weights import torch_dtype

if TYPE_CHECKING:
    from mpklab.models.config import Config
    from mpklab.models.tokenizer import Tokenizer

# Whose forward() does what a configuration says.
KNOWN_CODE = (
    "transformers.models.", "transformers.modeling_layers", "transformers.activations", "transformers.pytorch_utils",
    "torch.nn.",
)  # fmt: skip
KNOWN_HOOKS = ("transformers.", "torch.")  # that only look
ALIGNMENT_BYTES = 16  # of what a GPU's bulk copies read


class SharedWeights(Mapping[str, torch.Tensor]):
    """Tensors by mpklab's names, each somebody else's memory. They have one dtype and one device, and no order."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        self._tensors = dict(tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        found = self._tensors.get(name)
        if found is None:
            raise ModelError(f"the model has no weight called {name!r}: {suggest(name, self._tensors)}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __repr__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"SharedWeights({len(self)} tensors, {dtype}, {self.nbytes / 1e6:,.1f} MB on {self.device})"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of every tensor."""
        return next(iter(self._tensors.values())).dtype

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return next(iter(self._tensors.values())).device

    @property
    def nbytes(self) -> int:
        """The size of all tensors."""
        return sum(t.nbytes for t in self._tensors.values())

    def view(self, names: Sequence[str]) -> torch.Tensor | None:
        """None: no matrices of a module are one."""
        return None

    def to(self, device: str | torch.device) -> SharedWeights:
        """The same weights on a device: this object when they are there already, otherwise copies."""
        return self._changed({name: t.to(device) for name, t in self._tensors.items()})

    def astype(self, dtype: str | torch.dtype) -> SharedWeights:
        """The same weights in another dtype, rounded to nearest even; this object when nothing changes."""
        return self._changed({name: t.to(torch_dtype(dtype)) for name, t in self._tensors.items()})

    def _changed(self, tensors: dict[str, torch.Tensor]) -> SharedWeights:
        return self if all(t is self._tensors[name] for name, t in tensors.items()) else SharedWeights(tensors)


def from_hf(module: Any, tokenizer: Tokenizer | None = None) -> Model:
    """A LlamaForCausalLM or Qwen3ForCausalLM of transformers as a Model that shares the module's memory.

    Nothing is copied: q, k and v (gate and up) are addressed where they lie, a change of the module's weights in place is
    the kernel's too, and a tied embedding is one matrix. The module must be dense, float32 or bfloat16, on one device; a
    module that is moved later leaves this model with the old memory. The kernel computes what the module does in eval
    mode. `tokenizer` is mpklab's own, for prompts in text. ModelError says what does not fit: a configuration or weights
    that the graph does not model, and code that it cannot know of, such as adapters, quantised layers, hooks, or a
    forward() of the caller's.
    """
    module = getattr(module, "_orig_mod", module)  # what torch.compile wraps
    what = type(module).__name__
    settings: Any = getattr(module, "config", None)
    if not isinstance(module, torch.nn.Module) or not hasattr(settings, "to_dict"):
        raise ModelError(f"from_hf takes a transformers module such as Qwen3ForCausalLM, not {what}")
    _check_code(what, module)
    held = {name: p.detach() for name, p in module.named_parameters(remove_duplicate=False)}
    if "lm_head.weight" not in held:
        raise ModelError(f"from_hf: {what} has no lm_head.weight: pass the …ForCausalLM around it")
    embed = held.get("model.embed_tokens.weight", held["lm_head.weight"])
    if embed.is_meta:
        raise ModelError(f"from_hf: {what} is on the meta device, where weights have no numbers: load them first")
    known = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
    if embed.dtype not in known:
        raise ModelError(f"from_hf: {what} is kept in {embed.dtype}; mpklab computes in {' or '.join(known.values())}")
    ends = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    values = settings.to_dict()
    ends = values.get("eos_token_id") if ends is None else ends
    name = str(values.get("_name_or_path") or getattr(settings, "_name_or_path", "") or values.get("model_type"))
    config = config_of(
        values, f"the configuration of {what}", name.rstrip("/").rpartition("/")[2], ends, known[embed.dtype]
    )
    other = set(values.get("layer_types") or ()) - {"full_attention"}
    if other:
        raise ModelError(
            f"the configuration of {what} sets layer_types to {', '.join(sorted(other))}; mpklab's layers are full_attention"
        )
    config = config.with_(tied=held["lm_head.weight"].data_ptr() == embed.data_ptr())
    _check_numbers(what, module, config)
    return Model(
        config, SharedWeights(_weights(what, config, held, embed)), tokenizer, source=f"the memory of a {what}"
    )


def _check_code(what: str, module: torch.nn.Module) -> None:
    """ModelError where something of a module would run that is neither transformers' nor torch's own."""
    for name, part in module.named_modules():
        where = f"{what}'s {name!r}" if name else what
        home = next(c for c in type(part).__mro__ if "forward" in vars(c)).__module__
        if "forward" in vars(part) or not home.startswith(KNOWN_CODE):
            raise ModelError(
                f"from_hf: {where}, a {type(part).__name__} of {type(part).__module__}, has a forward() that mpklab's decoder "
                "graph does not model: take wrappers off and merge adapters (peft: merge_and_unload())"
            )
        hooks = [*part._forward_hooks.values(), *part._forward_pre_hooks.values()]
        if not all(str(getattr(hook, "__module__", "")).startswith(KNOWN_HOOKS) for hook in hooks):
            raise ModelError(f"from_hf: {where} has forward hooks, which do not run inside a kernel: remove them")


def _check_numbers(what: str, module: torch.nn.Module, config: Config) -> None:
    """ModelError where a module computes with other constants than its configuration states."""
    for name, part in module.named_modules():
        eps = getattr(part, "variance_epsilon", config.eps)
        if eps != config.eps:
            raise ModelError(
                f"from_hf: {what}'s {name!r} has variance_epsilon {eps:g}, and rms_norm_eps is {config.eps:g}"
            )
        found = getattr(part, "inv_freq", None)
        if found is None:
            continue
        stated = inverse_frequencies(config).to(found.dtype).float()
        held = found.detach().float().cpu()
        if held.shape != stated.shape or not torch.allclose(held, stated, rtol=1e-5, atol=0.0):
            raise ModelError(f"from_hf: {what}'s {name + '.inv_freq'!r} is not what its rope_parameters give")
        if getattr(part, "attention_scaling", 1.0) != 1.0:
            raise ModelError(f"from_hf: {what}'s {name!r} has attention_scaling {part.attention_scaling}, not 1")


def _weights(
    what: str, config: Config, held: Mapping[str, torch.Tensor], embed: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The module's parameters by mpklab's names; ModelError for the first that is not what the configuration says."""
    found = {}
    for name, slot in layout(config)[0].items():
        stored = stored_name(name)
        if stored not in held:
            raise ModelError(f"from_hf: {what} has no parameter {stored!r} ({name})")
        t = held[stored]
        if type(t.data) is not torch.Tensor:
            raise ModelError(
                f"from_hf: {stored!r} ({name}) is a {type(t.data).__name__}, not a plain tensor: mpklab's weights are neither "
                "quantised nor sharded"
            )
        if t.is_cuda and t.data_ptr() % ALIGNMENT_BYTES:
            raise ModelError(f"from_hf: {stored!r} ({name}) must begin at a multiple of {ALIGNMENT_BYTES} bytes")
        if tuple(t.shape) != slot.shape or t.dtype != embed.dtype or t.device != embed.device or not t.is_contiguous():
            raise ModelError(
                f"from_hf: {stored!r} ({name}) should be dense {embed.dtype}{list(slot.shape)} on {embed.device}, but is "
                f"{t.dtype}{list(t.shape)} with strides {t.stride()} on {t.device}"
            )
        found[name] = t
    unused = set(held) - {stored_name(name) for name in found} - {"lm_head.weight"}
    if unused:
        raise ModelError(
            f"from_hf: {what} has parameters that mpklab's decoder graph does not model: {sorted(unused)[:3]}"
        )
    return found
