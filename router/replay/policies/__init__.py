"""Policies that a replay compares: the published ones, bounds on what any could reach, and Pith's own."""
