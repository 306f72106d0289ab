"""Cases of `pithctl token` and `pithctl tenant`."""

import re
import tomllib
from hashlib import sha256

from tests.router.cli.bench import Bench, case, judged
from tests.router.cli.world import CLIENT


@case
def token_create(bench: Bench) -> None:
    made = bench.run("token", "create", "ci", "--role", "client", "--tenant", "acme", "--expires", "90d")
    secret = made.out.removesuffix("\n")
    assert re.fullmatch(r"\S+", secret)
    assert "role client, tenant acme until" in made.err
    assert secret not in made.err
    bench.run("chat", "--once", "Hello", PITHCTL_TOKEN=secret)
    bench.run("policy", "list", code=6, PITHCTL_TOKEN=secret)
    document = bench.document("token", "create", "ops", "--role", "admin")
    assert document["token"]["expires_at"] is None
    bench.run("policy", "list", PITHCTL_TOKEN=document["secret"])
    assert "choose another name" in bench.run("token", "create", "ci", code=4).err
    assert "--expires" in bench.run("token", "create", "x", "--expires", "soon", code=2).err


@case
def token_list(bench: Bench) -> None:
    bench.run("token", "create", "ci", "--tenant", "acme", "--expires", "1h")
    assert [token["name"] for token in bench.document("token", "list")["tokens"]] == ["ci"]
    row = bench.text("token", "list").splitlines()[1].split()
    assert row[:4] == ["ci", "client", "acme", "valid"]


@case
def token_revoke(bench: Bench) -> None:
    secret = bench.run("token", "create", "ci", "--role", "admin").out.strip()
    bench.run("token", "create", "second")
    assert "Revoke token ci?" in bench.run("token", "revoke", "ci", stdin="n\n", code=1).err
    bench.run("policy", "list", PITHCTL_TOKEN=secret)
    assert bench.document("token", "revoke", "ci", "--yes")["revoked_by"] == "root"
    bench.run("policy", "list", code=6, PITHCTL_TOKEN=secret)
    assert "Token second is revoked" in bench.text("token", "revoke", "second", "--yes")
    assert "revoked" in bench.text("token", "list")
    assert "pithctl token list" in bench.run("token", "revoke", "nobody", "--yes", code=3).err


@case
def token_bootstrap(bench: Bench) -> None:
    # Nothing that it does needs a router.
    offline = {"PITHCTL_ROUTER": "127.0.0.1:1"}
    made = bench.run("token", "bootstrap", "--name", 'the "first"', "--tenant", "ops", **offline)
    entry = made.err.partition("\n\n")[2]
    (parsed,) = tomllib.loads(entry)["tokens"]
    digest = sha256(made.out.strip().encode()).hexdigest()
    assert parsed == {"name": 'the "first"', "role": "admin", "tenant": "ops", "sha256": digest}
    for role, where in (("admin", "ROUTER"), ("evaluator", "ROUTER"), ("engine", "ENGINE")):
        said = bench.run("token", "bootstrap", "--name", "x", "--role", role, **offline).err
        assert f"For the file that PITH_{where}_TOKENS_FILE names" in said
    file = bench.folder / "made.toml"
    for name, role in (("root", "admin"), ("judge", "evaluator")):
        bench.run("token", "bootstrap", "--name", name, "--role", role, "--append-to", str(file), **offline)
    assert [(t["name"], t["role"]) for t in tomllib.loads(file.read_text())["tokens"]] == [
        ("root", "admin"),
        ("judge", "evaluator"),
    ]
    assert file.stat().st_mode & 0o077 == 0
    document = bench.document("token", "bootstrap", "--name", "root", **offline)
    assert document["entry"]["sha256"] == sha256(document["secret"].encode()).hexdigest()
    assert document["secret"] != made.out.strip()


@case
def tenant_limits_set(bench: Bench) -> None:
    found = bench.document("tenant", "limits", "set", "acme", "--requests-per-minute", "1")
    assert (found["requests_per_minute"], found["concurrent_requests"]) == (1, 0)
    found = bench.document("tenant", "limits", "set", "acme", "--concurrent-requests", "7")
    assert (found["requests_per_minute"], found["concurrent_requests"]) == (1, 7)
    asked = [bench.run("chat", "--once", "Hello", code=code, PITHCTL_TOKEN=CLIENT) for code in (0, 5)]
    assert "try again in" in asked[-1].err
    row = bench.text("tenant", "limits", "set", "acme", "--requests-per-minute", "0").splitlines()[1].split()
    assert row[:3] == ["acme", "default", "7"]
    bench.run("tenant", "limits", "set", "acme", code=2)


@case
def tenant_limits_list(bench: Bench) -> None:
    assert "No tenant has limits of its own." in bench.text("tenant", "limits", "list")
    bench.run("tenant", "limits", "set", "acme", "--requests-per-minute", "600")
    assert bench.document("tenant", "limits", "list")["limits"][0]["requests_per_minute"] == 600
    assert re.search(r"acme +600 +default .* by root", bench.text("tenant", "limits", "list"))


@case
def tenant_erase(bench: Bench) -> None:
    judged(bench)
    kept = bench.run("tenant", "erase", "acme", stdin="n\n", code=1)
    assert "samples and comments of tenant acme?" in kept.err
    assert bench.document("tenant", "erase", "acme", "--before", "-1d", "--yes") == {"samples": 0, "comments": 0}
    assert "Erased: 12 samples and 0 comments of acme." in bench.text("tenant", "erase", "acme", "--yes")
