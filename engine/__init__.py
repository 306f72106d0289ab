"""Serves a language model: batched decoding behind engine.v1."""
