//go:build system

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	loginLimit   = 90 * time.Second
	attemptLimit = 30 * time.Second
	commandLimit = 60 * time.Second
)

// shell is a login to a guest through its ssh_port.
type shell struct {
	client  *ssh.Client
	hostKey string
}

// login connects to the VM's ssh_port on the host.
func (w *world) login(t *testing.T, v api.VM) *shell {
	t.Helper()
	var s *shell
	var last error
	err := sandbox.Poll(loginLimit, func() (bool, error) {
		s, last = w.tryLogin(v)
		return last == nil, nil
	})
	if err != nil {
		t.Fatalf("cannot log in to %s on port %d: %v", v.ID, v.SSHPort, errors.Join(err, last))
	}
	t.Cleanup(func() { _ = s.client.Close() })
	return s
}

func (w *world) tryLogin(v api.VM) (*shell, error) {
	var s shell
	cfg := &ssh.ClientConfig{
		User: debianUser, Auth: []ssh.AuthMethod{ssh.PublicKeys(w.signer)}, Timeout: attemptLimit,
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			s.hostKey = ssh.FingerprintSHA256(key)
			return nil
		},
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(v.SSHPort))
	conn, err := net.DialTimeout("tcp", addr, attemptLimit)
	if err != nil {
		return nil, err
	}
	// A guest may vanish during the handshake, without closing the connection.
	if err := conn.SetDeadline(time.Now().Add(attemptLimit)); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	session, channels, requests, err := ssh.NewClientConn(conn, addr, cfg)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	s.client = ssh.NewClient(session, channels, requests)
	return &s, conn.SetDeadline(time.Time{})
}

// run runs a shell line in the guest and returns its output.
func (s *shell) run(t *testing.T, format string, args ...any) string {
	t.Helper()
	line := fmt.Sprintf(format, args...)
	out, status := s.try(t, line)
	if status != 0 {
		t.Fatalf("in the guest, %q ended with %d: %s", line, status, out)
	}
	return strings.TrimSuffix(out, "\n")
}

// try runs a shell line and returns its output and its status, -1 when the
// connection broke first.
func (s *shell) try(t *testing.T, line string) (string, int) {
	t.Helper()
	session, err := s.client.NewSession()
	if err != nil {
		t.Errorf("cannot open a session: %v", err)
		return "", -1
	}
	defer session.Close()
	var out, errOut bytes.Buffer // two, because two goroutines write to them
	session.Stdout, session.Stderr = &out, &errOut
	ended := make(chan error, 1)
	if err := session.Start(line); err != nil {
		t.Errorf("cannot start %q in the guest: %v", line, err)
		return "", -1
	}
	go func() { ended <- session.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(commandLimit):
		t.Errorf("in the guest, %q has not ended after %s", line, commandLimit)
		return "", -1
	}
	var exit *ssh.ExitError
	switch {
	case errors.As(err, &exit):
		return out.String() + errOut.String(), exit.ExitStatus()
	case err != nil:
		return out.String() + errOut.String(), -1
	}
	return out.String(), 0
}

// bootID returns the id of the guest's boot.
func (s *shell) bootID(t *testing.T) string {
	t.Helper()
	return s.run(t, "cat /proc/sys/kernel/random/boot_id")
}

// connects reports whether the guest can open a TCP connection.
func (s *shell) connects(t *testing.T, addr string, port int) bool {
	t.Helper()
	_, status := s.try(t, fmt.Sprintf("timeout 4 bash -c 'exec 3<>/dev/tcp/%s/%d'", addr, port))
	return status == 0
}
