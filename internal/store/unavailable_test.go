package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

// Another process has locked the file, as a backup may.
func TestALockedFileIsUnavailable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hatch.db")
	s, err := Open(t.Context(), path, testHost)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	other, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Close() })
	conn, err := other.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if _, err := conn.ExecContext(t.Context(), "BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	_, err = s.UpdateVM(t.Context(), "vm_a", func(*vm.VM) {})
	hasCode(t, err, errs.Unavailable, errs.DatabaseUnavailable)
	if _, err := conn.ExecContext(t.Context(), "ROLLBACK"); err != nil {
		t.Fatal(err)
	}
	_, err = s.UpdateVM(t.Context(), "vm_a", func(*vm.VM) {})
	hasCode(t, err, errs.NotFound, "vm_not_found")
}

func TestWhatIsUnavailable(t *testing.T) {
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&pgconn.PgError{Code: "57P01"}, true},
		{&pgconn.PgError{Code: "08006"}, true},
		{&pgconn.PgError{Code: "53300"}, true},
		{&pgconn.PgError{Code: "42601"}, false}, // a mistake in a statement
		{&pgconn.PgError{Code: "53100"}, false}, // a full disk
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, true},
		{io.ErrUnexpectedEOF, true},
		{context.Canceled, false},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), false},
		{sql.ErrNoRows, false},
		{errors.New("any other"), false},
	} {
		if got := errs.HasCode(public(fmt.Errorf("cannot: %w", c.err)), errs.DatabaseUnavailable); got != c.want {
			t.Errorf("%v: %v", c.err, got)
		}
	}
	known := errs.New(errs.Conflict, "name_taken", "it is taken").WithCause(io.EOF)
	if got := public(known); !errs.HasCode(got, "name_taken") {
		t.Errorf("another error's text is replaced: %v", got)
	}
}
