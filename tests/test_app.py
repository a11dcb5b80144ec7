"""The root of the command line: help, version, usage errors, the error boundary."""

from __future__ import annotations

import re

from llmos_cli import __version__


def test_version(llmos):
    ran = llmos("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"llmos {__version__}\n", "")


def test_help_names_every_command_with_its_first_line(llmos):
    from llmos_cli import catalog

    out = " ".join(llmos("--help").out.split())
    for name, entry in catalog.commands().items():
        assert f"{name} {entry.help}" in out


def test_no_arguments_is_help(llmos):
    assert llmos().out == llmos("--help").out


def test_an_unknown_command_is_a_usage_error_that_knows_what_was_meant(llmos):
    ran = llmos("innit")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err == "error: there is no command called 'innit'\nhint: did you mean 'init'?\n"


def test_an_unknown_option_is_a_usage_error(llmos):
    ran = llmos("init", "--tmplate", "x")
    assert ran.code == 2
    assert re.match(r"error: no such option: --tmplate.*\nhint: `llmos init --help` lists what it takes\n$", ran.err)


def test_a_failure_as_json_is_on_stdout_too(llmos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran = llmos("config", "check", "--json")
    assert ran.code == 4
    assert ran.json["schema"] == "llmos.error/1"
    assert ran.json["error"]["code"] == 4
