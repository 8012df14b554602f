"""The options of the command line: those of the wire and of a job, their defaults, and refusals of bad usage."""

from __future__ import annotations

import pytest

from captioner import __version__, wire
from captioner.bulk.engines.base import RETRY_FOR_S
from captioner.cli import main, parser
from captioner.cli.options import INTERNAL_PARAMETERS
from captioner.client import DEFAULT_IN_FLIGHT

PARAMETERS = [parameter for name, parameter in wire.PARAMETERS.items() if name not in INTERNAL_PARAMETERS]
SAMPLE = {str: "text", int: "7", float: "0.5"}


def test_every_parameter_of_the_wire_is_an_option_of_its_type() -> None:
    words = ["caption", "a.jpg"]
    valued = [parameter for parameter in PARAMETERS if parameter.kind is not bool]
    for parameter in valued:
        words += ["--" + parameter.name.replace("_", "-"), SAMPLE[parameter.kind]]
    arguments = parser().parse_args(words)
    for parameter in valued:
        assert getattr(arguments, parameter.name) == parameter.kind(SAMPLE[parameter.kind])


def test_omitted_parameters_are_left_to_the_server() -> None:
    arguments = parser().parse_args(["caption", "a.jpg"])
    assert all(getattr(arguments, parameter.name) is None for parameter in PARAMETERS)
    assert arguments.prompt is None
    assert arguments.server == f"127.0.0.1:{wire.GRPC_PORT}"


def test_one_command_takes_several_paths() -> None:
    assert parser().parse_args(["caption", "a.jpg", "photos", "*.png"]).paths == ["a.jpg", "photos", "*.png"]


def test_captions_are_printed_and_existing_ones_skipped_by_default() -> None:
    arguments = parser().parse_args(["caption", "a.jpg"])
    assert (arguments.to, arguments.out, arguments.existing, arguments.engine) == ("stdout", None, "skip", "local")
    assert (arguments.in_flight, arguments.retry_for) == (DEFAULT_IN_FLIGHT, RETRY_FOR_S)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["caption"],
        ["sing"],
        ["caption", "a.jpg", "--seed", "one"],
        ["caption", "a.jpg", "--to", "paper"],
        ["caption", "a.jpg", "--existing", "keep"],
        ["caption", "a.jpg", "--in-flight", "0"],
        ["caption", "a.jpg", "--engine", "steam"],
        ["up", "--http-port", "x"],
    ],
)
def test_a_malformed_command_ends_with_the_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: captioner" in capsys.readouterr().err


def test_help_shows_every_range_of_the_wire(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["caption", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for parameter in PARAMETERS:
        assert (parameter.doc if parameter.kind is bool else parameter.range) in shown, parameter.name


def test_a_boolean_option_has_a_negated_form() -> None:
    assert parser().parse_args(["caption", "a.jpg", "--no-repetition-guard"]).repetition_guard is False
    assert parser().parse_args(["caption", "a.jpg", "--repetition-guard"]).repetition_guard is True


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"captioner {__version__}\n"


def test_the_ports_of_up_are_those_of_the_wire() -> None:
    arguments = parser().parse_args(["up"])
    ports = (arguments.http_port, arguments.grpc_port, arguments.metrics_port, arguments.page_port)
    assert ports == (wire.HTTP_PORT, wire.GRPC_PORT, wire.METRICS_PORT, wire.PAGE_PORT)
    assert (arguments.repository / "captioner" / "config.pbtxt").is_file()
