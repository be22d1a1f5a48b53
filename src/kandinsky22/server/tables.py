"""The tables of a server's database."""

from sqlalchemy import Column, Float, ForeignKey, Integer, MetaData, String, Table, UniqueConstraint

VERSION = 1  # of the tables
TABLES = MetaData()
KEYS = Table(
    "keys",
    TABLES,
    Column("name", String, primary_key=True),
    Column("hash", String, nullable=False, unique=True),
    Column("scopes", String, nullable=False),
    Column("max_jobs", Integer, nullable=False),
    Column("created", Float, nullable=False),
)
JOBS = Table(
    "jobs",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=True),  # the order in which jobs came
    Column("id", String, nullable=False, unique=True),
    Column("owner", String, nullable=False, index=True),
    Column("state", String, nullable=False, index=True),
    Column("request", String, nullable=False),
    Column("source", String, nullable=False),
    Column("cost", Float, nullable=False),
    Column("hidden", Integer, nullable=False),  # not in the gallery
    Column("idempotency_key", String),
    Column("asked", String, nullable=False),  # the SHA-256 of the request before it was resolved
    Column("reason", String),  # why it failed
    Column("error", String),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("ended", Float),
    UniqueConstraint("owner", "idempotency_key"),
)
PICTURE_ROWS = Table(
    "pictures",
    TABLES,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String, nullable=False, unique=True),
    Column("job", String, ForeignKey("jobs.id"), nullable=False, index=True),
    Column("owner", String, nullable=False, index=True),
    Column("position", Integer, nullable=False),
    Column("file", String, nullable=False),
    Column("sha256", String, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("prompt", String, nullable=False),
    Column("starred", Integer, nullable=False),
    Column("hidden", Integer, nullable=False),
    Column("created", Float, nullable=False),
)
FILES = Table(
    "files",
    TABLES,
    Column("id", String, primary_key=True),  # the SHA-256 of a picture's pixels, or of an embedding's file
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("owner", String, nullable=False, index=True),
    Column("bytes", Integer, nullable=False),
    Column("used", Float, nullable=False),
)
DOCUMENTS = Table(
    "documents",
    TABLES,
    Column("owner", String, primary_key=True),
    Column("kind", String, primary_key=True),
    Column("name", String, primary_key=True),
    Column("value", String, nullable=False),  # JSON
    Column("changed", Float, nullable=False),
)
FOLDERS = Table(
    "folders",
    TABLES,
    Column("picture", String, primary_key=True),  # its id; a picture without a row is in no folder
    Column("folder", String, nullable=False, index=True),
)
