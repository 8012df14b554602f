"""Options that several verbs share; the caption's own come from the wire."""

from __future__ import annotations

import argparse
from typing import Any

from captioner import wire

SERVER = f"127.0.0.1:{wire.GRPC_PORT}"
OWN = ("stream", "describe")  # the command's own business


def add_server(parser: argparse.ArgumentParser) -> None:
    """`--server`."""
    parser.add_argument("--server", default=SERVER, help="HOST:PORT of gRPC, default %(default)s")


def add_parameters(parser: argparse.ArgumentParser) -> None:
    """`--prompt` and every parameter of the wire."""
    group = parser.add_argument_group("the caption; what is left out is left to the model")
    group.add_argument("--prompt", help="used as it is, in place of style and length")
    for parameter in wire.PARAMETERS.values():
        if parameter.name in OWN:
            continue
        flag = "--" + parameter.name.replace("_", "-")
        if parameter.kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=parameter.doc)
        else:
            group.add_argument(flag, type=parameter.kind, help=f"{parameter.doc} ({parameter.range})")


def parameters(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_parameters` was told, as keywords of the client's methods; None is left to the server."""
    names = [name for name in wire.PARAMETERS if name not in OWN]
    return {name: getattr(arguments, name) for name in names} | {"prompt": arguments.prompt}
