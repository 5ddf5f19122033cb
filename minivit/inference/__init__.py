"""Pixels in, predictions and embeddings out, for one image or a million: classify, embed, similar, bulk runs, Ray."""

from minivit.inference.bulk import RecordWriter, Summary, write_predictions, write_text_embeddings
from minivit.inference.embeddings import EmbeddingWriter, open_embeddings
from minivit.inference.jsonl import JsonlLog
from minivit.inference.predict import classifier, classify, embed, embedder, iter_classify
from minivit.inference.records import constants
from minivit.inference.search import similar

__all__ = [
    "EmbeddingWriter",
    "JsonlLog",
    "RecordWriter",
    "Summary",
    "classifier",
    "classify",
    "constants",
    "embed",
    "embedder",
    "iter_classify",
    "open_embeddings",
    "similar",
    "write_predictions",
    "write_text_embeddings",
]
