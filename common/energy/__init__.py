"""Energy of serving: readings with the way they were obtained, and a model for where no meter exists."""
