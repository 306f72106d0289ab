"""Decoding on NVIDIA GPUs: kernels, the tables that choose among them, and the step that runs them.

All but `backend` and `step` imports numpy and, once a device is asked for, CuPy: nothing else of the engine.
"""
