package certs

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// forget makes the files be looked at again at once.
func (f *files[T]) forget() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looked = time.Time{}
}

// meets reports whether a client with a certificate can speak with a server. The server
// refuses one after the client's handshake, so that only a read tells.
func meets(t *testing.T, server *tls.Config, client ...tls.Certificate) bool {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if conn, err := l.Accept(); err == nil {
			_, _ = io.WriteString(conn, "x")
			_ = conn.Close()
		}
	}()
	defer func() { _ = l.Close(); <-done }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, Certificates: client})
	_, err = io.ReadFull(secure, make([]byte, 1))
	return err == nil
}

func TestClientsNeedACertificate(t *testing.T) {
	now := time.Now()
	certFile, keyFile := pair(t, t.TempDir(), "hatch.example", now)
	load := func(name string, at time.Time) (string, tls.Certificate) {
		cert, key := pair(t, t.TempDir(), name, at)
		loaded, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		return cert, loaded
	}
	caFile, good := load("good", now)
	otherFile, other := load("other", now)
	c, err := Open(t.Context(), Config{CertFile: certFile, KeyFile: keyFile, ClientCAFile: caFile, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	server := c.TLS()
	if !meets(t, server, good) || meets(t, server, other) || meets(t, server) {
		t.Error("the wrong clients are let in")
	}
	text, err := os.ReadFile(otherFile)
	if err != nil {
		t.Fatal(err)
	}
	for _, replacement := range []string{string(text), "no certificate"} { // the second one is not used
		if err := os.WriteFile(caFile, []byte(replacement), 0o600); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Minute)
		if err := os.Chtimes(caFile, now, now); err != nil {
			t.Fatal(err)
		}
		c.clients.forget()
		if meets(t, server, good) || !meets(t, server, other) {
			t.Error("the replaced file is not used")
		}
	}
	if _, err := Open(t.Context(), Config{CertFile: certFile, KeyFile: keyFile, ClientCAFile: filepath.Join(t.TempDir(), "none"), Log: slog.New(slog.DiscardHandler)}); err == nil {
		t.Error("a missing file is no error")
	}
}
