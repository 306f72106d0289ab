"""The engines: who is there, who is well, who is least busy, and the calls to them."""
