// Package storetest opens stores for tests of other packages.
//
// A new database goes through every migration, which takes most of the time of a
// test that makes one, above all with the race detector. [Open] does that once in a
// test program and copies the file. The migrations themselves, and PostgreSQL, are
// tested in package store.
package storetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hatchvm/hatch/internal/store"
)

// Host is the id of the host that the stores are of.
const Host = "host_a"

// Open opens an empty store on SQLite. The caller closes it.
func Open(t testing.TB) *store.Store {
	t.Helper()
	empty, err := emptyDatabase()
	if err != nil {
		t.Fatalf("cannot make an empty database: %v", err)
	}
	path := filepath.Join(t.TempDir(), "hatch.db")
	if err := os.WriteFile(path, empty, 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), path, Host)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// emptyDatabase returns the bytes of a database that was just made.
var emptyDatabase = sync.OnceValues(func() ([]byte, error) {
	dir, err := os.MkdirTemp("", "storetest")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "hatch.db")
	s, err := store.Open(context.Background(), path, Host)
	if err != nil {
		return nil, err
	}
	if err := s.Close(); err != nil {
		return nil, err
	}
	if _, err := os.Stat(path + "-wal"); err == nil {
		return nil, errors.New("the database is closed, and not all of it is in its file")
	}
	return os.ReadFile(path)
})
