"""`pithctl explain`."""

from pith.common.v1.energy_pb2 import ENERGY_SOURCE_MODELLED, Energy
from pith.router.v1.generation_pb2 import DECISION_REASON_HOLDBACK, Decision
from pith.router.v1.policies_pb2 import ExplainResponse

from tests.router.cli.conftest import Pithctl
from tests.router.cli.fake_services import FakeServices

EXPLANATION = ExplainResponse(
    decision=Decision(
        directive="L0",
        reason=DECISION_REASON_HOLDBACK,
        explanation="Held back at random.",
        policy="sums",
        policy_revision=3,
        planned_directive="L1",
        bound=0.971,
        floor=0.95,
    ),
    steps=["policy sums matches [tenant any]", "L1 is open"],
    candidates=[
        ExplainResponse.Candidate(
            directive="L1",
            open=True,
            bound=0.971,
            why="clears it",
            predicted_grams=0.0031,
            planned_share=0.25,
            predicted_energy=Energy(joules=12.34, source=ENERGY_SOURCE_MODELLED),
            priced_by="lengths of 812 requests, priced at a batch of 3",
        ),
        ExplainResponse.Candidate(directive="L2", open=False, why="no bound yet"),
    ],
)


def test_request_carries_what_was_said(pithctl: Pithctl, fake: FakeServices) -> None:
    arguments = ("--task", "t", "--tenant", "acme", "--prompt", "Why?", "--model", "m", "--conversation", "c")
    assert pithctl("explain", *arguments, "--floor", "0.8", "--opt-out").code == 0
    sent = fake.called("Explain")[0].request
    assert (sent.task, sent.tenant, sent.model, sent.conversation_id) == ("t", "acme", "m", "c")
    assert (sent.floor, sent.opt_out) == (0.8, True)
    assert [message.content for message in sent.messages] == ["Why?"]


def test_request_without_a_prompt_or_a_floor_has_none(pithctl: Pithctl, fake: FakeServices) -> None:
    assert pithctl("explain").code == 0
    sent = fake.called("Explain")[0].request
    assert len(sent.messages) == 0
    assert not sent.HasField("floor")


def test_decision_steps_and_candidates_are_shown(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.explanation = EXPLANATION
    said = pithctl("explain", "--task", "arithmetic").out
    assert "Held back at random." in said
    assert "sums, revision 3" in said
    assert "97.1 % against a floor of 95.0 %" in said
    assert "1.  policy sums matches [tenant any]" in said
    open_row, closed_row, _, rests_on, basis = said.splitlines()[-5:]
    assert open_row.split() == ["L1", "open", "97.1", "%", "3.1", "mg", "12.3", "J", "25.0", "%", "clears", "it"]
    assert closed_row.split() == ["L2", "closed", *["unknown"] * 3, "0.0", "%", "no", "bound", "yet"]
    assert rests_on == "Predicted energy is modelled, from:"
    assert basis == "L1  lengths of 812 requests, priced at a batch of 3"


def test_another_model_that_would_answer_is_named(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.explanation = ExplainResponse(decision=Decision(directive="small", model="tiny@0123456789ab"))
    (line,) = [line for line in pithctl("explain").out.splitlines() if "answered by" in line]
    assert line.split() == ["answered", "by", "tiny@0123456789ab"]


def test_document_has_null_for_what_is_unknown(pithctl: Pithctl, fake: FakeServices) -> None:
    fake.explanation = EXPLANATION
    document = pithctl("explain", "--json").document
    assert document["decision"]["reason"] == "holdback"
    assert document["candidates"][1]["bound"] is None
    assert document["candidates"][1]["predicted_grams"] is None
    assert document["candidates"][1]["predicted_energy"] is None
    assert document["candidates"][0]["predicted_energy"] == {"joules": 12.34, "source": "modelled"}


def test_floor_out_of_range_names_the_option(pithctl: Pithctl) -> None:
    result = pithctl("explain", "--floor", "1.5")
    assert result.code == 2
    assert "request.floor (--floor): must be above 0 and at most 1" in result.err
