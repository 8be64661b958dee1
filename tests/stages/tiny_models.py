"""Tiny random models in the formats of transformers, saved where a test says: real classes, no downloads."""

from __future__ import annotations

from pathlib import Path

import torch

SPECIAL = ["<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _tokenizer():
    """Bytes as tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokens = Tokenizer(models.BPE(vocab=letters, merges=[]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token=SPECIAL[1], pad_token=SPECIAL[0], extra_special_tokens=SPECIAL[2:]
    )
    made.chat_template = CHAT
    made.model_max_length = 64
    return made


def clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP with 16 dimensions and a head of two linear layers."""
    from safetensors.torch import save_file
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    torch.manual_seed(seed)
    tokens = _tokenizer()
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = small | {"vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id, "bos_token_id": 0}
    vision = small | {"image_size": 30, "patch_size": 6}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 30}, crop_size={"height": 30, "width": 30}).save_pretrained(folder)
    head = {"layers.0.weight": torch.randn(8, 16), "layers.0.bias": torch.randn(8)}
    head |= {"layers.2.weight": torch.randn(1, 8), "layers.2.bias": torch.tensor([5.0])}
    save_file(head, folder / "head.safetensors")
    return folder


def encoder(folder: Path) -> Path:
    """A ViT, as DINO is one."""
    from transformers import ViTConfig, ViTModel
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    ViTModel(ViTConfig(**small, image_size=32, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def vlm(folder: Path) -> Path:
    """A Qwen2.5-VL with two layers."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    torch.manual_seed(0)
    tokens = _tokenizer()
    ids = {name: tokens.convert_tokens_to_ids(name) for name in SPECIAL}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokens), "max_position_embeddings": 4096}
    text |= {"rope_parameters": rope, "bos_token_id": None, "initializer_range": 0.3}
    text |= {"eos_token_id": ids[SPECIAL[1]], "pad_token_id": ids[SPECIAL[0]]}
    vision = {"depth": 1, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    vision |= {"window_size": 56, "fullatt_block_indexes": [0], "initializer_range": 0.3}
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        video_token_id=0,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = ids[SPECIAL[1]], ids[SPECIAL[0]]
    # it says letters, never an end or a space: what a random model answers is not to be empty
    letters = {tokens.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnopqrstuvwxyz"}
    model.generation_config.suppress_tokens = sorted(set(range(len(tokens))) - letters)
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56}).save_pretrained(folder)
    return folder


def detector(folder: Path, names: tuple[str, ...], seed: int = 0) -> Path:
    """A YOLOS that knows these names: no backbone, so nothing is fetched beside it."""
    from transformers import YolosConfig, YolosForObjectDetection
    from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

    torch.manual_seed(seed)
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = YolosConfig(
        **small, image_size=[32, 32], patch_size=8, num_detection_tokens=6, id2label=dict(enumerate(names)),
        label2id={name: at for at, name in enumerate(names)},
    )  # fmt: skip
    YolosForObjectDetection(config).save_pretrained(folder)
    YolosImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 64}).save_pretrained(folder)
    return folder
