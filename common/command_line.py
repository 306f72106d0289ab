"""Arguments of `python -m router`, `engine` and `evaluator`: few, for settings come from the environment."""

from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from typing import Any

from common.config import ServiceConfig


def command_line(
    cls: type[ServiceConfig], service: str, arguments: Sequence[str] | None = None, *, also: str = ""
) -> dict[str, Any]:
    """What the arguments of `python -m SERVICE` say, for `load`; --help and what is unknown end the process.

    `also`: what else the help says of the command.
    """
    prefix = cls.model_config["env_prefix"]
    settings = "\n".join(
        f"  {field.validation_alias or prefix + name.upper()}"
        + ("" if field.is_required() else f" (default: {field.get_default(call_default_factory=True)})")
        + (f"\n      {field.description}" if field.description else "")
        for name, field in cls.model_fields.items()
    )
    parser = ArgumentParser(
        prog=f"python -m {service}",
        formatter_class=RawDescriptionHelpFormatter,
        description=f"Configured by the environment, or by the TOML file that {prefix}CONFIG names, "
        "where names are without prefix and in lower case." + (f"\n{also}" if also else ""),
        epilog=f"settings:\n{settings}",
        allow_abbrev=False,
    )
    parser.add_argument("--insecure", action="store_true", help="serve beyond loopback without TLS")
    return {"insecure": True} if parser.parse_args(arguments).insecure else {}
