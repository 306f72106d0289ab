"""Why directives opened and closed."""
