"""From bounds, costs and policies to a plan: which share of each task's requests gets which directive."""
