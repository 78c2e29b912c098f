// Package store stores everything that must survive a restart of hatchd, in SQLite
// or PostgreSQL, with the same SQL for both.
//
// It implements the Store interfaces of the packages that own the objects, with one
// type and one file each, and contains no rules of theirs. Start at [Open]; tx.go
// runs all writes, errors.go translates database errors, vm_lease.go assigns
// addresses and ports. What a request costs does not depend on the number of VMs:
// vm_numbers.go and vm_usage.go keep what would otherwise be counted.
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
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"

	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/store/migrations"
)

// Store is one open database: the stores of all objects. Its methods are
// safe for concurrent use.
type Store struct {
	*database
	accessStore
	imageStore
	templateStore
	snapshotStore
	vmStore
	eventStore
	webhookStore
	requestStore
	routeStore
	quotaStore
	auditStore
}

// database is the connection that all stores share.
type database struct {
	reads   *sqlx.DB
	writes  *sqlx.DB // the same as reads on PostgreSQL; one connection on SQLite
	dialect goose.Dialect
	host    string        // id of the host that this hatchd runs on
	lock    *databaseLock // nil on SQLite, whose data directory is locked
	added   *bell         // rings when events are appended to the log

	keys     *secret.Keyring // encrypts secrets; set before rows are read
	wrapped  secret.Wrapped  // the key that encrypts, for the migration that stores it
	rotating bool            // there are keys that FinishRotation retires

	makeRoom func() bool  // see OnFull
	limits   quota.Limits // of users that have none of their own; see LimitUsers

	renamed *atomic.Uint64 // goes up when host names may lead elsewhere; see NamesVersion
}

type (
	accessStore   struct{ *database }
	imageStore    struct{ *database }
	templateStore struct{ *database }
	snapshotStore struct{ *database }
	vmStore       struct {
		*database
		listed *listed
	}
	eventStore   struct{ *database }
	webhookStore struct{ *database }
	routeStore   struct{ *database }
	quotaStore   struct{ *database }
	auditStore   struct{ *database }
)

// OnFull has makeRoom called when the disk of an SQLite database is full. The
// transaction is repeated while it returns true. Call it before any write.
func (s *database) OnFull(makeRoom func() bool) {
	if s.dialect == goose.DialectSQLite3 { // a PostgreSQL server has its own disk
		s.makeRoom = makeRoom
	}
}

// Open opens the database that dsn names and brings its schema up to date.
// A dsn that starts with postgres:// or postgresql:// is a PostgreSQL server;
// anything else is the path of an SQLite file, which is created if missing. host is
// the id of this host. Open fails if another hatchd uses the PostgreSQL database.
// The secrets in it can be read by this process only. Errors: errs.Exhausted with code disk_full.
func Open(ctx context.Context, dsn, host string) (*Store, error) {
	return OpenFor(ctx, dsn, Directory{HostID: host})
}

// OpenFor is Open for a data directory, whose key file opens the secrets. It refuses a
// database that does not go with it.
func OpenFor(ctx context.Context, dsn string, dir Directory) (*Store, error) {
	open := openSQLite
	if strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://") {
		open = openPostgres
	}
	db, err := open(dsn)
	if err != nil {
		return nil, err
	}
	db.host = dir.HostID
	if err := db.prepare(ctx, dir); err != nil {
		return nil, errors.Join(full(explainOpen(err, dsn)), db.Close())
	}
	return newStore(db), nil
}

func newStore(db *database) *Store {
	return &Store{
		database: db, accessStore: accessStore{db}, imageStore: imageStore{db}, templateStore: templateStore{db},
		snapshotStore: snapshotStore{db}, vmStore: vmStore{db, newListed()}, eventStore: eventStore{db}, webhookStore: webhookStore{db}, requestStore: requestStore{db}, routeStore: routeStore{db}, quotaStore: quotaStore{db}, auditStore: auditStore{db},
	}
}

// sqliteReaders is how many reads may run at once; each holds a page cache.
const sqliteReaders = 4

// sqliteBusy is how long a statement waits for another process's lock. There
// is no other writer, except a tool that an operator runs by hand.
const sqliteBusy = 5 * time.Second

func openSQLite(path string) (*database, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	// Created here with mode 0600; SQLite gives its companion files the same mode.
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	if err := f.Close(); err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	// Transactions take the write lock when they begin, not at their first write:
	// else one that has read could find that it cannot write any more.
	writes, err := openSQLitePool(sqliteDSN(path, url.Values{"_txlock": {"immediate"}}))
	if err != nil {
		return nil, err
	}
	writes.SetMaxOpenConns(1)
	reads, err := openSQLitePool(sqliteDSN(path, url.Values{"_query_only": {"1"}}))
	if err != nil {
		return nil, errors.Join(err, writes.Close())
	}
	reads.SetMaxOpenConns(sqliteReaders)
	reads.SetMaxIdleConns(sqliteReaders)
	return &database{reads: reads, writes: writes, dialect: goose.DialectSQLite3, added: newBell(), renamed: new(atomic.Uint64)}, nil
}

func sqliteDSN(path string, extra url.Values) string {
	extra.Set("_busy_timeout", fmt.Sprint(sqliteBusy.Milliseconds()))
	extra.Set("_foreign_keys", "on")
	extra.Set("_journal_mode", "WAL")
	// FULL, not NORMAL: a confirmed change must survive a power failure. With
	// NORMAL a deleted API key could become valid again.
	extra.Set("_synchronous", "FULL")
	return (&url.URL{Scheme: "file", Path: path, RawQuery: extra.Encode()}).String()
}

// postgresConns bounds the connections to a PostgreSQL server.
const postgresConns = 16

func openPostgres(dsn string) (*database, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		// The driver's error contains the URL with its password.
		return nil, errors.New("cannot open the database: the URL of the PostgreSQL server is not valid: want postgres://USER:PASSWORD@HOST:PORT/NAME")
	}
	// A statement keeps its plan while its table grows: one that was made for an empty
	// table must use the index, too.
	useIndexes := stdlib.OptionAfterConnect(func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, "SET enable_seqscan = off; SET jit = off") // a scan without an index counts as costly, which would compile each
		return err
	})
	db := sqlx.NewDb(stdlib.OpenDB(*config, useIndexes), "pgx")
	db.SetMaxOpenConns(postgresConns)
	db.SetMaxIdleConns(postgresConns)
	db.SetConnMaxIdleTime(5 * time.Minute)
	return &database{reads: db, writes: db, dialect: goose.DialectPostgres, lock: &databaseLock{db: db}, added: newBell(), renamed: new(atomic.Uint64)}, nil
}

// prepare locks the database before it changes the schema under another hatchd.
func (s *database) prepare(ctx context.Context, dir Directory) error {
	if s.lock != nil {
		if err := s.lock.hold(ctx, lockTimeout); err != nil {
			return err
		}
	}
	m, have, err := s.schema(ctx)
	if err != nil {
		return err
	}
	if _, err := m.UpTo(ctx, secretsVersion-1); err != nil {
		return fmt.Errorf("cannot migrate the database: %w", err)
	}
	if err := s.checkDirectory(ctx, dir); err != nil { // before its secrets need the key of this directory
		return err
	}
	if err := s.openKeys(ctx, dir.Keys, have); err != nil {
		return err
	}
	if _, err := m.Up(ctx); err != nil {
		return fmt.Errorf("cannot migrate the database: %w", err)
	}
	return s.claimRows(ctx)
}

// Close closes the database after the running statements.
func (s *database) Close() error {
	if s.lock != nil {
		s.lock.close()
	}
	if s.reads == s.writes {
		return s.writes.Close()
	}
	return errors.Join(s.reads.Close(), s.writes.Close())
}

// Ping returns an error if the database does not answer or cannot be written to,
// because another process has locked it, or if this hatchd has lost the lock on it.
func (s *database) Ping(ctx context.Context) error {
	var one int
	if err := s.reads.GetContext(ctx, &one, "SELECT 1"); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	if s.lock != nil { // the server may have been restarted
		return s.lock.hold(ctx, 0)
	}
	begun, err := s.writes.BeginTxx(ctx, nil) // takes the write lock of SQLite
	if err != nil {
		return fmt.Errorf("the database cannot be written to: %w", err)
	}
	return begun.Rollback()
}

func (s *database) migrator() (*goose.Provider, error) {
	return goose.NewProvider(s.dialect, s.writes.DB, migrations.FS,
		goose.WithGoMigrations(migrations.Go(s.writes.Rebind, migrationKeys{s})...), goose.WithLogger(goose.NopLogger()))
}

// schema returns the version of the database, and what applies the missing migrations,
// each in a transaction.
func (s *database) schema(ctx context.Context) (m *goose.Provider, have int64, err error) {
	if m, err = s.migrator(); err != nil {
		return nil, 0, fmt.Errorf("cannot read the schema: %w", err)
	}
	have, known, err := m.GetVersions(ctx)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot read the database's version: %w", err)
	}
	if have > known {
		return nil, 0, fmt.Errorf("cannot use the database: its version is %d, from a newer hatchd; this one supports up to %d", have, known)
	}
	return m, have, nil
}

// micros returns the stored form of a time: microseconds since 1970.
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
