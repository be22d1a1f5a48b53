"""The server's log: a JSON object a line, with the id of the request that it is about."""

import json
import logging
import time


class JsonFormatter(logging.Formatter):
    """Time, level and message, the `values` that a record has as an extra, and the trace of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        values = {"time": f"{moment}.{int(record.msecs):03}Z", "level": record.levelname.lower()}
        values |= {"message": record.getMessage(), **getattr(record, "values", {})}
        if record.exc_info:
            values["trace"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def log_to_stderr() -> None:
    """Write the server's log, and warnings of everything else in this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.getLogger("kandinsky22").setLevel(logging.INFO)
