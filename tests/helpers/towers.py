"""A small CLIP and a small SigLIP as transformers writes them, each with a tokenizer made on the spot."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from helpers.models import randomise

WORDS = "a photo of the dog cat cats dogs two on grass painting small 2021 café naïve it's they're élan bird birds"

VISION = {
    "image_size": 40,
    "patch_size": 8,
    "hidden_size": 42,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 57,
}
TEXT = {
    "hidden_size": 24,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def clip_tokenizer():
    """transformers' CLIPTokenizer with all bytes, a few merges, and start and end as the last two ids, as OpenAI's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=600, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator([WORDS] * 3, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(byte + "</w>" for byte in alphabet), *("".join(pair) for pair in merges)]
    pieces = [*dict.fromkeys(pieces), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77)


def siglip_tokenizer():
    """A unigram tokenizer in the form of SigLIP's tokenizer.json: lower case, no punctuation, "</s>" ends and pads."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"[!-/:-@\[-`{-~]"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=90, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator([WORDS] * 3, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>", unk_token="<unk>", model_max_length=64
    )


def write_clip(path: Path, *, seed: int = 0, end: int | None = None):
    """A random CLIPModel with its tokenizer and preprocessing in a folder; the model and the tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer()
    end = tokenizer.eos_token_id if end is None else end
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 77, "eos_token_id": end}
    config = CLIPConfig(text_config=text, vision_config=VISION, projection_dim=31)
    processor = {"image_processor_type": "CLIPImageProcessor", "size": 40, "crop_size": 40}
    return _write(path, CLIPModel(_eager(config, seed)), tokenizer, processor)


def write_siglip(path: Path, *, seed: int = 0):
    """A random SiglipModel with its tokenizer and preprocessing in a folder; the model and the tokenizer."""
    from transformers import SiglipConfig, SiglipModel

    tokenizer = siglip_tokenizer()
    text = {**TEXT, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 42}
    config = SiglipConfig(text_config=text, vision_config=VISION)
    processor = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 40, "width": 40}}
    return _write(path, SiglipModel(_eager(config, seed)), tokenizer, processor)


def _eager(config, seed: int):
    torch.manual_seed(seed)
    config._attn_implementation = "sdpa"
    return config


def _write(path: Path, model, tokenizer, processor: dict):
    randomise(model)
    with torch.no_grad():
        for tower in (model.vision_model, model.text_model):
            for name, parameter in tower.named_parameters():
                if "embedding" in name and parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return model, tokenizer
