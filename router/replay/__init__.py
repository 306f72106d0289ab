"""Recorded requests under another policy: what it would have decided, and what that would have emitted."""
