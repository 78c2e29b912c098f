package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/hatchvm/hatch/internal/errs"
)

// unavailableRetryAfter is how long to wait for a database that does not answer.
const unavailableRetryAfter = 5 * time.Second

// public gives the error of a database that does not answer a text for clients. Other
// errors are returned as they are.
func public(err error) error {
	if _, known := errs.As(err); known || !isUnavailable(err) {
		return err
	}
	return errs.New(errs.Unavailable, errs.DatabaseUnavailable, "cannot do this now: the database does not answer").
		WithHint("try again in a moment; GET /healthz says when it answers").WithRetryAfter(unavailableRetryAfter).WithCause(err)
}

// isUnavailable reports whether err says that the database cannot be reached, has ended
// the connection, or is locked by another process: with the same request later, all of
// that may be different. The end of the caller's context is not such an error.
func isUnavailable(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	if pg, ok := errors.AsType[*pgconn.PgError](err); ok {
		return isServerAway(pg.Code)
	}
	if lite, ok := errors.AsType[*sqlite.Error](err); ok {
		return slices.Contains([]int{sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}, lite.Code()&0xff)
	}
	for _, lost := range []error{driver.ErrBadConn, sql.ErrConnDone, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed} {
		if errors.Is(err, lost) {
			return true
		}
	}
	_, refused := errors.AsType[*pgconn.ConnectError](err)
	_, broken := errors.AsType[net.Error](err)
	return refused || broken || pgconn.SafeToRetry(err)
}

// isServerAway is about PostgreSQL's error codes: a connection that failed, a server
// that shuts down, has crashed, starts, or has no free connection.
func isServerAway(code string) bool {
	return strings.HasPrefix(code, "08") || slices.Contains([]string{"57P01", "57P02", "57P03", "53300"}, code)
}
