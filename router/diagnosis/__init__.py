"""What directives would save on a recorded workload, said before anyone deploys."""
