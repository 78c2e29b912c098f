package store

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/id"
)

// hostFile is in the data directory and holds the host's id.
const hostFile = "host-id"

const hostPrefix = "host_"

// HostID returns the id of the host that a data directory belongs to, and generates
// it at the first start. Precondition: the directory is locked.
func HostID(dataDir string) (string, error) {
	path := filepath.Join(dataDir, hostFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		host := id.New(hostPrefix)
		return host, writeHostID(path, host)
	}
	if err != nil {
		return "", fmt.Errorf("cannot read the host's id: %w", err)
	}
	host := strings.TrimSpace(string(text))
	name, ok := strings.CutPrefix(host, hostPrefix)
	if !ok || name == "" || len(host) > 64 || strings.Trim(name, "0123456789abcdefghijklmnopqrstuvwxyz") != "" {
		return "", fmt.Errorf("cannot use %s: it must hold %s and lower-case letters and digits; restore it from a backup", path, hostPrefix)
	}
	return host, nil
}

// writeHostID writes the file atomically: a partial id would be another host's.
func writeHostID(path, host string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+hostFile+"-*") // with mode 0600
	if err != nil {
		return fmt.Errorf("cannot write the host's id: %w", err)
	}
	_, err = f.WriteString(host + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cannot write the host's id: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}

// claimRows stores that this host uses the database, and assigns rows without a host id,
// from versions before hosts had ids, to it. An SQLite database belongs to one host, so there all rows are assigned:
// it may have been restored beside a new host-id.
func (s *database) claimRows(ctx context.Context) error {
	unclaimed, args := "host_id = ''", []any{s.host}
	if s.lock == nil {
		unclaimed, args = "host_id <> ?", append(args, s.host)
	}
	return s.write(ctx, func(tx *tx) error {
		if _, err := tx.exec(ctx, "INSERT INTO hosts (id) VALUES (?) ON CONFLICT (id) DO NOTHING", s.host); err != nil {
			return fmt.Errorf("cannot store which host uses the database: %w", err)
		}
		for _, table := range []string{"vms", "snapshots"} {
			if _, err := tx.exec(ctx, "UPDATE "+table+" SET host_id = ? WHERE "+unclaimed, args...); err != nil {
				return fmt.Errorf("cannot store which host has VMs and snapshots: %w", err)
			}
		}
		err := tx.countNumbers(ctx)
		if err == nil {
			err = tx.countUsage(ctx)
		}
		if err != nil {
			return fmt.Errorf("cannot count what VMs use: %w", err)
		}
		return nil
	})
}

const (
	// lockKey is the key of the advisory lock that one hatchd at a time holds in a
	// PostgreSQL database: "hatch" in ASCII.
	lockKey = 0x6861746368
	// databaseLockTimeout is longer than the server needs, with lockKeepalives, to end
	// the session of a host that is down.
	databaseLockTimeout = 10 * time.Second
	lockPoll            = 200 * time.Millisecond
)

// lockKeepalives make the server notice within seconds that the host of a session is
// down; by default it takes hours.
var lockKeepalives = []string{"SET tcp_keepalives_idle = 3", "SET tcp_keepalives_interval = 2", "SET tcp_keepalives_count = 2"}

var errDatabaseInUse = errors.New("cannot use the database: another hatchd uses it; stop that one first, or set HATCH_DATABASE_URL to another database")

// databaseLock is the exclusive lock on a PostgreSQL database. It belongs to a
// session of the server, which releases it when the session ends.
type databaseLock struct {
	db *sqlx.DB

	mu   sync.Mutex
	conn *sql.Conn // has the lock; nil after a failure and after Close
}

// hold acquires the lock, or checks that it is still held. It waits up to timeout for
// another session to release it.
func (l *databaseLock) hold(ctx context.Context, timeout time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.conn != nil && l.ping(ctx) == nil {
		return nil
	}
	l.drop()
	conn, err := l.db.Conn(ctx)
	if err != nil {
		return fmt.Errorf("cannot connect to the database: %w", err)
	}
	l.conn = conn
	if err := acquire(ctx, conn, timeout); err != nil {
		l.drop()
		return err
	}
	return nil
}

// ping does not end with ctx: the driver would close the session, and release the
// lock, when a caller of Ping cancels.
func (l *databaseLock) ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), databaseLockTimeout)
	defer cancel()
	return l.conn.PingContext(ctx)
}

func acquire(ctx context.Context, conn *sql.Conn, timeout time.Duration) error {
	for _, statement := range lockKeepalives {
		if _, err := conn.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("cannot lock the database: %w", err)
		}
	}
	for deadline := time.Now().Add(timeout); ; {
		var got bool
		if err := conn.QueryRowContext(ctx, "SELECT pg_try_advisory_lock($1)", int64(lockKey)).Scan(&got); err != nil {
			return fmt.Errorf("cannot lock the database: %w", err)
		}
		if got {
			return nil
		}
		if !time.Now().Before(deadline) {
			return errDatabaseInUse
		}
		select {
		case <-time.After(lockPoll):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// drop closes the session: returned to the pool, it would keep the lock.
func (l *databaseLock) drop() {
	if l.conn == nil {
		return
	}
	_ = l.conn.Raw(func(any) error { return driver.ErrBadConn }) // the pool closes a connection that reports this
	_ = l.conn.Close()
	l.conn = nil
}

func (l *databaseLock) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop()
}
