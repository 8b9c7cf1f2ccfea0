"""The tables of the job store."""

SCHEMA = (
    """CREATE TABLE IF NOT EXISTS jobs (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, kind TEXT NOT NULL,
        status TEXT NOT NULL, detail TEXT NOT NULL DEFAULT '', request TEXT NOT NULL,
        folder TEXT NOT NULL DEFAULT '', parent TEXT NOT NULL DEFAULT '',
        batch TEXT NOT NULL DEFAULT '', priority INTEGER NOT NULL DEFAULT 0,
        attempts INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
        mark INTEGER NOT NULL DEFAULT 0, want TEXT NOT NULL DEFAULT '', choice INTEGER,
        worker TEXT NOT NULL DEFAULT '', revision INTEGER NOT NULL DEFAULT 0,
        change INTEGER NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
        error TEXT, result TEXT)""",
    "CREATE INDEX IF NOT EXISTS by_status ON jobs (status, priority DESC, seq)",
    "CREATE INDEX IF NOT EXISTS by_change ON jobs (change)",
    "CREATE INDEX IF NOT EXISTS by_batch ON jobs (batch)",
    "CREATE INDEX IF NOT EXISTS by_created ON jobs (created, seq)",
    """CREATE TABLE IF NOT EXISTS keys (
        name TEXT PRIMARY KEY, digest TEXT NOT NULL, jobs TEXT NOT NULL, created REAL NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS deleted (id TEXT PRIMARY KEY)",
    """CREATE TABLE IF NOT EXISTS durations (
        grp TEXT NOT NULL, part TEXT NOT NULL, seconds REAL NOT NULL, created REAL NOT NULL)""",
    "CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL)",
    "INSERT OR IGNORE INTO counters VALUES ('change', 0), ('paused', 0)",
)
