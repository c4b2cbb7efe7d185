package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"strings"

	"github.com/mvalve/mvalve/internal/sqlstore"
	"github.com/mvalve/mvalve/queue"
)

// The message tables are clustered on their primary key. Pages of 8 KiB hold
// rows of up to 2 KiB without overflow pages.
const messageColumns = `
  id          BLOB    NOT NULL,
  destination TEXT    NOT NULL,
  priority    INTEGER NOT NULL,
  lane        INTEGER NOT NULL,
  ready_at    INTEGER NOT NULL,
  expires_at  INTEGER NOT NULL,
  enqueued_at INTEGER NOT NULL,
  hold        INTEGER NOT NULL,
  size        INTEGER NOT NULL,
  attempts    INTEGER NOT NULL,
  lease_until INTEGER NOT NULL,
  lease_token BLOB    NOT NULL,
  checksum    INTEGER NOT NULL,
  headers     BLOB    NOT NULL,
  body        BLOB    NOT NULL,`

// schema makes the tables; every statement may be run again. The lease columns
// are in no index, so that a lease rewrites one row and nothing else.
const schema = `
CREATE TABLE IF NOT EXISTS q_emerg (` + messageColumns + `
  PRIMARY KEY (id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS q_emerg_by_destination ON q_emerg (destination, priority, id);
CREATE TABLE IF NOT EXISTS q_timed (` + messageColumns + `
  PRIMARY KEY (ready_at, id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS q_timed_by_destination ON q_timed (destination, priority, ready_at, id);
CREATE TABLE IF NOT EXISTS q_incoming (` + messageColumns + `
  PRIMARY KEY (id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS q_incoming_by_destination ON q_incoming (destination, priority, id);
CREATE TABLE IF NOT EXISTS q_dead (` + messageColumns + `
  dead_at     INTEGER NOT NULL,
  reason      TEXT    NOT NULL,
  PRIMARY KEY (id)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS q_dead_by_destination ON q_dead (destination, id);
CREATE TABLE IF NOT EXISTS q_statslog (
  action      TEXT    NOT NULL,
  destination TEXT    NOT NULL,
  count       INTEGER NOT NULL,
  logged_on   INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS q_statslog_by_time ON q_statslog (logged_on);
CREATE TABLE IF NOT EXISTS q_limit (
  pattern        TEXT NOT NULL PRIMARY KEY,
  limit_max      INTEGER,
  limit_interval INTEGER,
  limit_mode     INTEGER,
  limit_guard    INTEGER,
  weight         INTEGER,
  max_in_flight  INTEGER,
  paused         INTEGER,
  version        INTEGER NOT NULL,
  was_max        INTEGER,
  was_interval   INTEGER,
  was_mode       INTEGER,
  was_guard      INTEGER,
  changed_at     INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS q_limit_by_version ON q_limit (version);
CREATE TABLE IF NOT EXISTS q_hold (
  destination       TEXT    NOT NULL PRIMARY KEY,
  until             INTEGER NOT NULL,
  rest_until        INTEGER NOT NULL,
  superseded_before INTEGER NOT NULL,
  reason            TEXT    NOT NULL,
  changed_at        INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS q_hold_by_change ON q_hold (changed_at);
CREATE TABLE IF NOT EXISTS q_state (
  key        TEXT    NOT NULL PRIMARY KEY,
  value      BLOB    NOT NULL,
  version    INTEGER NOT NULL,
  expires_at INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS q_batch (
  token BLOB    NOT NULL PRIMARY KEY,
  at    INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS q_reader (
  id      BLOB    NOT NULL PRIMARY KEY,
  host    TEXT    NOT NULL,
  pid     INTEGER NOT NULL,
  address TEXT    NOT NULL,
  started INTEGER NOT NULL,
  seen_at INTEGER NOT NULL,
  held    INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS q_meta (
  name  TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO q_meta (name, value) VALUES ('schema', '` + sqlstore.SchemaVersion + `') ON CONFLICT DO NOTHING;
`

// ensureSchema makes the tables if there are none, inside one transaction, and
// reports whether it did. Tables of another version give queue.ErrSchema.
func ensureSchema(c *conn, path string) (created bool, err error) {
	version, err := schemaVersion(c)
	if err != nil {
		return false, err
	}
	switch version {
	case sqlstore.SchemaVersion:
		// SQLite opens a read-only file, and even begins a transaction that is
		// to write, without a word; only a statement that writes tells.
		return false, c.once("UPDATE q_meta SET value = value WHERE name = ''")
	case "":
	default:
		return false, fmt.Errorf("%w: %s has tables of version %q, this program needs version %q; "+
			"use the mvalve that made the file, or name another file", queue.ErrSchema, path, version, sqlstore.SchemaVersion)
	}
	if err := c.once("BEGIN IMMEDIATE;" + schema + "COMMIT"); err != nil {
		_ = c.once("ROLLBACK")
		return false, err
	}
	return true, nil
}

// schemaVersion returns what q_meta says, "" if there is no such table.
func schemaVersion(c *conn) (version string, err error) {
	tables, err := c.queryInt("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'q_meta'")
	if err != nil || tables == 0 {
		return "", err
	}
	version = "none"
	err = c.query(context.Background(), "SELECT value FROM q_meta WHERE name = 'schema'", nil, func(row []driver.Value) error {
		version = textOf(row[0])
		return nil
	})
	return version, err
}

// marks returns n times item, separated by commas.
func marks(item string, n int) string {
	return strings.TrimSuffix(strings.Repeat(item+",", n), ",")
}
