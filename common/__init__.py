"""What router, engine and evaluator share."""
