package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"

	"github.com/jmoiron/sqlx"
	"modernc.org/sqlite"
)

// maxStatements bounds the prepared statements of a connection. The store has fewer
// queries; clients can cause more, by what they combine in a filter.
const maxStatements = 160

// openSQLitePool opens connections that keep their statements prepared: parsing a query
// costs more than running it. For PostgreSQL the driver does this itself.
func openSQLitePool(dsn string) (*sqlx.DB, error) {
	connector, err := sqlite.NewConnector(dsn)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	return sqlx.NewDb(sql.OpenDB(preparing{connector}), "sqlite"), nil
}

// preparing makes connections of the type preparedConn.
type preparing struct{ driver.Connector }

// Connect implements [driver.Connector].
func (p preparing) Connect(ctx context.Context) (driver.Conn, error) {
	conn, err := p.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &preparedConn{sqliteConn: conn.(sqliteConn), idle: map[string]preparedStmt{}}, nil
}

// sqliteConn is what the driver's connections can do and database/sql uses.
type sqliteConn interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

type preparedStmt interface {
	driver.Stmt
	driver.StmtExecContext
	driver.StmtQueryContext
}

// preparedConn is a connection with its prepared statements. A statement is idle, or one
// query has it, until its rows are closed. database/sql calls a connection from one
// goroutine at a time.
type preparedConn struct {
	sqliteConn
	idle map[string]preparedStmt // by their text
}

// Unwrap returns the driver's connection.
func (c *preparedConn) Unwrap() driver.Conn { return c.sqliteConn }

func (c *preparedConn) take(ctx context.Context, query string) (preparedStmt, error) {
	if stmt, ok := c.idle[query]; ok {
		delete(c.idle, query)
		return stmt, nil
	}
	stmt, err := c.PrepareContext(ctx, query)
	if err != nil {
		return nil, err
	}
	return stmt.(preparedStmt), nil
}

func (c *preparedConn) giveBack(query string, stmt preparedStmt) error {
	if _, other := c.idle[query]; other || len(c.idle) >= maxStatements {
		return stmt.Close()
	}
	c.idle[query] = stmt
	return nil
}

// ExecContext implements [driver.ExecerContext].
func (c *preparedConn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	stmt, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	result, err := stmt.ExecContext(ctx, args)
	if closeErr := c.giveBack(query, stmt); err == nil {
		err = closeErr
	}
	return result, err
}

// QueryContext implements [driver.QueryerContext].
func (c *preparedConn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	stmt, err := c.take(ctx, query)
	if err != nil {
		return nil, err
	}
	rows, err := stmt.QueryContext(ctx, args)
	if err != nil {
		_ = c.giveBack(query, stmt) // the query's error is the one to report
		return nil, err
	}
	return &preparedRows{Rows: rows, done: func() error { return c.giveBack(query, stmt) }}, nil
}

// Close implements [driver.Conn].
func (c *preparedConn) Close() error {
	for _, stmt := range c.idle {
		_ = stmt.Close() // the connection's error is the one to report
	}
	return c.sqliteConn.Close()
}

// preparedRows gives its statement back when it is closed.
type preparedRows struct {
	driver.Rows
	done func() error
}

// Close implements [driver.Rows].
func (r *preparedRows) Close() error {
	err := r.Rows.Close()
	if r.done != nil {
		if doneErr := r.done(); err == nil {
			err = doneErr
		}
		r.done = nil
	}
	return err
}
