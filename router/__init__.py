"""The router: decides on directives, forwards to engines, keeps policies, ledger, samples and bounds."""
