"""Variables of a chat template all the way: a native directive, the router, the engine, a model that reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from google.protobuf.struct_pb2 import NULL_VALUE, Struct, Value
from pith.common.v1 import text_pb2
from pith.engine.v1 import control_pb2
from pith.router.v1 import directives_pb2, directives_pb2_grpc, generation_pb2

from engine.kv_cache import BLOCK_SIZE_TOKENS
from tests.engine.tiny_model import write_model
from tests.integration.served_engine import LONG_CONTEXT, Request, Served, fault_of, request_of, serving
from tests.router.running import Running, ask, running

pb: Any = directives_pb2

TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}:{{ message.content }}{% endfor %}<|turn|>assistant:"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    "{% if budget is defined %}({{ budget }}){% endif %}"
)


@pytest.fixture(scope="module")
def thinking_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_model(
        tmp_path_factory.mktemp("models") / "thinking", seed=1, max_position_embeddings=LONG_CONTEXT, eos_token_id=None
    )
    (path / "chat_template.jinja").write_text(TEMPLATE)
    return path


@pytest.fixture
async def served(thinking_path: Path) -> AsyncIterator[Served]:
    async with serving(thinking_path) as served:
        yield served


def struct(**values: Any) -> Struct:
    made = Struct()
    made.update(values)
    return made


def with_variables(variables: Struct, text: str = "tell me", **sampling: Any) -> Request:
    request = request_of(text, seed=7, temperature=1.0, **sampling)
    request.messages.template_variables.CopyFrom(variables)
    return request


async def prompt(served: Served, variables: Struct) -> str:
    reply = await served.inference.Generate(with_variables(variables))
    return "".join(map(served.engine.tokenizer.detokenizer().push, reply.started.prompt_token_ids))


async def test_the_template_reads_them_and_the_model_is_known_to(served: Served) -> None:
    info = await served.control.GetModelInfo(control_pb2.GetModelInfoRequest())
    assert list(info.template_variables) == ["budget", "enable_thinking"]
    assert await prompt(served, Struct()) == "user:tell meassistant:"
    assert await prompt(served, struct(enable_thinking=False)) == "user:tell meassistant:<think></think>"
    assert await prompt(served, struct(enable_thinking=True, nobody_reads_it="x")) == "user:tell meassistant:"
    # A whole number stays one, though the wire knows floats only.
    assert await prompt(served, struct(budget=512)) == "user:tell meassistant:(512)"
    assert await prompt(served, struct(budget=0.5)) == "user:tell meassistant:(0.5)"


def odd(name: str, value: Value) -> Struct:
    made = Struct()
    made.fields[name].CopyFrom(value)
    return made


@pytest.mark.parametrize(
    ("variables", "at", "fault"),
    [
        (struct(messages="x"), "['messages']", "is the chat template's own"),
        (struct(eos_token="x"), "['eos_token']", "is the chat template's own"),
        (struct(loop="x"), "['loop']", "is the chat template's own"),
        (struct(add_generation_prompt=False), "['add_generation_prompt']", "is the chat template's own"),
        (struct(**{f"v{n}": 1 for n in range(9)}), "", "has 9 variables; at most 8"),
        (struct(**{"a.b": 1}), "['a.b']", "must be named as in Python"),
        (struct(a="x" * 257), "['a']", "has 257 characters; at most 256"),
        (struct(a=float("inf")), "['a']", "is inf; must be a finite number"),
        (struct(a=[1]), "['a']", "must be a boolean, a number or text"),
        (odd("a", Value(null_value=NULL_VALUE)), "['a']", "must be a boolean, a number or text"),
        (odd("a", Value()), "['a']", "must be a boolean, a number or text"),
    ],
)
async def test_what_no_template_may_be_given_is_refused_by_name(
    served: Served, variables: Struct, at: str, fault: str
) -> None:
    error = await fault_of(served.inference.Generate(with_variables(variables)))
    assert [violation.field for violation in error.violations] == [f"messages.template_variables{at}"]
    assert fault in error.violations[0].description


async def test_the_same_again_comes_from_the_prefix_cache_and_other_variables_share_what_is_before_them(
    served: Served,
) -> None:
    text = "x" * (3 * BLOCK_SIZE_TOKENS)
    first = await served.inference.Generate(with_variables(struct(enable_thinking=False), text))
    again = await served.inference.Generate(with_variables(struct(enable_thinking=False), text))
    other = await served.inference.Generate(with_variables(Struct(), text))
    assert first.finished.usage.cached_tokens == 0
    assert again.finished.usage.cached_tokens >= 3 * BLOCK_SIZE_TOKENS
    assert other.finished.usage.cached_tokens >= 3 * BLOCK_SIZE_TOKENS
    assert again.token_ids == first.token_ids
    async with serving(served.engine.config.model_path) as fresh:
        alone = await fresh.inference.Generate(with_variables(Struct(), text))
    assert other.token_ids == alone.token_ids != first.token_ids


async def test_an_answer_is_resumed_from_what_the_variables_made_of_the_prompt(served: Served) -> None:
    request = with_variables(struct(enable_thinking=False))
    whole = await served.inference.Generate(request)
    request.token_ids.ids.extend(whole.started.prompt_token_ids)
    request.resume.model_digest = whole.started.model_digest
    request.resume.token_ids.extend(whole.token_ids[:5])
    rest = await served.inference.Generate(request)
    assert list(whole.token_ids[:5]) + list(rest.token_ids) == list(whole.token_ids)


async def routed(stack: AsyncExitStack, folder: Path, served: Served) -> Running:
    """A router on that engine, with a native directive for tenant acme's questions."""
    place: Any = SimpleNamespace(address=served.address)
    router = await stack.enter_async_context(running(folder, {"e1": place}))
    directives: Any = directives_pb2_grpc.DirectivesStub(router.channel)
    directive = pb.Directive(name="N", placement=pb.PLACEMENT_NATIVE, template_variables=struct(enable_thinking=False))
    await directives.CreateDirective(pb.CreateDirectiveRequest(directive=directive))
    await router.policy(directives=["N"])
    await router.open("N", model=f"{served.engine.card.name}@{served.engine.card.digest[:12]}")
    return router


async def test_a_native_directive_reaches_the_model(tmp_path: Path, served: Served) -> None:
    async with AsyncExitStack() as stack:
        router = await routed(stack, tmp_path, served)
        sampling, limits = text_pb2.Sampling(seed=7, temperature=1.0), text_pb2.Limits(max_output_tokens=12)
        asked = ask("tell me", sampling=sampling, limits=limits)
        steered = await router.generation.Generate(asked)
        assert steered.started.decision.directive == "N"
        asked.opt_out = True
        plain = await router.generation.Generate(asked)
        by_hand = {
            "N": await served.inference.Generate(with_variables(struct(enable_thinking=False))),
            "L0": await served.inference.Generate(with_variables(Struct())),
        }
        assert (steered.text, plain.text) == (by_hand["N"].text, by_hand["L0"].text)
        prompt_tokens = [reply.finished.usage.prompt_tokens for reply in (steered, plain)]
        assert prompt_tokens[0] == prompt_tokens[1] + len("<think></think>")


async def test_a_candidate_reaches_it_as_a_trial_does(tmp_path: Path, served: Served) -> None:
    async with AsyncExitStack() as stack:
        router = await routed(stack, tmp_path, served)
        variables = struct(enable_thinking=False, budget=64)
        candidate = pb.Directive(placement=pb.PLACEMENT_NATIVE, template_variables=variables)
        purpose = generation_pb2.EvaluationPurpose(sample_id="s1", candidate=candidate)
        sampling, limits = text_pb2.Sampling(seed=7, temperature=1.0), text_pb2.Limits(max_output_tokens=12)
        reply = await router.generation.Generate(ask("tell me", sampling=sampling, limits=limits, evaluation=purpose))
        by_hand = await served.inference.Generate(with_variables(variables))
        assert (reply.started.decision.directive, reply.text) == ("trial", by_hand.text)
