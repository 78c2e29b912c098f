// Package migrations holds the database schema as numbered steps, one text
// for SQLite and PostgreSQL alike.
//
// A step that has been released is never edited; a change is a new file. Types
// are those that both databases read the same way: TEXT, BIGINT, BOOLEAN and
// BYTEA (SQLite gives the latter no affinity of its own and keeps blobs as
// they are). Start at [FS]; internal/store applies the steps.
package migrations

import "embed"

// FS holds the steps, named NNNNN_what.sql.
//
//go:embed *.sql
var FS embed.FS
