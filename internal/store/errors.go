package store

import (
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/hatchvm/hatch/internal/errs"
)

// PostgreSQL's error codes that are handled here.
const (
	pgUniqueViolation     = "23505"
	pgForeignKeyViolation = "23503"
	pgSerialization       = "40001"
	pgDeadlock            = "40P01"
	pgDiskFull            = "53100"
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
	var name strings.Builder
	name.WriteString(table)
	for column := range strings.SplitSeq(columns, ", ") {
		name.WriteString("_" + strings.TrimPrefix(column, table+"."))
	}
	return name.String()
}

// referenceFailed reports whether err is the violation of a foreign key.
func referenceFailed(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return pg.Code == pgForeignKeyViolation
	}
	var lite *sqlite.Error
	return errors.As(err, &lite) && lite.Code() == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY
}

// leaseConstraints are the constraints of leases, which are chosen as the smallest
// free number. A violation means that a concurrent transaction took the number.
var leaseConstraints = []string{
	"vms_host_id_guest_ip", "vms_host_id_guest_mac", "vms_host_id_tap_number", "vms_host_id_tap_name", "vms_host_id_ssh_port", "vms_host_id_uid",
}

// lostRace reports whether err comes from a conflict with another transaction, so
// that a retry may succeed.
func lostRace(err error) bool {
	if err == nil {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) && (pg.Code == pgSerialization || pg.Code == pgDeadlock) {
		return true
	}
	var lite *sqlite.Error
	// Not SQLITE_BUSY itself: another process has the lock, and was waited for.
	if errors.As(err, &lite) && lite.Code()&0xff == sqlite3.SQLITE_BUSY && lite.Code() != sqlite3.SQLITE_BUSY {
		return true
	}
	return slices.Contains(leaseConstraints, violated(err))
}

// isFull reports whether err says that the disk of the database is full.
func isFull(err error) bool {
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok && pg.Code == pgDiskFull {
		return true
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok && (lite.Code()&0xff == sqlite3.SQLITE_FULL || lite.Code() == sqlite3.SQLITE_IOERR_SHMSIZE) {
		return true
	}
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// explainOpen adds to an error of SQLite that no file can be made in the directory of
// the database, if that is so: SQLite itself does not say why it cannot make those that
// go with the database.
func explainOpen(err error, path string) error {
	lite, ok := errors.AsType[*sqlite.Error](err)
	if !ok || lite.Code()&0xff != sqlite3.SQLITE_CANTOPEN {
		return err
	}
	f, probeErr := os.CreateTemp(filepath.Dir(path), "probe-*")
	if probeErr != nil {
		return errors.Join(err, probeErr)
	}
	return errors.Join(err, f.Close(), os.Remove(f.Name()))
}

// full returns errs.Exhausted with code disk_full for an error that isFull, and any
// other as it is. If the disk is this host's, the error also says ENOSPC.
func full(err error) error {
	if !isFull(err) {
		return err
	}
	if _, remote := errors.AsType[*pgconn.PgError](err); !remote {
		err = errors.Join(err, syscall.ENOSPC)
	}
	return errs.New(errs.Exhausted, "disk_full", "cannot store this: the disk of the database is full").
		WithHint("delete snapshots, VMs or images, or give it more room").WithCause(err)
}

// storable reports whether the database can store all of the texts: PostgreSQL
// accepts neither NUL nor invalid UTF-8. A search for other texts can be skipped.
func storable(texts ...string) bool {
	for _, t := range texts {
		if strings.ContainsRune(t, 0) || !utf8.ValidString(t) {
			return false
		}
	}
	return true
}

// printable replaces the parts of a text that cannot be stored.
func printable(text string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "\uFFFD")
}
