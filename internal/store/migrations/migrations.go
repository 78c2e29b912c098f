// Package migrations has the database schema as numbered migrations, with the same SQL for
// SQLite and PostgreSQL.
//
// The statements of a released migration never change; a change is a new migration. Types
// are those that both databases treat alike: TEXT, BIGINT, BOOLEAN and BYTEA (which has no
// affinity in SQLite, so that it stores blobs unchanged). A migration that needs more than
// SQL is a Go function. Start at [FS] and [Go]; internal/store runs the migrations.
package migrations

import (
	"context"
	"database/sql"
	"embed"
	"fmt"

	"github.com/pressly/goose/v3"
)

// FS has the migrations in SQL, named NNNNN_TOPIC.sql.
//
//go:embed *.sql
var FS embed.FS

// Go returns the migrations in Go. rebind replaces "?" in a query with the database's
// placeholders; keys encrypts secrets.
func Go(rebind func(query string) string, keys Secrets) []*goose.Migration {
	s := steps{rebind, keys}
	return []*goose.Migration{
		goose.NewGoMigration(8, &goose.GoFunc{RunTx: s.spec}, &goose.GoFunc{RunTx: s.dropSpec}),
		goose.NewGoMigration(21, &goose.GoFunc{RunTx: s.secrets}, &goose.GoFunc{RunTx: s.dropSecrets}),
	}
}

type steps struct {
	rebind func(query string) string
	keys   Secrets
}

// run runs statements without values.
func (s steps) run(ctx context.Context, tx *sql.Tx, statements ...string) error {
	for _, statement := range statements {
		if err := s.exec(ctx, tx, statement); err != nil {
			return err
		}
	}
	return nil
}

func (s steps) exec(ctx context.Context, tx *sql.Tx, statement string, args ...any) error {
	if _, err := tx.ExecContext(ctx, s.rebind(statement), args...); err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

// each calls read for each row.
func (s steps) each(ctx context.Context, tx *sql.Tx, query string, read func(scan func(...any) error) error) error {
	rows, err := tx.QueryContext(ctx, query)
	if err != nil {
		return fmt.Errorf("%s: %w", query, err)
	}
	defer func() { _ = rows.Close() }()
	for rows.Next() {
		if err := read(rows.Scan); err != nil {
			return fmt.Errorf("%s: %w", query, err)
		}
	}
	return rows.Err()
}
