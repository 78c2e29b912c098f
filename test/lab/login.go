package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// loginTimeout bounds one try to log in; key exchange is slow where it is emulated.
const loginTimeout = 30 * time.Second

// logIn connects to the host's SSH server as root.
func (h *Host) logIn() error {
	private, err := os.ReadFile(filepath.Join(h.image.dir, keyFile))
	if err != nil {
		return err
	}
	signer, err := ssh.ParsePrivateKey(private)
	if err != nil {
		return err
	}
	line, err := os.ReadFile(filepath.Join(h.image.dir, hostKeyFile))
	if err != nil {
		return err
	}
	hostKey, _, _, _, err := ssh.ParseAuthorizedKey(line)
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", h.sshAddr(), loginTimeout)
	if err != nil {
		return err
	}
	if err := conn.SetDeadline(time.Now().Add(loginTimeout)); err != nil {
		return err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, h.sshAddr(), &ssh.ClientConfig{
		User: "root", Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)},
		HostKeyCallback: ssh.FixedHostKey(hostKey), HostKeyAlgorithms: []string{hostKey.Type()},
	})
	if err != nil {
		_ = conn.Close()
		return err
	}
	h.mu.Lock()
	h.login = ssh.NewClient(c, channels, requests)
	h.mu.Unlock()
	return conn.SetDeadline(time.Time{})
}

// session returns the session with a host that is up.
func (h *Host) session() (*ssh.Client, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.login == nil {
		return nil, errors.New("the host is down")
	}
	return h.login, nil
}

func (h *Host) logOut() {
	login, err := h.session()
	if err != nil {
		return
	}
	_ = login.Close() // the host may be gone: that is an error
	h.mu.Lock()
	h.login = nil
	h.mu.Unlock()
}

// Run runs a shell command as the host's root and returns what it printed; an error
// quotes it. stdin may be nil. When ctx ends first, the connection to the host is
// closed: a host that stands still answers nothing.
func (h *Host) Run(ctx context.Context, command string, stdin io.Reader) (string, error) {
	var out lockedBuffer
	if err := h.Stream(ctx, command, stdin, &out); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(out.String()))
	}
	return out.String(), nil
}

// Stream is Run with the output, both streams of it, written to out as it comes. out must
// allow for writes at the same time.
func (h *Host) Stream(ctx context.Context, command string, stdin io.Reader, out io.Writer) error {
	login, err := h.session()
	if err != nil {
		return fmt.Errorf("cannot run %q: %w", command, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = login.Close() })
	defer stop()
	session, err := login.NewSession()
	if err != nil {
		return fmt.Errorf("cannot run %q: %w", command, err)
	}
	defer func() { _ = session.Close() }()
	session.Stdin, session.Stdout, session.Stderr = stdin, out, out
	if err := session.Run(command); err != nil {
		return fmt.Errorf("%q: %w", command, err)
	}
	return nil
}

// lockedBuffer is a buffer for writes at the same time. It embeds none: io.Copy would use
// the buffer's ReadFrom, which takes no lock.
type lockedBuffer struct {
	mu    sync.Mutex
	bytes bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.Write(p)
}

// String returns what was written.
func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.bytes.String()
}

// Dial connects to an address as seen from the host.
func (h *Host) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	login, err := h.session()
	if err != nil {
		return nil, err
	}
	return login.DialContext(ctx, network, addr)
}
