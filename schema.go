// Package mvalve is the root of the module: it holds what must lie beside
// schema.sql to embed it. The engine is package valve, the commands are under
// cmd, and a program that only wants a pipe starts with package valve; Example shows the whole of it.
package mvalve

import _ "embed"

// Schema is the text of schema.sql: the statements, each ended by a semicolon at
// the end of a line, that make the tables on MariaDB 10.6 or later and MySQL 8.
// Lines that start with two hyphens are comments.
//
//go:embed schema.sql
var Schema string
