"""The shape of a decoder and what follows from it: parameters, bytes read in a step, bytes of KV cache."""
