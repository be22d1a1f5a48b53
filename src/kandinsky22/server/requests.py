"""Requests from the values of an HTTP request: a task's function is called with them once they have the right types."""

from collections.abc import Callable, Mapping
from typing import Any

from kandinsky22.request import Request
from kandinsky22.request.task_schema import Parameter, all_tasks, parameters, typed
from kandinsky22.server.errors import ApiError

LOCAL = ("model", "loras")  # what the server decides


def build(task: str, values: Mapping[str, Any], resolve: Callable[[Parameter, Any], Any]) -> Request:
    """The request of a task. resolve: turns the value of a parameter of the kinds "picture" and "parts" into what the
    task's function takes. Raises `ApiError` that names the parameter."""
    tasks = all_tasks()
    if task not in tasks:
        raise ApiError("invalid", f"there is no task {task!r}; there are {', '.join(tasks)}", "task")
    known = parameters(tasks[task])
    given = {}
    for name, value in values.items():
        if name not in known or name in LOCAL:
            raise ApiError("invalid", f"{task} has no option {name!r}; see /api/v1/tasks", name)
        if value is not None:
            given[name] = (
                resolve(known[name], value) if known[name].kind in ("picture", "parts") else _typed(known[name], value)
            )
    if missing := [name for name, parameter in known.items() if parameter.required and name not in given]:
        raise ApiError("invalid", f"{task} needs {missing[0]}", missing[0])
    try:
        return tasks[task](**given)
    except (ValueError, TypeError) as error:
        raise ApiError("invalid", str(error), next((name for name in given if name in str(error)), None)) from None


def _typed(parameter: Parameter, value: Any) -> Any:
    try:
        return typed(parameter, value)
    except ValueError as error:
        raise ApiError("invalid", str(error), parameter.name) from None
