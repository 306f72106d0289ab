"""The router's database: directives, policies, ledger, samples, scores and bounds. SQLAlchemy stays in here."""
