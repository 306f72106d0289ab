"""Judges: how an answer comes by its quality."""
