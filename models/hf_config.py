"""config.json of Hugging Face layouts: which of them a trunk fits, and their settings to and from ours."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.flops import TrunkShape
from models.trunk import CONFIG_FILE, QkNorm, TrunkConfig

LAYOUTS = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "emu3": "Emu3ForCausalLM",
    "chameleon": "ChameleonForConditionalGeneration",
}
"""Model type, and the class of transformers that is written."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_QK_NORMS: dict[str, QkNorm] = {"qwen3": "rms", "chameleon": "layer"}
_FITS = {
    ("none", False, "before"): ("llama", "emu3"),
    ("none", True, "before"): ("qwen2",),
    ("rms", False, "before"): ("qwen3",),
    ("layer", False, "before"): ("chameleon",),
    ("layer", False, "after"): ("chameleon",),
}
"""(qk_norm, qkv_bias, norm): the layouts that have such a block. A bias elsewhere comes with one at the output."""
NO_IMAGES: dict[str, Any] = {
    "base_channels": 32,
    "channel_multiplier": [1],
    "num_res_blocks": 1,
    "embed_dim": 1,
    "latent_channels": 1,
    "num_embeddings": 1,
    "resolution": 1,
}
"""The smallest image tokenizer that transformers builds: its Chameleon cannot be built without one."""
_POSITIONS = 131_072
"""max_position_embeddings: a hint to generation, no setting of the trunk."""


def layout_of(config: TrunkConfig, name: str | None = None) -> str:
    """The layout that holds such a trunk with the same logits, or one sentence saying why none does."""
    if config.rope_sections:
        raise ValueError(
            f"rope_sections {list(config.rope_sections)} have no place in a Hugging Face layout: "
            "export a trunk whose positions have one axis"
        )
    fits = _FITS.get((config.qk_norm, config.qkv_bias, config.norm))
    if fits is None:
        raise ValueError(
            f"qk_norm={config.qk_norm} with qkv_bias={config.qkv_bias} and norm={config.norm} is the block of no "
            "Hugging Face layout: export Llama's, Qwen2's (qkv_bias), Qwen3's (qk_norm=rms) or Chameleon's (=layer)"
        )
    if name is not None and name not in fits:
        raise ValueError(f"this trunk does not fit the layout {name!r}: give {' or '.join(fits)}")
    return name or fits[0]


def read_config(folder: Path) -> Any:
    """The settings of the text model as transformers' own class, which knows the defaults, whatever wrote them."""
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError as error:
        raise ImportError("Hugging Face layouts need transformers: pip install 'plait[weights]'") from error
    if not (folder / CONFIG_FILE).exists():
        raise ValueError(f"{folder} has no {CONFIG_FILE}: give a folder with {CONFIG_FILE} and safetensors")
    data = json.loads((folder / CONFIG_FILE).read_text())
    data = data.get("text_config") or data
    given = str(data.get("model_type", "of no type"))
    kind = given.lower().removesuffix("_text_model")  # "Emu3" is what BAAI's own files say
    if kind not in LAYOUTS:
        raise ValueError(f"{folder} is a model of type {given!r}: give one of {', '.join(LAYOUTS)}")
    data["model_type"] = "emu3_text_model" if kind == "emu3" else kind
    try:
        return CONFIG_MAPPING[data["model_type"]].from_dict(data)
    except (StrictDataclassError, ValueError, TypeError, KeyError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{folder / CONFIG_FILE} is no valid {kind} config ({said}): give one that loads") from error


def layout_name(given: Any) -> str:
    """The layout of a config that `read_config` returned."""
    return given.model_type.removesuffix("_text_model")


def trunk_config(given: Any, vocabulary_size: int, tied: bool) -> TrunkConfig:
    """Our settings for theirs, or one sentence naming what our decoder cannot do."""
    name, rope = layout_name(given), given.rope_parameters
    heads = given.num_attention_heads
    head_dim = getattr(given, "head_dim", None) or given.hidden_size // heads
    sliding = "sliding_attention" in (getattr(given, "layer_types", None) or ())
    unlike = {
        f"hidden_act={given.hidden_act}, not silu": given.hidden_act != "silu",
        f"rope_type={rope.get('rope_type')}, not default": rope.get("rope_type", "default") != "default",
        "rotary positions on a part of each head": rope.get("partial_rotary_factor", 1) != 1,
        "biases in the feed-forward (mlp_bias)": getattr(given, "mlp_bias", False),
        "a bias at attention's output (attention_bias)": getattr(given, "attention_bias", False),
        "a sliding window": sliding,
        f"head_dim={head_dim}, not {given.hidden_size}/{heads}": head_dim * heads != given.hidden_size,
    }
    if found := [what for what, is_so in unlike.items() if is_so]:
        raise ValueError(f"this {name} model has {found[0]}: our decoder does not, give a model without")
    return TrunkConfig(
        shape=TrunkShape(
            layers=given.num_hidden_layers,
            width=given.hidden_size,
            heads=heads,
            kv_heads=given.num_key_value_heads or heads,
            ffn=given.intermediate_size,
        ),
        vocabulary_size=vocabulary_size,
        rope_base=float(rope["rope_theta"]),
        qk_norm=_QK_NORMS.get(name, "none"),
        norm="after" if getattr(given, "swin_norm", False) else "before",
        qkv_bias=name == "qwen2",
        tied=tied,
        norm_eps=given.rms_norm_eps,
    )


def written_config(config: TrunkConfig, layout: str, ids: Mapping[str, int], dtype: str) -> dict[str, Any]:
    """What goes into config.json. Ids that are not given are null, for Emu3, whose class wants numbers, 0."""
    if strange := sorted(set(ids) - set(IDS)):
        raise ValueError(f"{strange[0]!r} is no id of config.json: give {', '.join(IDS)}")
    shape = config.shape
    data: dict[str, Any] = {
        "architectures": [LAYOUTS[layout]],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": dtype,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.width,
        "intermediate_size": shape.ffn,
        "max_position_embeddings": _POSITIONS,
        "mlp_bias": False,
        "model_type": layout,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_parameters": {"rope_theta": config.rope_base, "rope_type": "default"},
        "tie_word_embeddings": config.tied,
        "vocab_size": config.vocabulary_size,
        **{name: ids.get(name, 0 if layout == "emu3" else None) for name in IDS},
    }
    if layout == "chameleon":
        # An empty map names no image tokens, so none are masked, and pictures are refused instead of misread.
        data |= {"swin_norm": config.norm == "after", "vocabulary_map": {}, "vq_config": NO_IMAGES}
    if layout == "emu3":
        outer = {k: data[k] for k in ("architectures", "dtype", "model_type", "tie_word_embeddings")}
        return {**outer, "text_config": data | {"model_type": "emu3_text_model"}}
    return data
