// Package store keeps everything that must survive the daemon, in SQLite or
// in PostgreSQL, with one text of SQL for both.
//
// It implements the Store interfaces that internal/vm, image, template and
// access declare, one file per noun, and decides nothing: rules live there.
// Start at [Open]; tx.go is how every write runs, errors.go turns the
// databases' errors into words, vm_lease.go gives addresses and ports out.
package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"github.com/hatchvm/hatch/internal/store/migrations"
)

// Store is one open database. Its methods may be called from several
// goroutines at once.
type Store struct {
	reads   *sqlx.DB
	writes  *sqlx.DB // the same as reads on PostgreSQL; one connection on SQLite
	dialect goose.Dialect
	listed  *listed
	added   *bell // rings when events were added to the log
}

// Open opens the database that dsn names and brings its schema up to date.
// A dsn that starts with postgres:// or postgresql:// is a PostgreSQL server;
// anything else is the path of an SQLite file, which is made when missing.
func Open(ctx context.Context, dsn string) (*Store, error) {
	open := openSQLite
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		open = openPostgres
	}
	s, err := open(dsn)
	if err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// sqliteReaders is how many reads may run at once; each holds a page cache.
const sqliteReaders = 4

// sqliteBusy is how long a statement waits for another process's lock. There
// is no other writer but a tool somebody runs by hand.
const sqliteBusy = 5 * time.Second

func openSQLite(path string) (*Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	// Made before SQLite does, so that it and its companions are ours alone.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	// Writes take their lock at the start of the transaction, not at its first
	// write: a transaction that could read but no longer write would have to be
	// thrown away.
	writes, err := sqlx.Open("sqlite", sqliteDSN(path, url.Values{"_txlock": {"immediate"}}))
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	writes.SetMaxOpenConns(1)
	reads, err := sqlx.Open("sqlite", sqliteDSN(path, url.Values{"_query_only": {"1"}}))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("cannot open the database: %w", err), writes.Close())
	}
	reads.SetMaxOpenConns(sqliteReaders)
	reads.SetMaxIdleConns(sqliteReaders)
	return &Store{reads: reads, writes: writes, dialect: goose.DialectSQLite3, listed: newListed(), added: newBell()}, nil
}

func sqliteDSN(path string, extra url.Values) string {
	extra.Set("_busy_timeout", fmt.Sprint(sqliteBusy.Milliseconds()))
	extra.Set("_foreign_keys", "on")
	extra.Set("_journal_mode", "WAL")
	// FULL, not NORMAL: what was answered must survive a power cut. With NORMAL
	// a deleted API key could work again afterwards.
	extra.Set("_synchronous", "FULL")
	return (&url.URL{Scheme: "file", Path: path, RawQuery: extra.Encode()}).String()
}

// postgresConns bounds the connections to a PostgreSQL server.
const postgresConns = 16

func openPostgres(dsn string) (*Store, error) {
	db, err := sqlx.Open("pgx", dsn)
	if err != nil {
		// The driver's error repeats the address, password included.
		return nil, errors.New("cannot open the database: the address of the PostgreSQL server cannot be read; it has the form postgres://USER:PASSWORD@HOST:PORT/NAME")
	}
	db.SetMaxOpenConns(postgresConns)
	db.SetMaxIdleConns(postgresConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return &Store{reads: db, writes: db, dialect: goose.DialectPostgres, listed: newListed(), added: newBell()}, nil
}

// Close closes the database after the statements under way.
func (s *Store) Close() error {
	if s.reads == s.writes {
		return s.writes.Close()
	}
	return errors.Join(s.reads.Close(), s.writes.Close())
}

// Ping reports whether the database answers.
func (s *Store) Ping(ctx context.Context) error {
	var one int
	if err := s.reads.GetContext(ctx, &one, "SELECT 1"); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	return nil
}

func (s *Store) migrator() (*goose.Provider, error) {
	return goose.NewProvider(s.dialect, s.writes.DB, migrations.FS, goose.WithLogger(goose.NopLogger()))
}

// migrate applies the steps that are missing, each in a transaction.
func (s *Store) migrate(ctx context.Context) error {
	m, err := s.migrator()
	if err != nil {
		return fmt.Errorf("cannot read the schema: %w", err)
	}
	have, known, err := m.GetVersions(ctx)
	if err != nil {
		return fmt.Errorf("cannot read the database's version: %w", err)
	}
	if have > known {
		return fmt.Errorf("cannot use the database: it has version %d, which a newer hatchd made; this one knows up to %d", have, known)
	}
	if _, err := m.Up(ctx); err != nil {
		return fmt.Errorf("cannot bring the database up to date: %w", err)
	}
	return nil
}

// micros is how a time is stored.
func micros(t time.Time) int64 { return t.UnixMicro() }

func fromMicros(n int64) time.Time { return time.UnixMicro(n).UTC() }

func optionalMicros(t *time.Time) sql.NullInt64 {
	if t == nil {
		return sql.NullInt64{}
	}
	return sql.NullInt64{Int64: micros(*t), Valid: true}
}

func optionalTime(n sql.NullInt64) *time.Time {
	if !n.Valid {
		return nil
	}
	t := fromMicros(n.Int64)
	return &t
}
