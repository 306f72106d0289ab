"""Carbon of serving: intensity of the grid, its providers, and the accounting from joules to grams."""
