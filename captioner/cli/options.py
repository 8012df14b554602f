"""Options that several verbs share; the caption's own come from the wire."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from captioner import wire
from captioner.artifacts.repository_templates import default_repository
from captioner.publish import KEEP, KEEP_LOADED

if TYPE_CHECKING:
    from captioner.publish.model_control import ModelControl

SERVER = f"127.0.0.1:{wire.GRPC_PORT}"
PRECISIONS = get_args(wire.EncoderPrecision)
OWN = ("stream", "describe")  # the command's own business


def add_server(parser: argparse.ArgumentParser) -> None:
    """`--server`."""
    parser.add_argument("--server", default=SERVER, help="HOST:PORT of gRPC, default %(default)s")


def add_repository(parser: argparse.ArgumentParser) -> None:
    """`--repository`."""
    parser.add_argument(
        "--repository", type=Path, default=default_repository(), help="Triton model repository, default %(default)s"
    )


def add_controls(parser: argparse.ArgumentParser) -> None:
    """`--repository` and the servers on it."""
    add_repository(parser)
    parser.add_argument(
        "--server",
        action="append",
        metavar="HOST:PORT",
        help=f"gRPC of a server on this repository, once for each replica; default {SERVER}, if it answers",
    )
    parser.add_argument("--no-server", action="store_true", help="change the folders only, for the next start")


def controls(arguments: argparse.Namespace) -> list[ModelControl]:
    """The servers that `add_controls` was told of; ServerUnreachable for one that was named and does not answer."""
    from captioner.errors import ServerUnreachable
    from captioner.publish.model_control import ModelControl, admin_key

    if arguments.no_server:
        return []
    key = admin_key(arguments.repository)
    found = [ModelControl(address, key) for address in arguments.server or [SERVER]]
    silent = [control.address for control in found if not control.is_ready()]
    if silent and arguments.server:
        raise ServerUnreachable(f"no server is ready at {', '.join(silent)}; --no-server changes the folders only")
    if silent:
        print(f"no server at {SERVER}: the next start serves what is changed here", flush=True)
        return []
    return found


def add_export(parser: argparse.ArgumentParser) -> None:
    """How a model is exported."""
    parser.add_argument(
        "--precision", choices=PRECISIONS, default=PRECISIONS[0], help="of the vision encoder, default %(default)s"
    )
    parser.add_argument(
        "--calibration", type=Path, metavar="DIR", help="photos that int8 is fitted to; default our own"
    )


def add_keep(parser: argparse.ArgumentParser) -> None:
    """`--keep`."""
    words = f"versions that stay on disk, at least {KEEP_LOADED}; default %(default)s"
    parser.add_argument("--keep", type=int, default=KEEP, metavar="N", help=words)


def say(text: str) -> None:
    """A step, at once."""
    print(text, flush=True)


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
