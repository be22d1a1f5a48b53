"""The log has a JSON object a line."""

import json
import logging
import sys

from kandinsky22.server.logs import JsonFormatter


def test_a_record_has_its_message_and_its_values() -> None:
    record = logging.LogRecord("kandinsky22.server", logging.INFO, "", 0, "request", (), None)
    record.values = {"id": "a1", "status": 200}
    line = json.loads(JsonFormatter().format(record))
    assert line.pop("time").endswith("Z")
    assert line == {"level": "info", "message": "request", "id": "a1", "status": 200}


def test_an_exception_stays_on_one_line() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "%s", ("failed",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text and "ValueError: two" in json.loads(text)["trace"]
