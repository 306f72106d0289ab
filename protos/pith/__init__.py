"""Pith's gRPC contract: generated stubs, one package a service (`pith.router.v1`, `pith.engine.v1`, ...)."""
