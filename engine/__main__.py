"""`python -m engine`: serves the model that PITH_ENGINE_MODEL_PATH names; `... calibrate` measures what it costs."""

import asyncio
import secrets
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version

import structlog
from pith.engine.v1 import control_pb2, inference_pb2

from common.auth import Authenticator, Role
from common.certificates import CertificateError
from common.clock import clock_from_spec
from common.command_line import command_line
from common.config import load
from common.grpc_server import GrpcServer, run_until_signalled
from common.logging import configure, log_uncaught
from common.metrics import Metrics
from engine import calibrate
from engine.backends.cuda.cupy_device import DeviceError
from engine.calibration.options import PROGRAM
from engine.config import EngineConfig
from engine.engine import Engine
from engine.metrics import EngineMetrics
from engine.service import ControlService, InferenceService
from engine.weights import ModelError

CALLERS = {Role.ENGINE}
"""Routers, and who else may use an engine directly. A client may not: no policy, limit or ledger would know of it."""
_ALSO = f"{PROGRAM} measures what a request costs on this device: see its --help."


def main() -> None:
    if sys.argv[1:2] == ["calibrate"]:
        sys.exit(calibrate.main(sys.argv[2:]))
    config = load(EngineConfig, **command_line(EngineConfig, "engine", also=_ALSO))
    configure("engine", config.log_level, config.log_format)
    log_uncaught()
    try:
        # A thread that ends gives the threads back that OpenMP made for it. Kept, they would compete with the decode
        # loop's own for the processors, which then sleep between operators.
        with ThreadPoolExecutor(max_workers=1) as loading:
            engine = loading.submit(Engine, config).result()
    except (ModelError, DeviceError) as fault:
        sys.exit(f"engine: {fault}")
    try:
        asyncio.run(serve(config, engine))
    except (OSError, CertificateError) as fault:
        sys.exit(f"engine: {fault}")


async def serve(config: EngineConfig, engine: Engine) -> None:
    """Serves a model that is loaded and warm until a signal comes, then drains."""
    metrics = Metrics("engine")
    server = build_server(config, engine, metrics)
    if config.metrics_port is not None:
        metrics.serve(config.metrics_port, config.listen_host)
    await server.start()
    await server.set_serving(True)
    card, found = engine.card, engine.card.calibration
    structlog.get_logger("engine").info(
        "serving",
        model=card.name,
        digest=card.digest,
        energy=card.energy_source,
        calibration="none: see python -m engine calibrate"
        if found is None
        else f"{found.source}, of {found.measured_at:%Y-%m-%d}",
    )
    try:
        await run_until_signalled(server)
    finally:
        engine.stop()
        metrics.close()


def build_server(config: EngineConfig, engine: Engine, metrics: Metrics) -> GrpcServer:
    """A server of both services, not listening yet, with the engine's decode loop running."""
    server = GrpcServer(config, Authenticator.from_file(config.tokens_file, clock_from_spec(config.clock)), metrics)
    engine.start(EngineMetrics(metrics, engine.load).finished)
    server.add(
        InferenceService(engine, draw_seed=lambda: secrets.randbits(64)),
        inference_pb2.DESCRIPTOR.services_by_name["Inference"],
        roles={"Generate": CALLERS, "StreamGenerate": CALLERS},
    )
    server.add(
        ControlService(engine, _version(), not_serving=lambda: server.set_serving(False)),
        control_pb2.DESCRIPTOR.services_by_name["Control"],
        roles={
            "GetModelInfo": CALLERS,
            "GetLoad": CALLERS,
            "WatchLoad": CALLERS,
            "Abort": CALLERS,
            "Drain": set(),
        },
        watches={"WatchLoad"},
    )
    return server


def _version() -> str:
    try:
        return version("pith")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


if __name__ == "__main__":
    main()
