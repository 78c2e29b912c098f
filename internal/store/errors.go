package store

import (
	"database/sql"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// PostgreSQL's codes for what is told apart here.
const (
	pgUniqueViolation     = "23505"
	pgForeignKeyViolation = "23503"
	pgSerialization       = "40001"
	pgDeadlock            = "40P01"
)

func isNoRows(err error) bool { return errors.Is(err, sql.ErrNoRows) }

// violated returns the name of the unique constraint that err reports, such
// as vms_owner_id_name, or "". Both databases give the same name: see the
// conventions in the first migration.
func violated(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == pgUniqueViolation {
		return pg.ConstraintName
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) && (lite.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE || lite.Code() == sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY) {
		return sqliteConstraint(lite.Error())
	}
	return ""
}

// sqliteConstraint turns SQLite's list of columns into a constraint's name:
// "… UNIQUE constraint failed: vms.owner_id, vms.name (2067)" is
// vms_owner_id_name.
func sqliteConstraint(message string) string {
	const mark = "constraint failed: "
	at := strings.LastIndex(message, mark)
	if at < 0 {
		return ""
	}
	columns, _, _ := strings.Cut(message[at+len(mark):], " (")
	table, _, _ := strings.Cut(columns, ".")
	name := table
	for column := range strings.SplitSeq(columns, ", ") {
		name += "_" + strings.TrimPrefix(column, table+".")
	}
	return name
}

// referenceFailed reports whether err says that a row is referred to, or
// refers to one that is not there.
func referenceFailed(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code == pgForeignKeyViolation
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) && lite.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}

// leaseConstraints guard what is given out by the smallest free number. A
// violation means that somebody else was quicker.
var leaseConstraints = []string{
	"vms_guest_ip", "vms_guest_mac", "vms_tap_number", "vms_tap_name", "vms_ssh_port", "vms_uid",
}

// lostRace reports whether the transaction that ended with err may well
// succeed when it is run again.
func lostRace(err error) bool {
	if err == nil {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == pgSerialization || pg.Code == pgDeadlock) {
		return true
	}
	var lite *sqlite.Error
	if errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_BUSY {
		return true
	}
	return slices.Contains(leaseConstraints, violated(err))
}

// storable reports whether every text can be in the database at all:
// PostgreSQL refuses NUL and what is not UTF-8. A search for such a text finds
// nothing, and need not be asked.
func storable(texts ...string) bool {
	for _, t := range texts {
		if strings.ContainsRune(t, 0) || !utf8.ValidString(t) {
			return false
		}
	}
	return true
}

// printable makes a text storable.
func printable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
