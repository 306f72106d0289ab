"""What a quality budget over a day grants: against the exact linear programme of all tasks, hours and directives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from router.optimizer.costs import Cost
from router.optimizer.grants import Class, Day, Hour, Known, Served, Standing, grants
from router.optimizer.solve import Candidate, solve

LEAST_SAVED = 2 ** (-1 / 8)
"""Share of what can be saved at all: savings within an eighth of an octave are taken for equal."""
ROUNDING = 1e-7


def grams(cost: Cost, g_per_kwh: float) -> float:
    """Operational at a PUE of 1.2, and embodied."""
    return 1.2 * cost.energy_joules * g_per_kwh / 3.6e6 + cost.busy_seconds * 1e-6


@dataclass(frozen=True)
class Case:
    """A policy's day."""

    known: Mapping[Class, Known]
    served: Mapping[Class, Served]
    hours: Sequence[Hour]
    floor: float

    def granted(self, first: int = 0) -> tuple[dict[Class, float], Standing]:
        """Were that hour the present one."""
        hours = (self.hours[first], *self.hours[:first], *self.hours[first + 1 :])
        found = grants(self.known, self.served, Day(hours, {}, grams), self.floor, 0.5)
        assert found is not None
        return found

    def ahead(self) -> tuple[float, float]:
        """What the rest of the day keeps beyond the floor, and emits, where each task is served the mix of least carbon
        for what each hour grants it."""
        margin = emitted = 0.0
        for place, hour in enumerate(self.hours):
            floors, _ = self.granted(place)
            for name, of in self.known.items():
                requests = self.served[name].per_hour * hour.hours
                best = max([1.0, *of.kept.values()])
                for directive, share in solve(candidates(of, hour.g_per_kwh), min(floors[name], best)):
                    margin += requests * share * ({"L0": 1.0, **of.kept}[directive] - self.floor)
                    emitted += requests * share * grams(of.costs[directive], hour.g_per_kwh)
        return margin, emitted

    def day(self) -> tuple[float, float]:
        """What the whole day kept beyond the floor, and what it emitted from now on, planned anew each hour."""
        margin, emitted, times = self.margin_so_far, 0.0, 10**6  # of shares of requests, whole ones are counted
        today = {name: Counter({d: times * count for d, count in of.today.items()}) for name, of in self.served.items()}
        for place, hour in enumerate(self.hours):
            served = {name: Served(today[name], times * of.per_hour) for name, of in self.served.items()}
            floors, _ = Case(self.known, served, self.hours[place:], self.floor).granted()
            for name, of in self.known.items():
                requests = self.served[name].per_hour * hour.hours
                for directive, share in solve(
                    candidates(of, hour.g_per_kwh), min(floors[name], max([1.0, *of.kept.values()]))
                ):
                    today[name][directive] += round(times * requests * share)
                    margin += requests * share * ({"L0": 1.0, **of.kept}[directive] - self.floor)
                    emitted += requests * share * grams(of.costs[directive], hour.g_per_kwh)
        return margin, emitted

    @property
    def margin_so_far(self) -> float:
        return sum(
            count * ({"L0": 1.0, **self.known[name].kept}[directive] - self.floor)
            for name, of in self.served.items()
            for directive, count in of.today.items()
        )

    def emitted_at(self, directive: str) -> float:
        return sum(
            self.served[name].per_hour * hour.hours * grams(of.costs[directive], hour.g_per_kwh)
            for name, of in self.known.items()
            for hour in self.hours
        )

    def least_emitted(self) -> float:
        """The optimum over all shares of directives by task and hour with one row for the budget."""
        cost, quality, block = [], [], []
        for number, (name, of) in enumerate(self.known.items()):
            for place, hour in enumerate(self.hours):
                requests = self.served[name].per_hour * hour.hours
                for directive, kept in {"L0": 1.0, **of.kept}.items():
                    cost.append(requests * grams(of.costs[directive], hour.g_per_kwh))
                    quality.append(requests * (kept - self.floor))
                    block.append(number * len(self.hours) + place)
        rows = np.array([np.array(block) == number for number in range(max(block) + 1)], dtype=float)
        scale = max(cost)
        found = linprog(
            np.array(cost) / scale,
            A_ub=[-np.array(quality)],
            b_ub=[self.margin_so_far],
            A_eq=rows,
            b_eq=np.ones(len(rows)),
        )
        assert found.success, found.message
        return float(found.fun) * scale


def candidates(of: Known, g_per_kwh: float) -> list[Candidate]:
    kept = {"L0": 1.0, **of.kept}
    return [Candidate(name, grams(of.costs[name], g_per_kwh), quality) for name, quality in kept.items()]


def cost(joules: float) -> Cost:
    """Busy in proportion, so that the order by energy is the order by carbon."""
    return Cost(joules, joules / 100.0)


def task(joules: float, *directives: tuple[float, float]) -> Known:
    """Each directive's share of L0's energy, and what it keeps."""
    names = [f"L{number}" for number in range(1, len(directives) + 1)]
    costs = {name: cost(joules * share) for name, (share, _) in zip(names, directives, strict=True)}
    return Known({"L0": cost(joules), **costs}, {n: kept for n, (_, kept) in zip(names, directives, strict=True)})


@st.composite
def cases(draw: st.DrawFn, most_kept: float = 1.0, most_tasks: int = 4, most_hours: int = 6) -> Case:
    known, served = {}, {}
    directive = st.tuples(st.floats(0.05, 1.1), st.floats(0.5, most_kept))
    for number in range(draw(st.integers(1, most_tasks))):
        name = "m@1", f"task-{number}"
        # From a label of a few tokens to long answers of a large model.
        joules = 10 ** draw(st.floats(-1.0, 4.5))
        known[name] = task(joules, *draw(st.lists(directive, max_size=3)))
        today = {action: draw(st.integers(0, 50)) for action in known[name].costs}
        served[name] = Served(today, draw(st.floats(0.5, 500.0)))
    hours = [Hour(draw(st.floats(0.01, 1.0)), draw(st.floats(5.0, 900.0)))]
    hours += [Hour(1.0, draw(st.floats(5.0, 900.0))) for _ in range(draw(st.integers(0, most_hours - 1)))]
    return Case(known, served, hours, draw(st.floats(0.8, 0.99)))


@settings(deadline=None, max_examples=200)
@given(cases())
def test_the_budget_is_kept_and_saves_as_much_as_the_linear_programme_but_for_what_saves_alike(case: Case) -> None:
    _, standing = case.granted()
    margin, emitted = case.ahead()
    requests = sum(of.per_hour for of in case.served.values()) * sum(hour.hours for hour in case.hours)
    overdrawn = case.margin_so_far + (1.0 - case.floor) * requests < 0
    assert standing.keeps != overdrawn
    if overdrawn:
        return
    assert margin + case.margin_so_far >= -ROUNDING * requests
    base = case.emitted_at("L0")
    assert base - emitted >= LEAST_SAVED * (base - case.least_emitted()) - ROUNDING * base


@settings(deadline=None, max_examples=200)
@given(cases(most_kept=1.3, most_hours=1))
def test_within_an_hour_what_is_kept_beyond_l0s_quality_is_spent_as_the_linear_programme_does(case: Case) -> None:
    """What is saved, counted from all that could be kept: a directive may keep more than L0 and emit more."""
    _, standing = case.granted()
    assume(standing.keeps)
    margin, emitted = case.ahead()
    (hour,) = case.hours
    requests = sum(of.per_hour for of in case.served.values()) * hour.hours
    assert margin + case.margin_so_far >= -ROUNDING * requests
    base = 0.0
    for name, of in case.known.items():
        best = max([1.0, *of.kept.values()])
        mix = solve(candidates(of, hour.g_per_kwh), best)
        base += case.served[name].per_hour * hour.hours * sum(s * grams(of.costs[d], hour.g_per_kwh) for d, s in mix)
    assert base - emitted >= LEAST_SAVED * (base - case.least_emitted()) - ROUNDING * base


@settings(deadline=None)
@given(cases(most_kept=1.3))
def test_hour_by_hour_the_day_keeps_the_floor_where_it_was_expected_to(case: Case) -> None:
    """And saves what it could without any surplus, or more. Each hour's requests come, and are served as planned."""
    _, standing = case.granted()
    assume(standing.keeps)
    requests = sum(of.per_hour for of in case.served.values()) * sum(hour.hours for hour in case.hours)
    margin, emitted = case.day()
    assert margin >= -ROUNDING * requests - 1e-6 * sum(sum(of.today.values()) for of in case.served.values())
    least = case.least_emitted()
    assert emitted >= least - 1e-5 * case.emitted_at("L0")
    capped = Case(
        {
            name: Known(of.costs, {directive: min(kept, 1.0) for directive, kept in of.kept.items()})
            for name, of in case.known.items()
        },
        case.served,
        case.hours,
        case.floor,
    )
    base = case.emitted_at("L0")
    if capped.margin_so_far + (1.0 - case.floor) * requests >= 0:
        assert base - emitted >= LEAST_SAVED**2 * (base - capped.least_emitted()) - 1e-5 * base


@settings(deadline=None)
@given(cases(most_kept=1.3))
def test_of_later_hours_no_more_than_l0s_quality_is_counted_on(case: Case) -> None:
    """Were all that comes after the present hour served at L0, the day would keep the floor."""
    floors, standing = case.granted()
    margin = case.margin_so_far
    for name, of in case.served.items():
        margin += of.per_hour * case.hours[0].hours * (floors[name] - case.floor)
        margin += of.per_hour * sum(hour.hours for hour in case.hours[1:]) * (1.0 - case.floor)
    requests = sum(of.per_hour for of in case.served.values()) * sum(hour.hours for hour in case.hours)
    best = {name: max([1.0, *of.kept.values()]) for name, of in case.known.items()}
    assert margin >= -ROUNDING * requests or floors == pytest.approx(best), "all is asked of an overdrawn day"
    can = sum(of.per_hour * sum(hour.hours for hour in case.hours) * best[name] for name, of in case.served.items())
    assert standing.keeps == (case.margin_so_far + can - case.floor * requests >= 0)


@settings(deadline=None)
@given(cases(most_kept=1.3), st.floats(0.0, 5_000.0))
def test_more_is_asked_of_all_where_more_was_lost(case: Case, lost: float) -> None:
    """And never less than a class' worst directive keeps, nor more than its best or L0."""
    name = next(iter(case.served))
    before, _ = case.granted()
    worse = {**case.served[name].today, "gone": int(lost)}  # no longer open: taken to have kept directive_floor
    after, _ = Case(
        case.known, {**case.served, name: Served(worse, case.served[name].per_hour)}, case.hours, case.floor
    ).granted()
    assert all(after[name] >= before[name] - 1e-9 for name in before)
    for name, floor in before.items():
        kept = [1.0, *case.known[name].kept.values()]
        assert min(kept) - 1e-9 <= floor <= max(kept) + 1e-9


@settings(deadline=None)
@given(cases(), st.floats(1.1, 10.0))
def test_the_dirtier_the_hour_the_less_it_must_keep(case: Case, times: float) -> None:
    dirtier = Case(
        case.known,
        case.served,
        (Hour(case.hours[0].hours, times * case.hours[0].g_per_kwh), *case.hours[1:]),
        case.floor,
    )

    def kept(case: Case) -> float:
        floors, _ = case.granted()
        return sum(case.served[name].per_hour * floor for name, floor in floors.items())

    assert kept(dirtier) <= kept(case) + 1e-6


@settings(deadline=None)
@given(cases(), st.sampled_from((1e-3, 1e3, 1e6)))
def test_a_small_model_is_granted_what_a_large_one_is(case: Case, times: float) -> None:
    def larger(of: Known) -> Known:
        return Known({name: cost(times * one.energy_joules) for name, one in of.costs.items()}, of.kept)

    before, _ = case.granted()
    after, _ = Case(
        {name: larger(of) for name, of in case.known.items()}, case.served, case.hours, case.floor
    ).granted()
    assert after == pytest.approx(before, abs=1e-6)


@pytest.mark.parametrize("joules", [0.1, 10.0, 10_000.0])
def test_the_dirtiest_hour_and_the_task_that_saves_most_get_the_budget(joules: float) -> None:
    known = {
        ("m@1", "long"): task(10 * joules, (0.3, 0.85)),
        ("m@1", "short"): task(joules, (0.3, 0.85)),
    }
    served = dict.fromkeys(known, Served({}, 10.0))
    hours = [Hour(1.0, intensity) for intensity in (100.0, 400.0, 100.0, 100.0)]
    of_present, standing = Case(known, served, hours, 0.95).granted()
    assert of_present[("m@1", "long")] == pytest.approx(1 - 0.05 * 8 / 3 + 0.15 / 3), "what the dirty hour leaves"
    assert of_present[("m@1", "short")] == 1.0
    of_dirty, _ = Case(known, served, hours, 0.95).granted(1)
    assert of_dirty == pytest.approx({("m@1", "long"): 0.85, ("m@1", "short"): 1.0})
    assert (standing.requests, standing.kept, standing.keeps) == (0, None, True)
    saved = grams(cost(7 * joules), 100.0)  # by a request of the long task that loses 0.15
    assert standing.grams == pytest.approx(saved / 0.15, rel=0.1)


def test_a_directive_that_saves_next_to_nothing_takes_nothing_from_those_that_save() -> None:
    """Many requests for a label of one token, whose directive loses quality and saves a thousandth; few for reports."""
    known = {("m@1", "labels"): task(20.0, (0.999, 0.8)), ("m@1", "reports"): task(1_000.0, (0.3, 0.85))}
    served = {("m@1", "labels"): Served({}, 20.0), ("m@1", "reports"): Served({}, 10.0)}
    found, _ = Case(known, served, [Hour(1.0, 300.0)], 0.95).granted()
    assert found == pytest.approx({("m@1", "labels"): 1.0, ("m@1", "reports"): 0.85})


def test_what_saves_a_seventh_more_is_spent_on_first() -> None:
    known = {("m@1", "more"): task(1_150.0, (0.3, 0.85)), ("m@1", "less"): task(1_000.0, (0.3, 0.85))}
    found, _ = Case(known, dict.fromkeys(known, Served({}, 10.0)), [Hour(1.0, 300.0)], 0.95).granted()
    assert found == pytest.approx({("m@1", "more"): 0.9, ("m@1", "less"): 1.0})


def test_hours_of_like_intensity_are_granted_alike() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.85))}
    served = {("m@1", "qa"): Served({}, 10.0)}
    for hours in ([Hour(1.0, 300.0)] * 24, [Hour(1.0, 300.0), Hour(1.0, 303.0), Hour(1.0, 297.0)]):
        found, _ = Case(known, served, hours, 0.95).granted()
        assert found == pytest.approx({("m@1", "qa"): 0.95})


def test_only_what_is_expected_of_an_hour_itself_is_spent_for_it() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.85))}
    hours = [Hour(1.0, 600.0), *[Hour(1.0, 200.0)] * 3]
    for ahead, floor in (((), 0.85), ([10.0] * 4, 0.85), ([10.0, 0.0, 0.0, 0.0], 0.95), ([10.0, 4.0, 0.0, 0.0], 0.93)):
        found, _ = Case(known, {("m@1", "qa"): Served({}, 10.0, ahead)}, hours, 0.95).granted()
        assert found == pytest.approx({("m@1", "qa"): floor})
    found, _ = Case(known, {("m@1", "qa"): Served({"L0": 60}, 10.0, [0.0] * 4)}, hours, 0.95).granted()
    assert found == pytest.approx({("m@1", "qa"): 0.85}), "none is expected, and one may come"


@pytest.mark.parametrize("dirty_from", [8, 12, 14, 16])
def test_a_day_of_office_hours_keeps_the_floor(dirty_from: int) -> None:
    """By rates alone its evening would be taken for as busy as its noon, and the day end below the floor."""
    name, steps = ("m@1", "qa"), 4
    known = {name: task(1_000.0, (0.3, 0.85))}
    usual = [100.0 * (8 <= hour < 18) for hour in range(24)]
    today = {"L0": 0.0, "L1": 0.0}
    for hour, part in product(range(24), range(steps)):
        hours = [Hour(1.0, 600.0 if 0 <= of - dirty_from < 4 else 200.0) for of in range(hour, 24)]
        hours[0] = Hour(1.0 - part / steps, hours[0].g_per_kwh)
        served = Served({of: round(count) for of, count in today.items()}, sum(usual) / 24, usual[hour:])
        floors, _ = Case(known, {name: served}, hours, 0.95).granted()
        shortened = usual[hour] / steps * (1.0 - floors[name]) / 0.15
        today["L1"] += shortened
        today["L0"] += usual[hour] / steps - shortened
    assert 1.0 - 0.15 * today["L1"] / 1_000 == pytest.approx(0.95, abs=1e-3)


def test_an_overdrawn_budget_grants_nothing_more() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.8))}
    served = {("m@1", "qa"): Served({"L1": 100, "L0": 10}, 10.0)}
    found, standing = Case(known, served, [Hour(1.0, 300.0)], 0.95).granted()
    assert found == {("m@1", "qa"): 1.0}
    assert (standing.requests, standing.kept, standing.keeps) == (110, pytest.approx(90 / 110), False)
    assert np.isinf(standing.grams)


def test_a_budget_that_cannot_be_used_up_has_no_price() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.97))}
    found, standing = Case(known, {("m@1", "qa"): Served({}, 10.0)}, [Hour(1.0, 300.0)], 0.95).granted()
    assert found == pytest.approx({("m@1", "qa"): 0.97})
    assert (standing.grams, standing.keeps) == (0.0, True)


def test_what_was_served_by_a_directive_that_closed_is_taken_to_have_kept_the_directive_floor() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.9))}
    served = {("m@1", "qa"): Served({"L0": 10, "L1": 10, "gone": 20}, 1.0), ("m@2", "qa"): Served({"L1": 10}, 0.0)}
    found = grants(known, served, Day([Hour(1.0, 300.0)], {}, grams), 0.95, 0.7)
    assert found is not None
    assert (found[1].requests, found[1].kept) == (50, pytest.approx((10 + 9 + 14 + 7) / 50))


def test_nothing_is_granted_where_no_class_of_known_energy_will_have_requests() -> None:
    day = Day([Hour(1.0, 300.0)], {}, grams)
    qa = ("m@1", "qa")
    known, served = {qa: task(1_000.0, (0.3, 0.9))}, {qa: Served({"L1": 3}, 5.0)}
    assert grants({}, {}, day, 0.95, 0.8) is None
    assert grants({}, served, day, 0.95, 0.8) is None
    assert grants(known, {}, day, 0.95, 0.8) is None
    assert grants(known, {qa: Served({"L1": 3}, 0.0)}, day, 0.95, 0.8) is None
    assert grants({qa: Known({}, {"L1": 0.9})}, served, day, 0.95, 0.8) is None
    assert grants({qa: task(0.0, (0.3, 0.9))}, served, day, 0.95, 0.8) is None


def test_a_class_of_unknown_energy_is_left_out_but_what_it_kept_counts() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.9)), ("m@1", "new"): Known({}, {"L1": 0.96})}
    served = {("m@1", "qa"): Served({}, 10.0), ("m@1", "new"): Served({"L1": 100}, 10.0)}
    found = grants(known, served, Day([Hour(1.0, 300.0)], {}, grams), 0.95, 0.5)
    assert found is not None
    floors, standing = found
    assert floors == pytest.approx({("m@1", "qa"): 0.9})
    assert standing.kept == pytest.approx(0.96)


def test_a_class_with_nothing_open_is_granted_all_and_leaves_its_quality_to_others() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.9)), ("m@1", "closed"): task(1_000.0)}
    found, _ = Case(known, dict.fromkeys(known, Served({}, 10.0)), [Hour(1.0, 300.0)], 0.95).granted()
    assert found == pytest.approx({("m@1", "qa"): 0.9, ("m@1", "closed"): 1.0})


def test_hours_that_emit_nothing_are_spent_in_last() -> None:
    def operational(cost: Cost, g_per_kwh: float) -> float:
        return cost.energy_joules * g_per_kwh

    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.9))}
    served = {("m@1", "qa"): Served({}, 10.0)}

    def floor(*intensities: float) -> float:
        day = Day([Hour(1.0, intensity) for intensity in intensities], {}, operational)
        found = grants(known, served, day, 0.95, 0.8)
        assert found is not None
        return found[0]["m@1", "qa"]

    assert floor(0.0, 100.0) == pytest.approx(1.0)
    assert floor(100.0, 0.0) == pytest.approx(0.9)
    assert floor(0.0, 0.0) == pytest.approx(0.95)


@pytest.mark.parametrize(
    ("kept", "least", "no_surplus", "floors"),
    [
        (1.05, {}, (), (1.05, 0.85)),
        (1.05, {"L1": 1.02}, (), (1.02, 0.88)),
        (1.05, {"L1": 0.9}, (), (1.0, 0.9)),
        (1.05, {}, ("L1",), (1.0, 0.9)),
        (0.99, {"L1": 0.9}, ("L1",), (1.0, 0.9)),
    ],
)
def test_what_every_tenant_keeps_beyond_l0s_quality_is_another_class_to_spend(
    kept: float, least: Mapping[str, float], no_surplus: tuple[str, ...], floors: tuple[float, float]
) -> None:
    """`able` saves a thousandth of what `long` does. What it keeps beyond the least of all tenants it spends itself."""
    able, long = ("m@1", "able"), ("m@1", "long")
    of_able = task(1.0, (0.5, kept), (0.1, 0.8))
    known = {able: Known(of_able.costs, of_able.kept, least, no_surplus), long: task(1_000.0, (0.3, 0.8))}
    found = grants(known, dict.fromkeys(known, Served({}, 10.0)), Day([Hour(1.0, 300.0)], {}, grams), 0.95, 0.5)
    assert found is not None
    assert (found[0][able], found[0][long]) == pytest.approx(floors)


def test_what_later_hours_would_keep_beyond_l0s_quality_is_not_spent_before_it_was_kept() -> None:
    able, long = ("m@1", "able"), ("m@1", "long")
    known = {able: task(1.0, (0.5, 1.05)), long: task(1_000.0, (0.3, 0.5))}
    hours = [Hour(1.0, 600.0), *[Hour(1.0, 100.0)] * 3]
    served = dict.fromkeys(known, Served({}, 10.0))
    found, _ = Case(known, served, hours, 0.99).granted()
    assert found == pytest.approx({able: 1.05, long: 1.0 - 0.05 - 8 * 0.01})
    kept = {**served, able: Served({"L1": 30}, 10.0)}
    found, standing = Case(known, kept, hours, 0.99).granted()
    assert found == pytest.approx({able: 1.05, long: 1.0 - 0.05 - 8 * 0.01 - 3 * 0.06})
    assert standing.kept == pytest.approx(1.05)


def test_an_overdrawn_day_is_expected_to_be_kept_where_its_surplus_makes_up_for_it() -> None:
    able = ("m@1", "able")
    known = {able: task(1_000.0, (1.5, 1.05), (0.3, 0.8))}
    # Ten requests at L0 keep the quality of half a one beyond the floor, and at their best a whole one's.
    for lost, keeps, most in ((3, True, 1.0), (6, True, 1.05), (7, False, 1.05)):
        served = {able: Served({"L2": lost}, 1.0)}
        found, standing = Case(known, served, [Hour(1.0, 300.0)] * 10, 0.95).granted()
        assert standing.keeps == keeps
        assert found[able] == pytest.approx(most, abs=0.02 if most == 1.0 else 1e-9)


def test_an_hour_that_is_all_but_over_is_granted_what_it_would_be_at_its_start() -> None:
    known = {("m@1", "qa"): task(1_000.0, (0.3, 0.9))}
    served = {("m@1", "qa"): Served({}, 10.0)}
    for left in (0.0, 1e-12, 0.5):
        found, _ = Case(known, served, [Hour(left, 400.0), Hour(1.0, 100.0)], 0.95).granted()
        assert found == pytest.approx({("m@1", "qa"): 0.9})
