"""The text of a workflow file, with settings changed so that comments and layout stay."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from .spec import Workflow, parse_workflow

Path = tuple[str, ...]
"""Keys from the top of the file to a value, as ("stages", "multicut", "bias")."""


def edited(text: str, changes: Mapping[Path, Any]) -> str:
    """Return a workflow's YAML with values changed or added, in mappings that are there, if only as empty stages.

    A commented line that shows the default of what is added, as `neurokube init` writes them, makes way for it.  Where
    the file uses aliases or merges, so that a line stands for several places, it is written anew, without comments.
    """
    wanted = _changed(yaml.safe_load(text), changes)
    result = text
    try:
        for path, value in changes.items():
            result = _edit(result, path, value)
        if yaml.safe_load(result) == wanted:
            return result
    except (yaml.YAMLError, LookupError, StopIteration):
        pass
    return yaml.safe_dump(wanted, sort_keys=False, allow_unicode=True)


def anywhere(text: str, workflow: Workflow) -> dict[Path, Any]:
    """Return the changes by which a file, whose `workflow` was loaded from its folder, means the same in any other."""
    written = parse_workflow(yaml.safe_load(text))
    changes: dict[Path, Any] = {}
    for name, volume in workflow.inputs.items():
        if volume.path != written.inputs[name].path:
            changes["inputs", name, "path"] = volume.path
        if volume.affine != written.inputs[name].affine:
            told = volume.model_dump(mode="json", include={"affine"})
            changes["inputs", name, "affine"] = told["affine"]
    for name, stage in workflow.stages.items():
        for field in type(stage).model_fields:
            if (value := getattr(stage, field)) != getattr(written.stages[name], field):
                told = stage.model_dump(mode="json", include={field}, exclude_unset=True)
                changes["stages", name, field] = told.get(field, value)
    if workflow.workspace != written.workspace:
        changes["workspace",] = workflow.workspace
    return changes


def _changed(document: dict[str, Any], changes: Mapping[Path, Any]) -> dict[str, Any]:
    for path, value in changes.items():
        place = document
        for key in path[:-1]:
            if place.get(key) is None:
                place[key] = {}
            # a copy, as an alias makes two places one
            place[key] = dict(place[key])
            place = place[key]
        place[path[-1]] = value
    return document


def _edit(text: str, path: Path, value: Any) -> str:
    """Return the text with one value changed.

    Raises:
        LookupError: where the place is not one of the usual kinds.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    mapping, key = _mapping(root, path[:-1])
    word = json.dumps(value, ensure_ascii=False)
    if mapping is None:
        return _into_empty(text, key, path[-1], word)
    found = [(k, v) for k, v in mapping.value if k.value == path[-1]]
    if found:
        old, start = found[0][1], found[0][1].start_mark.index
        if start == old.end_mark.index:
            word = f" {word}"
        rest = text[old.end_mark.index :]
        if remark := re.match(" +(?=#)", rest):
            # what is said of the value stays in its column, if there is room
            room = len(remark[0]) - len(word) + old.end_mark.index - start
            rest = " " * max(1, room) + rest[len(remark[0]) :]
        return text[:start] + word + rest
    if mapping.flow_style:
        end = mapping.end_mark.index - 1
        inside = text[mapping.start_mark.index + 1 : end].rstrip()
        comma = ", " if inside and not inside.endswith(",") else " " if inside else ""
        return text[: mapping.start_mark.index + 1] + inside + f"{comma}{path[-1]}: {word}" + text[end:]
    column = mapping.value[0][0].start_mark.column
    last = mapping.value[-1][1]
    first = mapping.start_mark.line if key is None else key.start_mark.line + 1
    return _with_line(text, first, _end(text, last, column), column, path[-1], word)


def _mapping(root: Any, path: Sequence[str]) -> tuple[Any, Any]:
    """Return the mapping at a place, None where it is empty, and the key that it stands under."""
    node, key = root, None
    for name in path:
        key, node = next((k, v) for k, v in node.value if k.value == name)
    if isinstance(node, yaml.MappingNode):
        return node if node.value or node.flow_style else None, key
    if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null" and not node.value:
        return None, key
    raise LookupError(path)


def _into_empty(text: str, key: Any, name: str, word: str) -> str:
    """Return the text with the first line of a mapping under a key that has none yet."""
    lines, line, column = text.splitlines(keepends=True), key.start_mark.line, key.start_mark.column
    after = line + 1
    while after < len(lines) and _inside(lines[after], column):
        after += 1
    shown = [m.start(1) for each in lines[line + 1 : after] if (m := re.match(r"\s*(#) \w+:", each))]
    return _with_line(text, line + 1, after, shown[0] if shown else column + 2, name, word)


def _inside(line: str, column: int) -> bool:
    """Whether a line is a comment of what begins at a column."""
    return bool(line.strip()) and line.lstrip().startswith("#") and len(line) - len(line.lstrip()) > column


def _end(text: str, last: yaml.Node, column: int) -> int:
    """Return the line after a mapping's last value and the comments that belong to it."""
    # a block ends where the next begins, which may be far; what it holds last ends where it does
    while isinstance(last, yaml.CollectionNode) and not last.flow_style and last.value:
        entry = last.value[-1]
        last = entry[1] if isinstance(entry, tuple) else entry
    lines, after = text.splitlines(), int(last.end_mark.line) + 1
    if isinstance(last, yaml.ScalarNode) and last.style in ("|", ">"):
        after -= 1
        while not lines[after - 1].strip():
            after -= 1
    while after < len(lines) and _inside(lines[after], column - 1):
        after += 1
    return after


def _with_line(text: str, first: int, after: int, column: int, name: str, word: str) -> str:
    """Return the text with a line of a mapping, in place of the comment that shows its default or before `after`."""
    lines = text.splitlines(keepends=True)
    line = f"{' ' * column}{name}: {word}"
    for k in range(first, min(after, len(lines))):
        if match := re.match(rf"\s*# {re.escape(name)}: [^#\n]*(#.*)?$", lines[k]):
            remark = match.group(1)
            lines[k] = (f"{line.ljust(match.start(1) - 1)} {remark}" if remark else line) + "\n"
            return "".join(lines)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    lines.insert(after, line + "\n")
    return "".join(lines)
