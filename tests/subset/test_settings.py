"""The arguments of build_subset: listed once, for the function, for the command, and for people."""

from __future__ import annotations

import dataclasses
import inspect
import re

import pytest

from fastload import build_subset
from fastload.command.cli import build_subset as command
from fastload.errors import UsageError
from fastload.subset.settings import Settings

FIELDS = {field.name for field in dataclasses.fields(Settings)}


def test_the_function_takes_and_describes_every_setting():
    parameters = inspect.signature(build_subset).parameters
    assert list(parameters) == [field.name for field in dataclasses.fields(Settings)]
    assert all(parameters[field.name].default == field.default for field in dataclasses.fields(Settings)[2:])
    assert set(re.findall(r"^        (\w+): ", build_subset.__doc__, re.M)) == FIELDS


def test_the_command_has_every_setting_but_those_of_a_program():
    options = inspect.signature(command).parameters
    assert set(options) - {"json", "quiet"} == FIELDS - {"alone", "listener"}
    for field in dataclasses.fields(Settings)[2:]:
        assert field.name not in options or options[field.name].default == field.default, field.name


def test_an_argument_that_is_none_is_refused_by_name_before_anything_is_opened():
    with pytest.raises(TypeError, match=r"build_subset\(\) got an unexpected keyword argument 'sise'"):
        build_subset("full.h5", "s.h5", sise=3)
    with pytest.raises(UsageError, match="give one of the two"):
        Settings("full.h5", "s.h5", size=3, per_dimension=2)
