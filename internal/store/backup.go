package store

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/errs"
)

// IsPostgres reports whether a dsn names a PostgreSQL server.
func IsPostgres(dsn string) bool {
	return strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
}

// Live is an SQLite database that another process may be using.
type Live struct{ db *sqlx.DB }

// OpenLive opens the file for reading.
func OpenLive(path string) (*Live, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the database: %w", err)
	}
	db, err := openSQLitePool(sqliteDSN(path, url.Values{"mode": {"rw"}})) // with ro, a log that no process has open could not be read
	if err != nil {
		return nil, err
	}
	return &Live{db}, nil
}

// Close closes it.
func (l *Live) Close() error { return l.db.Close() }

// CopyTo writes one state of the database to a new file. The writer of the database is
// not held up.
func (l *Live) CopyTo(ctx context.Context, path string) error {
	if _, err := l.db.ExecContext(ctx, "VACUUM INTO ?", path); err != nil {
		return full(fmt.Errorf("cannot copy the database: %w", err))
	}
	return nil
}

// Revision returns the number of changes of a VM, which goes up before its disk changes;
// 0 if there is no such VM.
func (l *Live) Revision(ctx context.Context, vmID string) (revision int64, err error) {
	_, err = get(ctx, l.db, &revision, "SELECT revision FROM vms WHERE id = ?", vmID)
	return revision, err
}

// HasSnapshot reports whether there is a durable snapshot with this id.
func (l *Live) HasSnapshot(ctx context.Context, id string) (bool, error) {
	var one int
	return get(ctx, l.db, &one, "SELECT 1 FROM snapshots WHERE id = ? AND durable", id)
}

// Flatten makes an SQLite file whole in itself, without a log beside it.
func Flatten(ctx context.Context, path string) (err error) {
	db, err := openSQLitePool(sqliteDSN(path, url.Values{}))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	db.SetMaxOpenConns(1)
	if err := checkpoint(ctx, db); err != nil {
		return fmt.Errorf("cannot end the copy of the database: %w", err)
	}
	if _, err := db.ExecContext(ctx, "PRAGMA journal_mode = DELETE"); err != nil {
		return fmt.Errorf("cannot end the copy of the database: %w", err)
	}
	return nil
}

// fileColumns are the columns whose JSON names files of images.
var fileColumns = []struct{ table, column string }{
	{"images", "kernel"}, {"images", "rootfs"}, {"vms", "spec"}, {"snapshots", "origin"},
}

// SetInodes tells a database, which no process uses, that files of images have other
// inodes, by their path: they were restored. It refuses a database of a newer version.
func SetInodes(ctx context.Context, path string, inodes map[string]uint64) (err error) {
	db, err := openSQLite(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	if _, _, err := db.schema(ctx); err != nil {
		return err
	}
	return db.write(ctx, func(tx *tx) error {
		for _, c := range fileColumns {
			var rows []struct {
				ID   string `db:"id"`
				Text string `db:"text"`
			}
			if err := selectAll(ctx, tx, &rows, "SELECT id, "+c.column+" AS text FROM "+c.table); err != nil {
				return err
			}
			for _, row := range rows {
				text, changed, err := withInodes(row.Text, inodes)
				if err == nil && changed {
					_, err = tx.exec(ctx, "UPDATE "+c.table+" SET "+c.column+" = ? WHERE id = ?", text, row.ID)
				}
				if err != nil {
					return fmt.Errorf("cannot change %s of %s: %w", c.column, row.ID, err)
				}
			}
		}
		return nil
	})
}

// withInodes changes the inode of each object that has a path and an inode.
func withInodes(text string, inodes map[string]uint64) (string, bool, error) {
	decoder := json.NewDecoder(bytes.NewReader([]byte(text)))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return "", false, errs.New(errs.Internal, "damaged_row", "a row has no valid JSON").WithCause(err)
	}
	if !setInodesIn(value, inodes) {
		return text, false, nil
	}
	out, err := toJSON(value)
	return out, true, err
}

func setInodesIn(value any, inodes map[string]uint64) (changed bool) {
	object, ok := value.(map[string]any)
	if !ok {
		return false
	}
	if path, ok := object["path"].(string); ok && object["inode"] != nil {
		inode, known := inodes[path]
		if known {
			object["inode"] = inode
		}
		return known
	}
	for _, inner := range object {
		changed = setInodesIn(inner, inodes) || changed
	}
	return changed
}
