"""The router's gRPC services, one a file: what their messages say is checked, done and answered here."""
