"""What runs Pith on one machine or many: `make demo`, `make serve`, and files for containers."""
