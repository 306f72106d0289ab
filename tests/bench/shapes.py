"""Shapes of the models that the benchmarks of a GPU decode, by name; their weights are random, never downloaded.

Llama: the models' published configurations. Surefire and Panda (arXiv 2510.18245): hidden and intermediate size,
layers, head_dim and heads a KV head are published; the heads follow from the published parameter count, vocabulary and
tied head are taken to be those of LLaMA-3.2, which they are compared with.
"""

from common.architecture.shape import ModelShape

_LLAMA_3_VOCABULARY = 128256

SHAPES = {
    "llama-3.2-1b": ModelShape(2048, 16, 32, 8, 64, 8192, _LLAMA_3_VOCABULARY, tied_embeddings=True),
    "llama-3.1-8b": ModelShape(4096, 32, 32, 8, 128, 14336, _LLAMA_3_VOCABULARY, tied_embeddings=False),
    "surefire-1b": ModelShape(2560, 16, 36, 4, 64, 6144, _LLAMA_3_VOCABULARY, tied_embeddings=True),
    "panda-1b": ModelShape(2560, 16, 72, 18, 64, 4096, _LLAMA_3_VOCABULARY, tied_embeddings=True),
    "llama-2-7b": ModelShape(4096, 32, 32, 32, 128, 11008, 32000, tied_embeddings=False),
    "llama-3.2-3b": ModelShape(3072, 28, 24, 8, 128, 8192, _LLAMA_3_VOCABULARY, tied_embeddings=True),
    "surefire-3b": ModelShape(4096, 28, 42, 6, 128, 4096, _LLAMA_3_VOCABULARY, tied_embeddings=True),
    "panda-3b": ModelShape(4096, 28, 36, 12, 128, 4096, _LLAMA_3_VOCABULARY, tied_embeddings=True),
}
"""In the order in which their measurements count."""
