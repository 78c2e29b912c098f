package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/secret"
)

// maxAttempts bounds the attempts of a transaction that conflicts with others.
const maxAttempts = 5

// write runs do in one write transaction. It may call do more than once, each time
// with a new transaction, so do must not have other side effects.
func (s *database) write(ctx context.Context, do func(tx *tx) error) error {
	var err error
	for range maxAttempts {
		if err = s.writeWithRoom(ctx, do); !lostRace(err) || ctx.Err() != nil {
			return public(full(err))
		}
	}
	return errs.New(errs.Unavailable, "database_busy", "cannot store this: the database is too busy").
		WithHint("try again").WithCause(err)
}

// writeWithRoom repeats a transaction that finds the disk full, as long as room is
// made for it.
func (s *database) writeWithRoom(ctx context.Context, do func(tx *tx) error) error {
	for {
		err := s.writeOnce(ctx, do)
		if s.makeRoom == nil || s.lock != nil || !isFull(err) || ctx.Err() != nil || !s.makeRoom() {
			return err
		}
	}
}

func (s *database) writeOnce(ctx context.Context, do func(tx *tx) error) error {
	begun, err := s.writes.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("cannot begin a transaction: %w", err)
	}
	defer func() { _ = begun.Rollback() }() // no effect after a commit
	t := &tx{Tx: begun, host: s.host, keys: s.keys, limits: s.limits}
	if err := do(t); err != nil {
		return err
	}
	defer func() {
		if t.renamed { // also if it is not known whether the commit has failed
			s.renamed.Add(1)
		}
	}()
	if err := begun.Commit(); err != nil {
		return fmt.Errorf("cannot commit: %w", err)
	}
	if t.appended {
		s.added.ring()
	}
	return nil
}

// read runs do on one state of the database, so that what its queries return belongs
// together.
func (s *database) read(ctx context.Context, do func(q querier) error) error {
	options := &sql.TxOptions{ReadOnly: true} // on SQLite a transaction sees one state
	if s.dialect == goose.DialectPostgres {
		options.Isolation = sql.LevelRepeatableRead
	}
	begun, err := s.reads.BeginTxx(ctx, options)
	if err != nil {
		return public(fmt.Errorf("cannot begin to read: %w", err))
	}
	defer func() { _ = begun.Rollback() }() // there is nothing to commit
	return public(do(begun))
}

// tx is a write transaction whose queries use "?" as placeholder on both databases.
type tx struct {
	*sqlx.Tx
	host     string // id of this host
	keys     *secret.Keyring
	limits   quota.Limits
	appended bool // events were added to the log
	renamed  bool // host names may lead elsewhere
}

func (t *tx) exec(ctx context.Context, query string, args ...any) (affected int64, err error) {
	res, err := t.ExecContext(ctx, t.Rebind(query), args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

// get reads one row into dest, and reports whether there was one.
func (t *tx) get(ctx context.Context, dest any, query string, args ...any) (found bool, err error) {
	return get(ctx, t, dest, query, args...)
}

// lockReservations blocks other transactions that call it until this one ends.
func (t *tx) lockReservations(ctx context.Context) error {
	_, err := t.exec(ctx, "UPDATE reservations SET turn = turn + 1 WHERE id = 1")
	return err
}

// querier is the part of a pool or a transaction that reads use.
type querier interface {
	Rebind(query string) string
	GetContext(ctx context.Context, dest any, query string, args ...any) error
	SelectContext(ctx context.Context, dest any, query string, args ...any) error
}

func get(ctx context.Context, q querier, dest any, query string, args ...any) (found bool, err error) {
	err = q.GetContext(ctx, dest, q.Rebind(query), args...)
	if isNoRows(err) {
		return false, nil
	}
	return err == nil, public(err)
}

func selectAll(ctx context.Context, q querier, dest any, query string, args ...any) error {
	return public(q.SelectContext(ctx, dest, q.Rebind(query), args...))
}

// optional returns a nullable value: the zero value becomes NULL.
func optional[T comparable](v T) sql.Null[T] {
	var zero T
	return sql.Null[T]{V: v, Valid: v != zero}
}
