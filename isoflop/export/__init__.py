"""Models in other people's formats, each checked against the original before it is kept."""

from isoflop.export.huggingface import load_pretrained, save_pretrained, tokenizer_of

__all__ = ["load_pretrained", "save_pretrained", "tokenizer_of"]
