package store

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"syscall"
	"time"

	"github.com/jmoiron/sqlx"
	"github.com/pressly/goose/v3"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/secret"
)

// KeyFile has the identities that open the secrets of a database.
type KeyFile interface {
	// Load returns the identities. Errors: fs.ErrNotExist.
	Load() (secret.Identities, error)
	// Create makes the file with a new identity. Errors: fs.ErrExist.
	Create() (secret.Identities, error)
}

// processKeys is a key file that ends with the process.
type processKeys struct{}

var processIdentity = sync.OnceValues(secret.NewIdentity)

// Load implements [KeyFile].
func (processKeys) Load() (secret.Identities, error) {
	made, err := processIdentity()
	return secret.Identities{made}, err
}

// Create implements [KeyFile].
func (k processKeys) Create() (secret.Identities, error) { return k.Load() }

// migrationKeys are the keys for the migrations: they are made before those run.
type migrationKeys struct{ *database }

// Seal implements [migrations.Secrets].
func (k migrationKeys) Seal(place string, value []byte) []byte { return k.keys.Seal(place, value) }

// Open implements [migrations.Secrets].
func (k migrationKeys) Open(place string, value []byte) ([]byte, error) {
	return k.keys.Open(place, value)
}

// Row implements [migrations.Secrets].
func (k migrationKeys) Row() (id, recipient string, wrapped []byte) {
	return k.wrapped.ID, k.wrapped.Recipient, k.wrapped.Key
}

// The places of secrets. They are part of what is encrypted and never change.
func placeOfVM(id string) string       { return "vms/user_data/" + id }
func placeOfSnapshot(id string) string { return "snapshots/user_data/" + id }
func placeOfTemplate(id string) string { return "templates/user_data/" + id }
func placeOfRoute(id string) string    { return "routes/password/" + id }
func placeOfWebhook(id string) string  { return "webhooks/secret/" + id }
func placeOfLinks() string             { return "link_secret/secret/1" }
func placeOfSSHAuthority() string      { return "ssh_authority/seed/1" }

// placeOfTemplateRoutes is that of the passwords of all routes of a template.
func placeOfTemplateRoutes(id string) string { return "templates/routes/" + id }

// sealText is Seal for a column of text.
func sealText(keys *secret.Keyring, place, value string) string {
	return base64.StdEncoding.EncodeToString(keys.Seal(place, []byte(value)))
}

func openText(keys *secret.Keyring, place, stored string) (string, error) {
	bytes, err := base64.StdEncoding.DecodeString(stored)
	if err != nil {
		return "", fmt.Errorf("%s: %w", place, secret.ErrNotOpened)
	}
	value, err := keys.Open(place, bytes)
	return string(value), err
}

// secretsVersion is the migration that encrypts secrets, and makes the table of keys.
const secretsVersion = 21

// wrappedRow is a data key as stored in its table.
type wrappedRow struct {
	ID        string `db:"id"`
	Recipient string `db:"recipient"`
	Wrapped   []byte `db:"wrapped"`
}

// CheckKeys returns an error if a key file does not open the secrets of an SQLite
// database, which no process uses.
func CheckKeys(ctx context.Context, path string, file KeyFile) (err error) {
	db, err := openSQLite(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	_, have, err := db.schema(ctx)
	if err != nil {
		return err
	}
	ids, err := file.Load()
	if err != nil {
		return err
	}
	rows, err := db.wrappedKeys(ctx, have)
	for _, row := range rows {
		if err == nil {
			_, err = ids.Unwrap(secret.Wrapped{ID: row.ID, Recipient: row.Recipient, Key: row.Wrapped})
		}
	}
	if err != nil {
		return fmt.Errorf("the key does not open the secrets in the database: %w", err)
	}
	return nil
}

// wrappedKeys returns the data keys in a database of version have.
func (s *database) wrappedKeys(ctx context.Context, have int64) (rows []wrappedRow, err error) {
	if have < secretsVersion {
		return nil, nil
	}
	if err := selectAll(ctx, s.writes, &rows, "SELECT id, recipient, wrapped FROM secret_keys ORDER BY created_at, id"); err != nil {
		return nil, fmt.Errorf("cannot read the keys of the secrets: %w", err)
	}
	return rows, nil
}

// openKeys makes the keyring of the database, before its rows are read or migrated. A
// database that has no keys yet gets one; only then may the key file be missing, which
// is made.
func (s *database) openKeys(ctx context.Context, file KeyFile, have int64) error {
	rows, err := s.wrappedKeys(ctx, have)
	if err != nil {
		return err
	}
	if file == nil {
		file = processKeys{}
	}
	ids, err := file.Load()
	if errors.Is(err, fs.ErrNotExist) {
		if len(rows) > 0 {
			return fmt.Errorf("cannot read the secrets in the database, which need the key %s: %w; "+
				"restore that file from a backup, or set HATCH_SECRETS_KEY_FILE to where it is; hatchd does not go on without it, because user data, "+
				"secrets of webhooks and passwords of routes would be lost", rows[len(rows)-1].Recipient, err)
		}
		if ids, err = file.Create(); errors.Is(err, fs.ErrExist) { // made meanwhile, by an operator
			ids, err = file.Load()
		}
	}
	if err != nil {
		return err
	}
	var current *secret.Key
	var others []secret.Key
	for _, row := range rows {
		wrapped := secret.Wrapped{ID: row.ID, Recipient: row.Recipient, Key: row.Wrapped}
		k, err := ids.Unwrap(wrapped)
		if err != nil {
			return fmt.Errorf("cannot read the secrets in the database, which need the key %s: the key file has another one (%w); "+
				"restore the right file from a backup, or set HATCH_SECRETS_KEY_FILE to where it is", row.Recipient, err)
		}
		if row.Recipient == ids[0].Recipient().String() {
			current, s.wrapped = &k, wrapped
		} else {
			others = append(others, k)
		}
	}
	s.rotating = len(others) > 0
	if current != nil {
		s.keys = secret.NewKeyring(*current, others...)
		return nil
	}
	return s.addKey(ctx, ids, others, have)
}

// addKey makes a data key, and stores it, or leaves that to the migration that makes the
// table.
func (s *database) addKey(ctx context.Context, ids secret.Identities, others []secret.Key, have int64) error {
	k := secret.NewKey()
	wrapped, err := ids.Wrap(k)
	if err != nil {
		return err
	}
	s.keys, s.wrapped = secret.NewKeyring(k, others...), wrapped
	if have < secretsVersion {
		return nil
	}
	return s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, "INSERT INTO secret_keys (id, recipient, wrapped, created_at, scrubbed) VALUES (?, ?, ?, ?, FALSE)",
			wrapped.ID, wrapped.Recipient, wrapped.Key, micros(time.Now()))
		if err != nil {
			return fmt.Errorf("cannot store a key of the secrets: %w", err)
		}
		return nil
	})
}

// Rotating reports whether the key file has an identity, or the database a key, that
// FinishRotation retires.
func (s *database) Rotating() bool { return s.rotating }

// resealBatch is how many rows one transaction encrypts again.
const resealBatch = 100

// FinishRotation encrypts every secret with the newest key, and then forgets the others.
// When it has returned without an error, the identities after the first are of no use.
// It may be interrupted at any time, and called again.
func (s *database) FinishRotation(ctx context.Context) error {
	for _, c := range sealedColumns {
		for after := ""; ; {
			n, last, err := s.resealSome(ctx, c, after)
			if err != nil {
				return fmt.Errorf("cannot encrypt %s of %s again: %w", c.column, c.table, err)
			}
			if n < resealBatch {
				break
			}
			after = last
		}
	}
	err := s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, "DELETE FROM secret_keys WHERE id <> ?", s.keys.Current())
		return err
	})
	if err != nil {
		return fmt.Errorf("cannot remove the old keys of the secrets: %w", err)
	}
	s.rotating = false
	return nil
}

// resealSome goes through the next rows of a table, in one transaction.
func (s *database) resealSome(ctx context.Context, c sealedColumn, after string) (n int, last string, err error) {
	err = s.write(ctx, func(tx *tx) error {
		var rows []struct {
			ID    string `db:"id"`
			Value []byte `db:"value"`
		}
		if err := selectAll(ctx, tx, &rows, c.query(), after, resealBatch); err != nil {
			return err
		}
		for n = range rows {
			again, changed, err := c.reseal(s.keys, rows[n].ID, rows[n].Value)
			if err == nil && changed {
				_, err = tx.exec(ctx, c.update(), c.stored(again), rows[n].ID)
			}
			if err != nil {
				return err
			}
		}
		if n = len(rows); n > 0 {
			last = rows[n-1].ID
		}
		return nil
	})
	return n, last, err
}

// Scrub removes what an SQLite file still has of values that were encrypted, or
// encrypted with a key that was retired: in free pages and in the log. It does nothing
// if that was done. With PostgreSQL that is the server's to do.
func (s *database) Scrub(ctx context.Context) error {
	due, err := s.exists(ctx, "SELECT 1 FROM secret_keys WHERE NOT scrubbed")
	if err != nil || !due {
		return err
	}
	if s.dialect == goose.DialectSQLite3 {
		if err := s.rewrite(ctx); err != nil {
			return full(fmt.Errorf("cannot remove old secrets from the database's free pages: %w", err))
		}
	}
	return s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, "UPDATE secret_keys SET scrubbed = TRUE")
		return err
	})
}

// rewrite writes all pages of an SQLite file anew. It takes as much room as the file, for
// a while twice, and is not begun where that is missing: makeRoom is for changes.
func (s *database) rewrite(ctx context.Context) error {
	var file struct {
		Pages int64  `db:"pages"`
		Size  int64  `db:"size"`
		Path  string `db:"path"`
	}
	if err := s.writes.GetContext(ctx, &file, "SELECT page_count AS pages, page_size AS size, d.file AS path FROM pragma_page_count, pragma_page_size, pragma_database_list d WHERE d.name = 'main'"); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(file.Path, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free/2 < file.Pages*file.Size {
		return fmt.Errorf("%d bytes are free, and it takes twice the %d bytes of the database: %w", free, file.Pages*file.Size, syscall.ENOSPC)
	}
	if _, err := s.writes.ExecContext(ctx, "VACUUM"); err != nil {
		return err
	}
	return checkpoint(ctx, s.writes)
}

// checkpoint writes the log of an SQLite file to the file, and empties it. Another
// connection that is reading prevents that, which SQLite says in a row, not as an error.
func checkpoint(ctx context.Context, db *sqlx.DB) error {
	var row struct {
		Busy         int `db:"busy"`
		Log          int `db:"log"`
		Checkpointed int `db:"checkpointed"`
	}
	if err := db.GetContext(ctx, &row, "PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		return err
	}
	if row.Busy != 0 {
		return errors.New("the database is in use")
	}
	return nil
}
