// Package postgres runs temporary PostgreSQL servers, which listen on a UNIX socket only
// and can be stopped and resumed.
//
// It is for tests only, and makes no tables. Start at [Start].
package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Server listens on a unix socket only.
type Server struct {
	dir string
	bin string // the directory of its programs
	as  *syscall.Credential
	cmd *exec.Cmd
}

// Start makes an empty cluster and starts its server; call End.
func Start() (*Server, error) {
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(bins) == 0 {
		return nil, errors.New("there is none; apt-get install postgresql")
	}
	bin := filepath.Dir(bins[len(bins)-1])
	as, err := serverUser()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("/tmp", "hatch-pg-") // short: a socket's path has 107 bytes at most
	if err != nil {
		return nil, err
	}
	s := &Server{dir: dir, bin: bin, as: as}
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chown(dir, int(as.Uid), int(as.Gid))); err != nil {
		return nil, err
	}
	initdb := exec.CommandContext(context.Background(), filepath.Join(bin, "initdb"), "-D", s.data(), "-U", "hatch", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	initdb.Dir, initdb.SysProcAttr = dir, &syscall.SysProcAttr{Credential: as}
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w: %s", err, out)
	}
	return s, s.Resume()
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// Resume starts the server again after Stop, and returns once it accepts connections.
func (s *Server) Resume() error {
	s.cmd = exec.CommandContext(context.Background(), filepath.Join(s.bin, "postgres"), "-D", s.data(), "-k", s.dir,
		"-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_connections=200")
	// No context ends it: Stop and End do. SIGQUIT ends it at once, should this test die first.
	s.cmd.Dir, s.cmd.SysProcAttr = s.dir, &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGQUIT}
	stderr, err := s.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := s.cmd.Start(); err != nil {
		return err
	}
	lines := bufio.NewScanner(stderr)
	for lines.Scan() {
		if strings.Contains(lines.Text(), "ready to accept connections") {
			go func() { _, _ = io.Copy(io.Discard, stderr) }()
			return nil
		}
	}
	return errors.Join(errors.New("it ended before it was ready"), s.cmd.Wait())
}

// Stop ends the server with its connections, as a restart of it does.
func (s *Server) Stop() error {
	err := s.cmd.Process.Signal(syscall.SIGINT)
	return errors.Join(err, s.cmd.Wait())
}

// End ends the server and removes its cluster.
func (s *Server) End() error {
	err := s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait() // the error says that it was asked to quit
	return errors.Join(err, os.RemoveAll(s.dir))
}

// serverUser is whom the server runs as; it refuses to run as root.
func serverUser() (*syscall.Credential, error) {
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

// DSN returns the address of a database.
func (s *Server) DSN(database string) string {
	return "postgres://hatch@/" + database + "?host=" + s.dir
}
