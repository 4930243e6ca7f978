"""Text corpora, tokenizers and token batches; images and their classes."""

from jaxdiv.data.documents import Documents
from jaxdiv.data.pipeline import Tokens, Windows, batches, evaluation_windows, prompts, tokenize
from jaxdiv.data.sources import open_documents
from jaxdiv.data.tokenizer import Tokenizer

__all__ = [
    "Documents",
    "Tokenizer",
    "Tokens",
    "Windows",
    "batches",
    "evaluation_windows",
    "open_documents",
    "prompts",
    "tokenize",
]
