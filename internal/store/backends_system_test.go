//go:build system

package store

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// backend makes empty databases.
type backend struct {
	name string
	dsn  func(t testing.TB) string
}

// backends are the databases that every test runs on.
func backends() []backend {
	return []backend{{"sqlite", sqliteDSNFor}, {"postgres", postgresDSNFor}}
}

// cluster starts the PostgreSQL server of this test run, once; TestMain ends it.
var cluster = sync.OnceValues(startPostgres)

func TestMain(m *testing.M) {
	if dsn := os.Getenv(holdDatabase); dsn != "" {
		hold(dsn)
	}
	m.Run()
	if server, err := cluster(); err == nil {
		if err := server.end(); err != nil {
			panic(fmt.Errorf("cannot end PostgreSQL: %w", err))
		}
	}
}

// postgres is a temporary server that listens on a unix socket only.
type postgres struct {
	dir  string
	bin  string // the directory of its programs
	as   *syscall.Credential
	cmd  *exec.Cmd
	made atomic.Int64 // databases so far
}

func startPostgres() (*postgres, error) {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(bins) == 0 {
		return nil, errors.New("there is none; apt-get install postgresql")
	}
	bin := filepath.Dir(bins[len(bins)-1])
	as, err := postgresUser()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "hatch-pg-") // short: a socket's path has 107 bytes at most
	if err != nil {
		return nil, err
	}
	p := &postgres{dir: dir, bin: bin, as: as}
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chown(dir, int(as.Uid), int(as.Gid))); err != nil {
		return nil, err
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", p.data(), "-U", "hatch", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return p, p.start()
}

func (p *postgres) data() string { return filepath.Join(p.dir, "data") }

// start returns once the server accepts connections.
func (p *postgres) start() error {
	p.cmd = exec.Command(filepath.Join(p.bin, "postgres"), "-D", p.data(), "-k", p.dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200")
	// SIGQUIT ends it at once, should this test die first.
	p.cmd.Dir, p.cmd.SysProcAttr = p.dir, &syscall.SysProcAttr{Credential: p.as, Pdeathsig: syscall.SIGQUIT}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "ready to accept connections") {
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return nil
		}
	}
	return errors.Join(errors.New("it ended before it was ready"), p.cmd.Wait())
}

// stop ends the server with its connections, as a restart of it does. start starts it
// again.
func (p *postgres) stop() error {
	err := p.cmd.Process.Signal(syscall.SIGINT)
	return errors.Join(err, p.cmd.Wait())
}

func (p *postgres) end() error {
	err := p.cmd.Process.Signal(syscall.SIGQUIT)
	_ = p.cmd.Wait() // the error says that it was asked to quit
	return errors.Join(err, os.RemoveAll(p.dir))
}

// postgresUser is whom the server runs as; it refuses to run as root.
func postgresUser() (*syscall.Credential, error) {
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("daemon"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, err
}

func (p *postgres) dsn(database string) string {
	return "postgres://hatch@/" + database + "?host=" + p.dir
}

func postgresDSNFor(t testing.TB) string {
	t.Helper()
	server, err := cluster()
	if err != nil {
		t.Fatalf("cannot start PostgreSQL: %v", err)
	}
	name := fmt.Sprintf("t%d", server.made.Add(1))
	admin, err := sql.Open("pgx", server.dsn("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = admin.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := admin.ExecContext(ctx, "CREATE DATABASE "+name); err != nil {
		t.Fatal(err)
	}
	return server.dsn(name)
}
