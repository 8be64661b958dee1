"""Our decoder to and from Hugging Face layouts: Llama, Qwen2, Qwen3, Emu3, Chameleon (transformers 5).

All five keep the same tensors under the same names; what differs is which of them exist, and what stands before the
names. Ours join what is computed together: keys and values, gate and up. Legend: V vocabulary, D width, H query
heads, G KV heads, E head size, F FFN size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from models.hf_config import LAYOUTS, NO_IMAGES, layout_of, read_config, trunk_config, written_config
from models.objectives import Head
from models.trunk import CONFIG_FILE, WEIGHTS_FILE, HeadNorm, Trunk, TrunkConfig, complete, without_copies
from models.weights import published_folder

INDEX_FILE = "model.safetensors.index.json"
_EMBEDDING, _HEAD = "embed_tokens.weight", "lm_head.weight"
_OURS = {"embedding.weight": _EMBEDDING, "norm.weight": "norm.weight"}
_PARTS = {
    "attention_norm": ("input_layernorm",),
    "attention.q": ("self_attn.q_proj",),
    "attention.kv": ("self_attn.k_proj", "self_attn.v_proj"),  # (2GE, D): keys, then values
    "attention.out": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),  # (E), or of each head: ours (H, 1, E), theirs (H, E)
    "attention.k_norm": ("self_attn.k_norm",),
    "ffn_norm": ("post_attention_layernorm",),
    "ffn.gate_up": ("mlp.gate_proj", "mlp.up_proj"),  # (2F, D)
    "ffn.down": ("mlp.down_proj",),
}
"""A part of our block, and the parts of theirs that it joins along rows."""


def from_hf(place: str) -> Trunk:
    """The decoder of a folder (or of a hub id, with an optional `@revision`), in float32 and in evaluation mode.

    The folder holds config.json and safetensors, in one file or in several with an index. Dropout is left out.
    """
    folder = published_folder(place, ("*.json", "*.safetensors"))
    given = read_config(folder)
    weights = _Weights(folder)
    tied = weights.head is None or (_says_tied(folder) and weights.head_is_embedding())
    if weights.head is None and not _says_tied(folder):
        raise ValueError(f"{folder} has no {_HEAD}, and tie_word_embeddings is not true: give the whole model")
    trunk = Trunk(trunk_config(given, weights.rows, tied))
    own = without_copies(trunk)
    found = {name: weights.of_ours(name, tensor) for name, tensor in own.items()}
    weights.must_be_used_up()
    trunk.load_state_dict(complete(found, trunk.config))
    return trunk.eval()


def to_hf(trunk: Trunk, folder: Path, *, name: str | None = None, ids: Mapping[str, int] | None = None) -> None:
    """Write config.json and model.safetensors that transformers loads with no tensor missing or left over.

    `name`: the layout, where several fit ("emu3" for Llama's); `ids`: bos_token_id, eos_token_id, pad_token_id.
    `AutoModelForCausalLM` loads all but Chameleon, which transformers keeps under `AutoModelForImageTextToText`; its
    image tokenizer is written as a stand-in of zeros, which refuses pictures.
    """
    layout = layout_of(trunk.config, name)
    _must_be_plain(trunk)
    tensors: dict[str, Tensor] = {}
    for ours, tensor in without_copies(trunk).items():
        theirs = _theirs(ours)
        flat = tensor.squeeze(1) if _is_head_norm(trunk, ours) else tensor
        tensors |= zip((n if n == _HEAD else f"model.{n}" for n in theirs), flat.chunk(len(theirs)), strict=True)
    if layout == "chameleon":
        tensors |= {f"model.vqmodel.{n}": t for n, t in _no_images().items()}
    dtype = str(trunk.embedding.weight.dtype).removeprefix("torch.")
    config = written_config(trunk.config, layout, ids or {}, dtype)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    # Clones, since the parts of a joined tensor share its memory, which safetensors refuses.
    whole = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    save_file(whole, folder / WEIGHTS_FILE, metadata={"format": "pt"})


def initial(trunk: Trunk, place: str, text_size: int) -> None:
    """Start a trunk from published weights whose vocabulary is smaller or other.

    Blocks and final norm are copied, and the first `text_size` rows of embedding and head; all other rows stay.
    """
    published = from_hf(place)
    must_agree(trunk.config, published.config, place)
    rows = min(trunk.config.vocabulary_size, published.config.vocabulary_size)
    if not 0 <= text_size <= rows:
        raise ValueError(
            f"{text_size} rows of text were asked of {place}, which has {published.config.vocabulary_size}, for a "
            f"trunk of {trunk.config.vocabulary_size}: give a text size of at most {rows}"
        )
    given = published.state_dict()  # has both embedding and head, also where they are one
    with torch.no_grad():
        for name, tensor in without_copies(trunk).items():
            rows = text_size if name in ("embedding.weight", "head.weight") else len(tensor)
            tensor[:rows] = given[name][:rows].to(tensor)


def must_agree(own: TrunkConfig, given: TrunkConfig, place: str) -> None:
    """Refuse published weights whose blocks compute something else; embedding, head and rope_sections may differ.

    Where all axes of a place agree, as for text, several are one (models/positions.py).
    """
    for name in ("shape", "rope_base", "qk_norm", "norm", "qkv_bias", "norm_eps"):
        one, other = getattr(own, name), getattr(given, name)
        if one != other:
            raise ValueError(f"{place} has {name}={other} and this trunk {name}={one}: set the trunk's as there")


class _Weights:
    """The tensors of a folder of safetensors, by our names; remembers which were asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = _files(folder)
        found = [name.removesuffix(_EMBEDDING) for name in self.files if name.endswith(_EMBEDDING)]
        heads = [name for name in self.files if name.endswith(_HEAD)]
        if len(found) != 1 or len(heads) > 1:
            raise ValueError(f"{folder} holds {len(found)} decoders (tensors ...{_EMBEDDING}): give one that holds one")
        self.prefix = found[0]
        """Before every name but the head's: `model.`, inside a model of images too `text_model.model.`, or others."""
        self.head = heads[0] if heads else None
        self.used = {self.head}

    @property
    def rows(self) -> int:
        """V, as the embedding has it."""
        name = self.prefix + _EMBEDDING
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_slice(name).get_shape()[0]

    def head_is_embedding(self) -> bool:
        """Whether the file holds one matrix twice."""
        return self.head is not None and torch.equal(self._tensor(self.head), self._tensor(self.prefix + _EMBEDDING))

    def of_ours(self, name: str, like: Tensor) -> Tensor:
        """Their tensor for one of ours, in its shape, float32."""
        names = [self.head if n == _HEAD and self.head else self.prefix + n for n in _theirs(name)]
        self.used |= set(names)
        tensor = torch.cat([self._tensor(n) for n in names]).to(like.dtype)
        if like.ndim == 3:
            tensor = tensor.unsqueeze(1)
        if tensor.shape != like.shape:
            said = f"{names[0]} of shape {list(tensor.shape)}, where its {CONFIG_FILE} asks for {list(like.shape)}"
            raise ValueError(f"{self.folder} has {said}: give weights and settings of one model")
        return tensor

    def must_be_used_up(self) -> None:
        """Refuse tensors without a place; an image tokenizer and old files' rotary tables are no part of a decoder."""
        left = [n for n in self.files if n not in self.used]
        left = [n for n in left if "vqmodel." not in n and not n.endswith("rotary_emb.inv_freq")]
        if left:
            raise ValueError(
                f"{self.folder} holds {left[0]} and {len(left) - 1} more tensors our decoder has no place for: "
                f"give a plain {', '.join(LAYOUTS)}"
            )

    def _tensor(self, name: str) -> Tensor:
        if name not in self.files:
            raise ValueError(f"{self.folder} has no tensor {name}, which its {CONFIG_FILE} asks for: give all files")
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_tensor(name)


def _files(folder: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    index = folder / INDEX_FILE
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else [WEIGHTS_FILE]
    found: dict[str, Path] = {}
    for path in (folder / name for name in names):
        if not path.exists():
            raise ValueError(f"{folder} has no {path.name}: give a folder with all its safetensors")
        with safe_open(path, "pt") as opened:
            found |= dict.fromkeys(opened.keys(), path)
    return found


def _says_tied(folder: Path) -> bool:
    """`tie_word_embeddings`, which a model of images keeps outside its text model's settings, inside, or both."""
    data = json.loads((folder / CONFIG_FILE).read_text())
    return bool(data.get("tie_word_embeddings") or data.get("text_config", {}).get("tie_word_embeddings"))


def _theirs(name: str) -> tuple[str, ...]:
    """Names, after the prefix, for one of our tensors: several where ours joins them, none where there is no place."""
    if name == "head.weight":
        return (_HEAD,)
    if name in _OURS:
        return (_OURS[name],)
    blocks, _, rest = name.partition(".")
    layer, _, rest = rest.partition(".")
    part, _, kind = rest.rpartition(".")
    if blocks != "blocks":
        return ()
    return tuple(f"layers.{layer}.{theirs}.{kind}" for theirs in _PARTS.get(part, ()))


def _is_head_norm(trunk: Trunk, name: str) -> bool:
    return isinstance(trunk.get_submodule(name.rpartition(".")[0]), HeadNorm)


def _must_be_plain(trunk: Trunk) -> None:
    """Refuse a head of another kind, and tensors that a block of ours does not have."""
    strange = [name for name in trunk.state_dict() if not _theirs(name)]
    if type(trunk.head) is not Head or strange:
        what = strange[0] if strange else f"a head of kind {type(trunk.head).__name__}"
        raise ValueError(f"{what} has no place in a Hugging Face layout: export a decoder with one matrix as its head")


def _no_images() -> dict[str, Tensor]:
    """Zeros for the image tokenizer that transformers' Chameleon cannot be built without."""
    try:
        from transformers import ChameleonVQVAE, ChameleonVQVAEConfig
    except ImportError as error:
        raise ImportError("Chameleon's layout needs transformers: pip install 'plait[weights]'") from error
    with torch.device("meta"):
        model = ChameleonVQVAE(ChameleonVQVAEConfig(**NO_IMAGES))
    return {name: torch.zeros(tensor.shape, dtype=tensor.dtype) for name, tensor in model.state_dict().items()}
