package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/logkey"
)

// lookInterval is how often files are looked at.
const lookInterval = time.Second

// files is what was read from files, which may be replaced at any time.
type files[T any] struct {
	paths []string
	parse func() (T, error)
	log   *slog.Logger

	mu      sync.Mutex
	value   T
	changed []time.Time // of the files that were read
	looked  time.Time
}

// openFiles reads the files.
func openFiles[T any](log *slog.Logger, parse func() (T, error), paths ...string) (*files[T], error) {
	f := &files[T]{paths: paths, parse: parse, log: log, changed: make([]time.Time, len(paths))}
	return f, f.readLocked() // no one else has it yet
}

// current returns what the files hold. Files that do not fit each other, as while they
// are being replaced, leave the value before.
func (f *files[T]) current() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.looked) < lookInterval {
		return f.value
	}
	if err := f.readLocked(); err != nil {
		f.log.Warn("cannot read the certificate again; the one before is used", logkey.Error, err)
	}
	return f.value
}

// readLocked reads the files if they have changed.
func (f *files[T]) readLocked() error {
	f.looked = time.Now()
	changed := make([]time.Time, len(f.paths))
	for i, path := range f.paths {
		info, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("cannot read the certificate: %w", err)
		}
		changed[i] = info.ModTime()
	}
	if slices.Equal(changed, f.changed) {
		return nil
	}
	value, err := f.parse()
	if err != nil {
		return err
	}
	f.value, f.changed = value, changed
	return nil
}

// readPair reads a certificate and its key.
func readPair(certFile, keyFile string) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("cannot use the certificate %s with the key %s: %w", certFile, keyFile, err)
	}
	return &pair, nil
}

// readPool reads the certificates that clients' certificates are signed with.
func readPool(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot read the certificates of clients: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", file)
	}
	return pool, nil
}
