"""Quality of answers: graders, bounds, drift, estimates, and when to evaluate. Pure: no I/O, no clock."""
