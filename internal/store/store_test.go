package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/store/migrations"
)

const testHost = "host_a"

// sqliteDSNFor makes a database that has gone through the migrations, which is a copy:
// with the race detector they take longer than most tests.
func sqliteDSNFor(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hatch.db")
	migratedOnce.Do(func() {
		s, err := Open(t.Context(), path, testHost)
		noError(t, err)
		noError(t, s.Close())
		migrated, err = os.ReadFile(path)
		noError(t, err)
	})
	noError(t, os.WriteFile(path, migrated, 0o600))
	return path
}

var (
	migratedOnce sync.Once
	migrated     []byte
)

// onEach runs a test on every database, with an empty store.
func onEach(t *testing.T, test func(t *testing.T, s *Store)) {
	t.Helper()
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			s := open(t, b.dsn(t))
			test(t, s)
			checkCounts(t, s)
		})
	}
}

// open opens a store that has the account acc_a.
func open(t testing.TB, dsn string) *Store {
	t.Helper()
	s, err := Open(context.Background(), dsn, testHost)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { noError(t, s.Close()) })
	account(t, s, "acc_a")
	return s
}

func account(t testing.TB, s *Store, id string) {
	t.Helper()
	noError(t, s.InsertUser(context.Background(), access.User{ID: id, Name: id, CreatedAt: now()}))
}

func noError(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func hasCode(t testing.TB, err error, kind errs.Kind, code string) {
	t.Helper()
	if !errs.Is(err, kind) || !errs.HasCode(err, code) {
		t.Fatalf("got %v, want %s of kind %s", err, code, kind)
	}
}

// now is a time that the database stores without rounding.
func now() time.Time { return time.Now().UTC().Truncate(time.Microsecond) }

func TestMigrationsUpAndDown(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		m, err := s.migrator()
		noError(t, err)
		entries, err := migrations.FS.ReadDir(".")
		noError(t, err)
		for range 2 {
			if _, err := m.DownTo(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if err := s.InsertUser(t.Context(), access.User{ID: "acc_x"}); err == nil {
				t.Error("a table is left after the way down")
			}
			results, err := m.Up(t.Context())
			noError(t, err)
			if want := len(entries) + len(migrations.Go(s.writes.Rebind, migrationKeys{s.database})); len(results) != want {
				t.Errorf("%d steps up, want %d", len(results), want)
			}
		}
		account(t, s, "acc_x")
	})
}

func TestReopenKeepsData(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			dsn := b.dsn(t)
			s := open(t, dsn)
			made := createVM(t, s, newVM("vm_a"))
			noError(t, s.Close())
			got, err := open(t, dsn).VM(t.Context(), access.Owner("acc_a"), "vm_a")
			noError(t, err)
			same(t, got, made)
		})
	}
}

func TestOpenRefusesANewerDatabase(t *testing.T) {
	for _, b := range backends() {
		t.Run(b.name, func(t *testing.T) {
			dsn := b.dsn(t)
			s := open(t, dsn)
			noError(t, s.write(t.Context(), func(tx *tx) error {
				_, err := tx.exec(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (?, ?)", 99999, true)
				return err
			}))
			noError(t, s.Close())
			if _, err := Open(t.Context(), dsn, testHost); err == nil || !strings.Contains(err.Error(), "newer hatchd") {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

func TestSQLiteSettings(t *testing.T) {
	dsn := filepath.Join(t.TempDir(), "a name with ?#%20 in it.db")
	s := open(t, dsn)
	for pragma, want := range map[string]string{"journal_mode": "wal", "foreign_keys": "1", "synchronous": "2", "busy_timeout": "5000"} {
		var got string
		noError(t, s.writes.Get(&got, "PRAGMA "+pragma))
		if got != want {
			t.Errorf("%s = %s, want %s", pragma, got, want)
		}
	}
	if _, err := s.reads.Exec("DELETE FROM users"); err == nil {
		t.Error("a connection for reads can write")
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if st, err := os.Stat(dsn + suffix); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", suffix, st, err)
		}
	}
}

func TestOpenFailsWithoutSecrets(t *testing.T) {
	for _, dsn := range []string{"postgres://u:hunter2@/n?host=/nonexistent", "postgres://u:hunter2@h:port/n"} {
		if _, err := Open(t.Context(), dsn, testHost); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("Open: %v", err)
		}
	}
	if _, err := Open(t.Context(), filepath.Join(t.TempDir(), "missing", "hatch.db"), testHost); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Open: %v", err)
	}
}

func TestPing(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		noError(t, s.Ping(t.Context()))
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := s.Ping(gone); err == nil {
			t.Error("no error with a context that is done")
		}
	})
}

func TestViolated(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		for want, statement := range map[string]string{
			"users_name":            "INSERT INTO users (id, name, created_at) VALUES ('acc_x', 'acc_a', 0)",
			"reservations_id":       "INSERT INTO reservations (id, turn) VALUES (1, 0)",
			"vm_labels_vm_id_label": "INSERT INTO vm_labels (vm_id, label, value) VALUES ('vm_a', 'team', '')",
		} {
			err := s.write(t.Context(), func(tx *tx) error {
				_, err := tx.exec(t.Context(), statement)
				return err
			})
			if got := violated(err); got != want {
				t.Errorf("violated(%v) = %q, want %q", err, got, want)
			}
			if referenceFailed(err) {
				t.Errorf("%v counts as a failed reference", err)
			}
		}
	})
}

// Each unique index of a lease must be recognized by its name.
func TestLostRace(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		createVM(t, s, newVM("vm_a"))
		createVM(t, s, newVM("vm_b"))
		for _, constraint := range leaseConstraints {
			column := strings.TrimPrefix(constraint, "vms_host_id_")
			tries := 0
			err := s.write(t.Context(), func(tx *tx) error {
				tries++
				_, err := tx.exec(t.Context(), fmt.Sprintf("UPDATE vms SET %s = (SELECT %s FROM vms WHERE id = 'vm_a') WHERE id = 'vm_b'", column, column))
				return err
			})
			hasCode(t, err, errs.Unavailable, "database_busy")
			if tries != maxAttempts {
				t.Errorf("%s: %d attempts", column, tries)
			}
		}
	})
}

func TestWriteRollsBack(t *testing.T) {
	onEach(t, func(t *testing.T, s *Store) {
		why := errors.New("no")
		err := s.write(t.Context(), func(tx *tx) error {
			if _, err := tx.exec(t.Context(), "UPDATE users SET name = 'changed'"); err != nil {
				return err
			}
			return why
		})
		if !errors.Is(err, why) {
			t.Errorf("write: %v", err)
		}
		var name string
		noError(t, s.reads.Get(&name, "SELECT name FROM users"))
		if name != "acc_a" {
			t.Errorf("name = %s", name)
		}
	})
}
