package store

import (
	"context"
	"database/sql"
	"fmt"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/errs"
)

// maxTries bounds how often a transaction that lost a race is run again.
const maxTries = 5

// write runs do in one write transaction. do may run more than once and sees
// a fresh transaction each time; it must not have effects elsewhere.
func (s *Store) write(ctx context.Context, do func(tx *tx) error) error {
	var err error
	for range maxTries {
		if err = s.writeOnce(ctx, do); !lostRace(err) || ctx.Err() != nil {
			return err
		}
	}
	return errs.New(errs.Unavailable, "database_busy", "cannot store this: the database is too busy").
		WithHint("try again").WithCause(err)
}

func (s *Store) writeOnce(ctx context.Context, do func(tx *tx) error) error {
	begun, err := s.writes.BeginTxx(ctx, nil)
	if err != nil {
		return fmt.Errorf("cannot begin a transaction: %w", err)
	}
	defer func() { _ = begun.Rollback() }() // nothing to do after a commit
	t := &tx{Tx: begun}
	if err := do(t); err != nil {
		return err
	}
	if err := begun.Commit(); err != nil {
		return fmt.Errorf("cannot commit: %w", err)
	}
	if t.appended {
		s.added.ring()
	}
	return nil
}

// tx is a write transaction that takes "?" for a value on both databases.
type tx struct {
	*sqlx.Tx
	appended bool // events were added to the log
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

// takeTurn makes every other transaction that takes its turn wait for the end
// of this one.
func (t *tx) takeTurn(ctx context.Context) error {
	_, err := t.exec(ctx, "UPDATE reservations SET turn = turn + 1 WHERE id = 1")
	return err
}

// querier is what reads need; a pool and a transaction have it.
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
	return err == nil, err
}

func selectAll(ctx context.Context, q querier, dest any, query string, args ...any) error {
	return q.SelectContext(ctx, dest, q.Rebind(query), args...)
}

// optional is a value that may be NULL; the zero value is.
func optional[T comparable](v T) sql.Null[T] {
	var zero T
	return sql.Null[T]{V: v, Valid: v != zero}
}
