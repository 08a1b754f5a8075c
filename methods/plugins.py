"""Methods and tasks of other packages, found by the entry points that those declare.

In the package's pyproject.toml, the name being the method's or the task's own:

    [project.entry-points."skimbench.methods"]
    my_method = "my_package.my_method:MyMethod"    # a TokenReducer
    [project.entry-points."skimbench.tasks"]
    my_task = "my_package.tasks:MY_TASK"           # a benchmarks.tasks.Task
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

METHODS, TASKS = "skimbench.methods", "skimbench.tasks"


@functools.cache
def found(group: str, check: Callable[[str, Any], None]) -> Mapping[str, Any]:
    """What the installed packages offer in `group`, by name; loaded once in a process.

    A plug-in that cannot be used is left out with a warning that names it: it must not take the library down with it.

    Args:
        check: told the name and the object; raises ValueError or TypeError where it is not what the group is for.
    """
    good: dict[str, Any] = {}
    for entry in entry_points(group=group):
        try:
            value = entry.load()
            check(entry.name, value)
        except Exception as error:  # whatever a foreign package does
            package = entry.dist.name if entry.dist is not None else "an unknown package"
            reason = f"{type(error).__name__}: {error}"
            warnings.warn(f"plug-in '{entry.name}' of {package} is left out ({reason})", stacklevel=2)
        else:
            good[entry.name] = value
    return good
