"""Hugging Face's own models and ours give the same numbers, in both directions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from models.attention import DenseAttention, may_see
from models.flops import TrunkShape
from models.hf_config import NO_IMAGES
from models.hf_layout import from_hf, initial, to_hf
from models.trunk import Trunk, TrunkConfig

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SHAPE = TrunkShape(layers=2, width=32, heads=4, kv_heads=2, ffn=48)
IMAGES = {"vq_config": NO_IMAGES, "vocabulary_map": {"<image>": 5, "IMGIMGAZ": 7, "IMGIMGBZ": 8}}
EMU3_IMAGES = {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "hidden_size": 32, "codebook_size": 8, "attn_resolutions": []}  # fmt: skip  # noqa: E501
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", SIZES | {"rms_norm_eps": 1e-3}),
    "llama without GQA": ("LlamaForCausalLM", "LlamaConfig", SIZES | {"num_key_value_heads": 4}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", SIZES),
    "qwen2 tied": ("Qwen2ForCausalLM", "Qwen2Config", SIZES | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", SIZES | {"head_dim": 8, "rms_norm_eps": 1e-3}),
    "emu3": ("Emu3ForCausalLM", "Emu3TextConfig", SIZES),
    "emu3 with images": (
        "Emu3ForConditionalGeneration",
        "Emu3Config",
        {"text_config": SIZES, "vq_config": EMU3_IMAGES, "vocabulary_map": {"<image>": 5}},
    ),
    "chameleon": ("ChameleonForConditionalGeneration", "ChameleonConfig", SIZES | IMAGES | {"rms_norm_eps": 1e-3}),
    "chameleon swin": ("ChameleonForConditionalGeneration", "ChameleonConfig", SIZES | IMAGES | {"swin_norm": True}),
}
TOKENS = torch.tensor([[7, 3, 39, 0, 7, 12, 30]])


def randomised(model: Any, seed: int = 0) -> Any:
    """Every parameter moved, norms and biases too, so that each matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)
    return model.eval()


def theirs(kind: str, folder: Path, **changed: Any) -> Any:
    """A tiny random model of transformers, saved."""
    name, config, settings = MODELS[kind]
    model = randomised(getattr(transformers, name)(getattr(transformers, config)(**settings | changed)))
    model.save_pretrained(folder)
    return model


def ours(trunk: Trunk) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (1, T, D) and logits (1, T, V)."""
    length = TOKENS.shape[1]
    attend = DenseAttention(may_see(torch.zeros(length)))
    hidden = trunk(trunk.embedding(TOKENS), torch.arange(length)[None], attend)
    return hidden, trunk.head(hidden)


def last_hidden(model: Any) -> torch.Tensor:
    """(1, T, D) after the final norm; a model of images masks its image tokens' logits."""
    return model.model(**_input(model)).last_hidden_state


def _input(model: Any) -> dict[str, torch.Tensor]:
    return {"inputs_embeds": model.get_input_embeddings()(TOKENS)}


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_the_same_hidden_states_and_logits(kind: str, tmp_path: Path) -> None:
    model = theirs(kind, tmp_path)
    hidden, logits = ours(from_hf(str(tmp_path)))
    torch.testing.assert_close(hidden, last_hidden(model), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logits, model.lm_head(last_hidden(model)), rtol=1e-5, atol=1e-5)
    shown = torch.ones(40, dtype=torch.bool)
    shown[[7, 8]] = not kind.startswith("chameleon")
    expected = model(**_input(model)).logits
    torch.testing.assert_close(logits[..., shown], expected[..., shown], rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("kind", MODELS)
def test_there_and_back_gives_equal_tensors_that_load_cleanly(kind: str, tmp_path: Path) -> None:
    model = theirs(kind, tmp_path / "a")
    trunk = from_hf(str(tmp_path / "a"))
    name = "emu3" if kind.startswith("emu3") else None
    to_hf(trunk, tmp_path / "b", name=name, ids={"eos_token_id": 2})
    chameleon = kind.startswith("chameleon")
    loader = transformers.AutoModelForImageTextToText if chameleon else transformers.AutoModelForCausalLM
    again, told = loader.from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not any(told.values()), told
    assert type(again).__name__.startswith(kind.split(" ", maxsplit=1)[0].title())
    assert again.config.get_text_config().eos_token_id == 2
    for name, tensor in again.state_dict().items():
        if "vqmodel" not in name:
            place = name.replace("model.", "model.text_model.", 1) if kind == "emu3 with images" else name
            assert torch.equal(tensor, model.state_dict()[place]), name
    torch.testing.assert_close(again.eval()(TOKENS).logits, ours(trunk)[1], rtol=1e-5, atol=1e-5)
    one, other = trunk.state_dict(), from_hf(str(tmp_path / "b")).state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "chameleon swin"])
def test_every_tensor_matters(kind: str, tmp_path: Path) -> None:
    theirs(kind, tmp_path)
    trunk = from_hf(str(tmp_path))
    before = ours(trunk)[1]
    for name, parameter in trunk.named_parameters():
        kept = parameter.clone()
        parameter.add_(torch.randn_like(parameter), alpha=0.5)
        moved = (ours(trunk)[1] - before).abs().max()
        parameter.copy_(kept)
        assert moved > 1e-4, name  # far above the tolerance of the tests above


@torch.no_grad()
def test_several_files_with_an_index(tmp_path: Path) -> None:
    model = theirs("llama", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    torch.testing.assert_close(ours(from_hf(str(tmp_path)))[1], model(TOKENS).logits, rtol=1e-5, atol=1e-5)
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"has no model-.*give a folder with all its safetensors"):
        from_hf(str(tmp_path))


@torch.no_grad()
def test_a_head_of_its_own_beside_a_config_that_says_tied_is_kept(tmp_path: Path) -> None:
    """As transformers does. The same matrix twice is one."""
    theirs("qwen2 tied", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    for head, tied in ((embedding.clone(), True), (embedding.flip(0).clone(), False)):
        save_file(weights | {"lm_head.weight": head}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        trunk, model = from_hf(str(tmp_path)), transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
        assert trunk.config.tied == tied
        torch.testing.assert_close(ours(trunk)[1], model.eval()(TOKENS).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act=gelu"),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "rope_type=linear"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, "a sliding window"),
        ("qwen3", {"head_dim": 16}, "head_dim=16, not 32/4"),
    ],
)
def test_what_our_decoder_cannot_do_is_refused(kind: str, changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    theirs(kind, tmp_path, **changed)
    with pytest.raises(ValueError, match=said):
        from_hf(str(tmp_path))


def test_a_folder_that_is_not_a_model_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no config\.json"):
        from_hf(str(tmp_path))
    theirs("llama", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changed, said in (({"model_type": "gpt2"}, "'gpt2'"), ({"intermediate_size": 64}, "asks for")):
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=said):
            from_hf(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "model.safetensors")
    save_file(weights | {"model.layers.0.extra": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"layers\.0\.extra"):
        from_hf(str(tmp_path))
    save_file({n: t for n, t in weights.items() if n != "lm_head.weight"}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="tie_word_embeddings"):
        from_hf(str(tmp_path))


def test_settings_as_older_files_say_them(tmp_path: Path) -> None:
    """BAAI's own Emu3: flat, its type in capitals, rope_theta outside rope_parameters."""
    theirs("emu3", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": "Emu3", "rope_theta": 5e5}
    del config["rope_parameters"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert from_hf(str(tmp_path)).config.rope_base == 5e5


def test_a_trunk_without_a_layout_is_refused(tmp_path: Path) -> None:
    plain = TrunkConfig(shape=SHAPE, vocabulary_size=40)
    for changed, said in (
        ({"rope_sections": (2, 2)}, "rope_sections"),
        ({"qk_norm": "rms", "norm": "after"}, "no Hugging Face layout"),
        ({"qk_norm": "rms", "qkv_bias": True}, "no Hugging Face layout"),
    ):
        with pytest.raises(ValueError, match=said):
            to_hf(Trunk(replace(plain, **changed)), tmp_path)
    with pytest.raises(ValueError, match="give llama or emu3"):
        to_hf(Trunk(plain), tmp_path, name="qwen2")
    other = Trunk(plain)
    other.head = nn.Sequential(nn.Linear(32, 40))  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"head\.0\.weight"):
        to_hf(other, tmp_path)
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_larger_vocabulary_starts_from_published_weights(tmp_path: Path) -> None:
    theirs("qwen2 tied", tmp_path)
    published = from_hf(str(tmp_path))
    for tied in (False, True):
        config = replace(published.config, vocabulary_size=60, tied=tied, rope_sections=(2, 1, 1))
        trunk, before = Trunk(config).initialise(1), Trunk(config).initialise(1).state_dict()
        initial(trunk, str(tmp_path), 30)
        for name, tensor in trunk.state_dict().items():
            rows = 30 if name in ("embedding.weight", "head.weight") else len(tensor)
            assert torch.equal(tensor[:rows], published.state_dict()[name][:rows]), name
            assert torch.equal(tensor[rows:], before[name][rows:]), name
    with pytest.raises(ValueError, match="at most 40"):
        initial(Trunk(replace(published.config, vocabulary_size=60)), str(tmp_path), 41)
    other = replace(published.config, shape=replace(SHAPE, layers=3))
    with pytest.raises(ValueError, match=r"layers=2.*layers=3"):
        initial(Trunk(other), str(tmp_path), 30)
    with pytest.raises(ValueError, match=r"norm_eps=1e-06 and this trunk norm_eps=0\.5"):
        initial(Trunk(replace(published.config, norm_eps=0.5)), str(tmp_path), 30)
