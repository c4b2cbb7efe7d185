-- The tables of mvalve for MariaDB 10.6 or later and MySQL 8, the only copy:
-- package mvalve embeds it, `mvalve init` applies it, docker-compose.yml mounts
-- it. Every statement may be run again; none changes what is there.
--
-- Times are microseconds since 1970 UTC, durations microseconds. Text compares
-- byte by byte (VARBINARY). priority is 9 minus the level, so that ascending
-- order has the first to go first; lane is 1 emergency, 2 timed, 3 incoming, the
-- lane of origin. lease_until 0 means free. The lease columns are in no index:
-- they change while a message waits, and an index on them costs four fifths of
-- the throughput.

CREATE TABLE IF NOT EXISTS q_emerg (
  id          BINARY(16)       NOT NULL,
  destination VARBINARY(255)   NOT NULL,
  priority    TINYINT UNSIGNED NOT NULL,
  lane        TINYINT UNSIGNED NOT NULL,
  ready_at    BIGINT           NOT NULL,
  expires_at  BIGINT           NOT NULL,
  enqueued_at BIGINT           NOT NULL,
  hold        BIGINT           NOT NULL,
  size        INT UNSIGNED     NOT NULL,
  attempts    INT              NOT NULL,
  lease_until BIGINT           NOT NULL,
  lease_token BINARY(16)       NOT NULL,
  checksum    INT UNSIGNED     NOT NULL,
  headers     MEDIUMBLOB       NOT NULL,
  body        LONGBLOB         NOT NULL,
  PRIMARY KEY (id),
  KEY by_destination (destination, priority, id)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;

CREATE TABLE IF NOT EXISTS q_timed (
  id          BINARY(16)       NOT NULL,
  destination VARBINARY(255)   NOT NULL,
  priority    TINYINT UNSIGNED NOT NULL,
  lane        TINYINT UNSIGNED NOT NULL,
  ready_at    BIGINT           NOT NULL,
  expires_at  BIGINT           NOT NULL,
  enqueued_at BIGINT           NOT NULL,
  hold        BIGINT           NOT NULL,
  size        INT UNSIGNED     NOT NULL,
  attempts    INT              NOT NULL,
  lease_until BIGINT           NOT NULL,
  lease_token BINARY(16)       NOT NULL,
  checksum    INT UNSIGNED     NOT NULL,
  headers     MEDIUMBLOB       NOT NULL,
  body        LONGBLOB         NOT NULL,
  PRIMARY KEY (ready_at, id),
  KEY by_destination (destination, priority, ready_at, id)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;

CREATE TABLE IF NOT EXISTS q_incoming (
  id          BINARY(16)       NOT NULL,
  destination VARBINARY(255)   NOT NULL,
  priority    TINYINT UNSIGNED NOT NULL,
  lane        TINYINT UNSIGNED NOT NULL,
  ready_at    BIGINT           NOT NULL,
  expires_at  BIGINT           NOT NULL,
  enqueued_at BIGINT           NOT NULL,
  hold        BIGINT           NOT NULL,
  size        INT UNSIGNED     NOT NULL,
  attempts    INT              NOT NULL,
  lease_until BIGINT           NOT NULL,
  lease_token BINARY(16)       NOT NULL,
  checksum    INT UNSIGNED     NOT NULL,
  headers     MEDIUMBLOB       NOT NULL,
  body        LONGBLOB         NOT NULL,
  PRIMARY KEY (id),
  KEY by_destination (destination, priority, id)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;

CREATE TABLE IF NOT EXISTS q_dead (
  id          BINARY(16)       NOT NULL,
  destination VARBINARY(255)   NOT NULL,
  priority    TINYINT UNSIGNED NOT NULL,
  lane        TINYINT UNSIGNED NOT NULL,
  ready_at    BIGINT           NOT NULL,
  expires_at  BIGINT           NOT NULL,
  enqueued_at BIGINT           NOT NULL,
  hold        BIGINT           NOT NULL,
  size        INT UNSIGNED     NOT NULL,
  attempts    INT              NOT NULL,
  lease_until BIGINT           NOT NULL,
  lease_token BINARY(16)       NOT NULL,
  checksum    INT UNSIGNED     NOT NULL,
  headers     MEDIUMBLOB       NOT NULL,
  body        LONGBLOB         NOT NULL,
  dead_at     BIGINT           NOT NULL,
  reason      VARBINARY(1000)  NOT NULL,
  PRIMARY KEY (id),
  KEY by_destination (destination, id)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;

-- How often what happened to a destination within the second logged_on.
CREATE TABLE IF NOT EXISTS q_statslog (
  id          BIGINT UNSIGNED NOT NULL AUTO_INCREMENT,
  action      VARBINARY(32)   NOT NULL,
  destination VARBINARY(255)  NOT NULL,
  count       BIGINT          NOT NULL,
  logged_on   BIGINT          NOT NULL,
  PRIMARY KEY (id),
  KEY by_time (logged_on)
) ENGINE=InnoDB;

-- Limits and the other rules of destinations; NULL inherits from the next less
-- specific pattern. was_*: the limit that the present one replaced.
CREATE TABLE IF NOT EXISTS q_limit (
  pattern        VARBINARY(1024) NOT NULL,
  limit_max      BIGINT          NULL,
  limit_interval BIGINT          NULL,
  limit_mode     TINYINT         NULL,
  limit_guard    BIGINT          NULL,
  weight         INT             NULL,
  max_in_flight  INT             NULL,
  paused         TINYINT         NULL,
  version        BIGINT          NOT NULL,
  was_max        BIGINT          NULL,
  was_interval   BIGINT          NULL,
  was_mode       TINYINT         NULL,
  was_guard      BIGINT          NULL,
  changed_at     BIGINT          NOT NULL,
  PRIMARY KEY (pattern),
  KEY by_version (version)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC;

CREATE TABLE IF NOT EXISTS q_hold (
  destination       VARBINARY(255)  NOT NULL,
  until             BIGINT          NOT NULL,
  rest_until        BIGINT          NOT NULL,
  superseded_before BIGINT          NOT NULL,
  reason            VARBINARY(1000) NOT NULL,
  changed_at        BIGINT          NOT NULL,
  PRIMARY KEY (destination),
  KEY by_change (changed_at)
) ENGINE=InnoDB;

-- Limiter state kept in the database. version is drawn at random by each write,
-- so that a writer recognises its own.
CREATE TABLE IF NOT EXISTS q_state (
  `key`      VARBINARY(200) NOT NULL,
  value      MEDIUMBLOB     NOT NULL,
  version    BIGINT         NOT NULL,
  was        BIGINT         NOT NULL,
  expires_at BIGINT         NOT NULL,
  PRIMARY KEY (`key`)
) ENGINE=InnoDB;

-- Tokens of the transactions of the last hour: one that meets its own was done.
CREATE TABLE IF NOT EXISTS q_batch (
  token BINARY(16) NOT NULL,
  at    BIGINT     NOT NULL,
  PRIMARY KEY (token),
  KEY by_time (at)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS q_reader (
  id      BINARY(16)     NOT NULL,
  host    VARBINARY(255) NOT NULL,
  pid     BIGINT         NOT NULL,
  address VARBINARY(255) NOT NULL,
  started BIGINT         NOT NULL,
  seen_at BIGINT         NOT NULL,
  held    BIGINT         NOT NULL,
  PRIMARY KEY (id)
) ENGINE=InnoDB;

CREATE TABLE IF NOT EXISTS q_meta (
  name  VARBINARY(100)  NOT NULL,
  value VARBINARY(4000) NOT NULL,
  PRIMARY KEY (name)
) ENGINE=InnoDB;

INSERT INTO q_meta (name, value) VALUES ('schema', '2') ON DUPLICATE KEY UPDATE name = name;
