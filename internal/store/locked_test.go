package store

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/jmoiron/sqlx"
)

// TestALockedDatabaseIsNotWell locks an SQLite file as a tool of the operator does.
func TestALockedDatabaseIsNotWell(t *testing.T) {
	path := t.TempDir() + "/hatch.db"
	s, err := Open(t.Context(), path, "host")
	noError(t, err)
	defer func() { noError(t, s.Close()) }()
	noError(t, s.Ping(t.Context()))

	tool, err := sqlx.Open("sqlite", sqliteDSN(path, url.Values{"_txlock": {"immediate"}}))
	noError(t, err)
	defer func() { noError(t, tool.Close()) }()
	locked, err := tool.BeginTxx(t.Context(), nil)
	noError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Ping(ctx); err == nil {
		t.Error("a database that cannot be written to is well")
	}
	noError(t, locked.Rollback())
	noError(t, s.Ping(t.Context()))
}
