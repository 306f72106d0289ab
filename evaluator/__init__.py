"""Pith's evaluator: scores samples when the grid is clean and feeds quality bounds back to the router."""
