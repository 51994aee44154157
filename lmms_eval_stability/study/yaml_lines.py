"""YAML that remembers its lines: the values, and on which line each of them stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .errors import StudyConfigError

#: Where a value stands: keys and positions from the top, such as ("tasks", 0, "samples").
Location = tuple[str | int, ...]


@dataclass(frozen=True)
class LinedYaml:
    """A YAML file as values, with the line (from 1) of every key and list item."""

    path: Path
    value: Any
    lines: Mapping[Location, int]

    def line(self, location: Location) -> int:
        """The line of a value, or of the innermost thing around it that the file has."""
        while location and location not in self.lines:
            location = location[:-1]
        return self.lines.get(location, 1)

    def at(self, location: Location) -> str:
        """`FILE:LINE` of a value."""
        return f"{self.path}:{self.line(location)}"


def read_yaml(path: Path) -> LinedYaml:
    """Read a YAML file.

    Raises:
        StudyConfigError: it cannot be read, is no YAML, or has a key twice (which YAML forbids and PyYAML lets pass).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise StudyConfigError(f"{path}: cannot be read: {error}") from error
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        lines: dict[Location, int] = {}
        if node is not None:
            _walk(path, loader, node, (), lines)
        value = loader.construct_document(node) if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise StudyConfigError(f"{where}: cannot be read as YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise StudyConfigError(f"{path}: cannot be read as YAML: {error}") from error
    finally:
        loader.dispose()
    return LinedYaml(path, value, lines)


def _walk(path: Path, loader: yaml.SafeLoader, node: yaml.Node, location: Location, lines: dict[Location, int]) -> None:
    if isinstance(node, yaml.MappingNode):
        _refuse_repeated_keys(path, node)
        loader.flatten_mapping(node)  # "<<" brings in the keys of an anchor
        for key, value in node.value:
            inner = (*location, str(getattr(key, "value", "")))
            lines[inner] = key.start_mark.line + 1
            _walk(path, loader, value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            inner = (*location, position)
            lines[inner] = value.start_mark.line + 1
            _walk(path, loader, value, inner, lines)


def _refuse_repeated_keys(path: Path, node: yaml.MappingNode) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if isinstance(key, yaml.ScalarNode) and key.value in first and key.value != "<<":
            raise StudyConfigError(f"{path}:{line}: the key '{key.value}' stands on line {first[key.value]} already")
        first[str(key.value)] = line
