"""`pithctl`, the admin's command line. It speaks gRPC to the router and the evaluator, and to nothing else."""
