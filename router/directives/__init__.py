"""Directives and policies, and the decision which directive a request gets. Pure: no I/O."""
