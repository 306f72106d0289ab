"""Which models accept requests, and by which grid they are charged."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from common.carbon.daily_profile import ConstantIntensity
from common.carbon.intensity import SignalKind
from common.clock import ManualClock
from router.fleet.engines import Engines
from router.zones import Zones
from tests.router.fake_engine import IDENTITY, FakeEngine
from tests.router.fleet.conftest import Fleet, sticky

LARGE = "large@ffffffffffff"


def large() -> FakeEngine:
    return FakeEngine(model="large", digest="f" * 64)


async def test_the_models_that_accept_requests_are_those_of_which_an_engine_does(fleet: Fleet) -> None:
    one, other, third = FakeEngine(), FakeEngine(), large()
    engines = await fleet.start(one, other, third, make_breaker=sticky(1))
    assert engines.accepting() == {IDENTITY, LARGE}
    assert engines.accepting(excluding=["a"]) == {IDENTITY, LARGE}
    assert engines.accepting(excluding=["a", "b"]) == {LARGE}
    assert engines.accepting(excluding=["a", "b", "c"]) == set()
    await one.stop()
    await fleet.until(lambda: engines.ready == 2)
    assert engines.accepting() == {IDENTITY, LARGE}
    await other.report(draining=True)
    await fleet.until(lambda: engines.ready == 1)
    assert engines.accepting() == {LARGE}
    engine = engines.choose("large")
    assert engine is not None
    engine.breaker.fail(probe=False)
    assert engines.accepting() == set(), "at once, as `choose` has it"


async def test_an_engine_that_was_never_reached_accepts_nothing() -> None:
    engines = Engines({"a": "127.0.0.1:1"}, ManualClock())
    engines.start()
    try:
        assert (engines.accepting(), engines.g_per_kwh()) == (set(), {})
    finally:
        await engines.close()


async def test_it_is_told_once_whenever_other_models_accept_requests(fleet: Fleet) -> None:
    told: list[Collection[str]] = []
    one, third = FakeEngine(), large()
    engines = await fleet.start(
        one, third, make_breaker=sticky(1), on_models=lambda: told.append(fleet.engines.accepting())
    )

    async def reported(fake: FakeEngine, name: str, running: int) -> None:
        await fake.report(running=running)
        await fleet.until(lambda: any(v.name == name and v.load and v.load.running == running for v in engines.views()))

    async def now(*models: str) -> None:
        """Of which it was told, and of nothing else since."""
        await fleet.until(lambda: engines.accepting() == set(models))
        assert told == [set(models)]
        told.clear()

    assert len(told) == 2 and told[1] == {IDENTITY, LARGE}, "each as it is reached"
    told.clear()
    for running in (1, 2, 0):
        await reported(one, "a", running)
    assert told == [], "loads alone change no plan"
    await one.stop()
    await now(LARGE)
    await one.start()
    await now(IDENTITY, LARGE)
    await third.report(draining=True)
    await now(IDENTITY)
    await third.report(draining=False)
    await now(IDENTITY, LARGE)
    engine = engines.choose("large")
    assert engine is not None
    engine.breaker.fail(probe=False)
    await reported(third, "b", 3)
    await now(IDENTITY)
    engine.breaker.reset()
    await reported(third, "b", 4)
    await now(IDENTITY, LARGE)
    await one.stop()
    one.info.model_digest = "e" * 64
    await now(LARGE)
    await one.start()
    await now("small@eeeeeeeeeeee", LARGE)


async def test_one_of_two_engines_of_a_model_comes_and_goes_without_a_word(fleet: Fleet) -> None:
    told: list[None] = []
    one, other = FakeEngine(), FakeEngine()
    engines = await fleet.start(one, other, on_models=lambda: told.append(None))
    for _ in range(2):
        await one.stop()
        await fleet.until(lambda: engines.ready == 1)
        await one.start()
        await fleet.until(lambda: engines.ready == 2)
    assert len(told) == 1


@pytest.mark.parametrize(
    ("zones_of", "expected"),
    [
        (("", ""), {}),
        (("far", ""), {IDENTITY: 200.0}),
        (("", "far"), {LARGE: 200.0}),
        (("far", "far"), {IDENTITY: 200.0, LARGE: 200.0}),
        (("near", "far"), {IDENTITY: 50.0, LARGE: 200.0}),
        # Of one model in several zones, the cleanest; among them the default's.
        (("far", "far", "near"), {IDENTITY: 50.0, LARGE: 200.0}),
        (("far", "", ""), {IDENTITY: 100.0}),
        (("near", "", ""), {IDENTITY: 50.0}),
        (("nowhere", "far"), {LARGE: 200.0}),
    ],
)
async def test_a_model_is_charged_by_the_cleanest_grid_that_its_engines_stand_in(
    fleet: Fleet, zones_of: tuple[str, ...], expected: dict[str, float]
) -> None:
    """The engines are of one model, of another, and of the first again."""
    fakes = [make() for make, _ in zip((FakeEngine, large, FakeEngine), zones_of, strict=False)]
    for fake, zone in zip(fakes, zones_of, strict=True):
        fake.info.zone = zone
    there = {"far": ConstantIntensity("FAR", 200.0), "near": ConstantIntensity("NEAR", 50.0)}
    engines = await fleet.start(*fakes, zones=Zones(ConstantIntensity("HERE", 100.0), there, fleet.clock))
    assert engines.g_per_kwh() == expected


async def test_a_grid_counts_while_an_engine_there_accepts_requests_or_none_does(fleet: Fleet) -> None:
    near, far = FakeEngine(), FakeEngine()
    near.info.zone, far.info.zone = "near", "far"
    there = {"far": ConstantIntensity("FAR", 200.0), "near": ConstantIntensity("NEAR", 50.0)}
    engines = await fleet.start(near, far, zones=Zones(ConstantIntensity("HERE", 100.0), there, fleet.clock))
    await near.report(draining=True)
    await fleet.until(lambda: engines.ready == 1)
    assert engines.g_per_kwh() == {IDENTITY: 200.0}, "requests go there now"
    await far.report(draining=True)
    await fleet.until(lambda: engines.ready == 0)
    assert engines.g_per_kwh() == {IDENTITY: 50.0}, "as when it was last there"


async def test_grids_that_cannot_be_compared_are_the_defaults(fleet: Fleet) -> None:
    far, here = FakeEngine(), large()
    far.info.zone = "far"
    other_signal = ConstantIntensity("FAR", 200.0, kind=SignalKind.MARGINAL)
    engines = await fleet.start(
        far, here, zones=Zones(ConstantIntensity("HERE", 100.0), {"far": other_signal}, fleet.clock)
    )
    assert engines.g_per_kwh() == {}
    without = Engines({}, fleet.clock)
    assert without.g_per_kwh() == {}
