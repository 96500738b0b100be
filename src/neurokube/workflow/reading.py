"""The workflow file: YAML; see `spec` for what it says.  Pods, which start often, read no YAML."""

from pathlib import Path
from typing import Any

import yaml

from ..errors import ConfigurationError
from .spec import Workflow, parse_workflow


def load_workflow(path: str) -> Workflow:
    """Read a workflow file; relative paths in it count from its folder.

    Raises:
        ConfigurationError: for anything wrong with it, in one line.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except IsADirectoryError:
        raise ConfigurationError(f"{path}: a folder; give the YAML file that 'neurokube init VOLUME' writes") from None
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or error}; write one with 'neurokube init VOLUME'") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: not a text file; give the workflow's YAML file") from None
    try:
        document = yaml.load(text, Loader=_UniqueKeys)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigurationError(f"{path}: not valid YAML{_yaml_problem(error)}; correct it") from None
    return parse_workflow(document, where=path, folder=file.parent)


def _yaml_problem(error: Exception) -> str:
    """Return where the file stops being YAML, and why, as ` in line 3: why`."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f" in line {error.problem_mark.line + 1}: {error.problem}"
    return f": {str(error).splitlines()[0]}"


class _UniqueKeys(yaml.SafeLoader):
    """A loader to which a key that is given twice is a mistake, not an overwrite."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        before: list[Any] = []
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if key in before:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' is given twice", key_node.start_mark)
            before.append(key)
        return super().construct_mapping(node, deep)
