package access

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
)

// KeyFile is the file in the data directory that holds the first key, for the
// CLI on the same host.
const KeyFile = "admin.key"

// MinPreset is the least length of a preset key in bytes.
const MinPreset = 16

// The key that the configuration presets.
const (
	presetID   = "key_preset"
	presetName = "preset"
)

// Bootstrap creates the admin and its first key if they do not exist, and
// writes the key to KeyFile in dataDir. created reports that firstKey was generated
// now: it is stored only in that file, so the caller should show it once.
//
// preset, if not empty, is HATCH_API_KEY: it is used instead of a generated key. If
// keys exist already, it is added, or replaces the previous preset key. The first admin is
// enabled and an admin again with it.
//
// A KeyFile that was lost is not written again, because only the key's hash is
// stored; a log line says how to get another key.
func (s *Service) Bootstrap(ctx context.Context, dataDir, preset string) (firstKey string, created bool, err error) {
	if err := checkPreset(preset); err != nil {
		return "", false, err
	}
	for id, name := range map[string]string{AdminID: "admin", SystemID: "system"} {
		now := time.Now().UTC().Truncate(time.Microsecond)
		user := User{ID: id, Name: name, Role: RoleAdmin, CreatedAt: now, UpdatedAt: now}
		if err := s.store.InsertUser(ctx, user); err != nil {
			return "", false, fmt.Errorf("cannot create the user %s: %w", name, err)
		}
	}
	keys, err := s.store.Keys(ctx, Owner(AdminID))
	if err != nil {
		return "", false, fmt.Errorf("cannot read the admin's keys: %w", err)
	}
	path := filepath.Join(dataDir, KeyFile)
	switch {
	case preset != "":
		return "", false, s.usePreset(ctx, path, preset)
	case len(keys) == 0:
		firstKey, err = s.makeFirst(ctx, path)
		return firstKey, err == nil, err
	}
	return "", false, s.checkKeyFile(path)
}

func checkPreset(preset string) error {
	if preset == "" {
		return nil
	}
	if len(preset) < MinPreset || len(preset) > maxSecret {
		return fmt.Errorf("HATCH_API_KEY has %d bytes; it must have %d to %d", len(preset), MinPreset, maxSecret)
	}
	if strings.ContainsFunc(preset, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return errors.New("HATCH_API_KEY must be printable ASCII without spaces, because it is sent in a header")
	}
	return nil
}

// makeFirst creates the first admin key. It writes the file before the row: in the
// other order, a crash in between would leave a key whose secret is lost.
func (s *Service) makeFirst(ctx context.Context, path string) (string, error) {
	secret := newSecret()
	if err := s.setKeyFileAside(path); err != nil {
		return "", err
	}
	if err := writeKeyFile(path, secret); err != nil {
		return "", err
	}
	if err := s.store.InsertKey(ctx, newKey(id.New("key_"), AdminID, "admin", secret)); err != nil {
		return "", fmt.Errorf("cannot store the admin key: %w", err)
	}
	return secret, nil
}

// usePreset stores the preset key, and writes it to the file unless the file holds a
// valid key. A key in the file that is unknown here is set aside first.
func (s *Service) usePreset(ctx context.Context, path, preset string) error {
	inFile, err := s.keyInFile(ctx, path)
	if err != nil {
		return err
	}
	restored, err := s.store.RestoreAdmin(ctx)
	if err != nil {
		return fmt.Errorf("cannot restore the admin: %w", err)
	}
	if restored {
		s.log.Warn("the first admin was disabled or no admin; HATCH_API_KEY is a key of it, so it is an admin again", logkey.User, AdminID)
	}
	sum := sha256.Sum256([]byte(preset))
	_, _, err = s.store.KeyByHash(ctx, sum[:])
	switch {
	case errs.Is(err, errs.NotFound):
		if err := s.store.ReplaceKey(ctx, newKey(presetID, AdminID, presetName, preset)); err != nil {
			return fmt.Errorf("cannot store the key of HATCH_API_KEY: %w", err)
		}
		s.revoke(ctx, revocation{keyID: presetID})
	case err != nil:
		return fmt.Errorf("cannot look up the key of HATCH_API_KEY: %w", err)
	}
	switch {
	case inFile.ID == "":
		if err := s.setKeyFileAside(path); err != nil {
			return err
		}
	case inFile.ID != presetID || bytes.Equal(inFile.Hash, sum[:]):
		return nil
	}
	return writeKeyFile(path, preset)
}

// keyInFile returns the key that the file holds; the zero key if there is no file, or
// the key is unknown.
func (s *Service) keyInFile(ctx context.Context, path string) (Key, error) {
	hash, err := keyFileHash(path)
	if err != nil || hash == nil {
		return Key{}, err
	}
	k, _, err := s.store.KeyByHash(ctx, hash)
	if errs.Is(err, errs.NotFound) {
		return Key{}, nil
	}
	return k, err
}

// KeyFileHash returns the hash of the key in the KeyFile of dataDir, nil if there is no
// such file.
func KeyFileHash(dataDir string) ([]byte, error) { return keyFileHash(filepath.Join(dataDir, KeyFile)) }

func keyFileHash(path string) ([]byte, error) {
	secret, err := readKeyFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256([]byte(secret))
	return sum[:], nil
}

// setKeyFileAside gives an existing file another name, with the time: its key may be
// that of another database. A missing one is no error.
func (s *Service) setKeyFileAside(path string) error {
	aside := path + "." + time.Now().UTC().Format("20060102T150405.000000000")
	err := os.Rename(path, aside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot keep the admin key of another database: %w", err)
	}
	s.log.Warn("the admin key's file held a key that this database does not have; it was renamed", logkey.File, path, "to", aside)
	return nil
}

// checkKeyFile logs a warning if the file is missing.
func (s *Service) checkKeyFile(path string) error {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("the admin key's file is missing; the key itself is still valid. "+
			"To get another key, run hatch key create, or start hatchd with HATCH_API_KEY set", logkey.File, path)
	} else if err != nil {
		return fmt.Errorf("cannot read the admin key's file: %w", err)
	}
	return nil
}

func readKeyFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("cannot read the admin key: %w", err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxSecret+2))
	if err != nil {
		return "", fmt.Errorf("cannot read the admin key: %w", err)
	}
	return strings.TrimSpace(string(text)), nil
}

// writeKeyFile replaces the file atomically; no other user can read it at any time.
func writeKeyFile(path, secret string) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+KeyFile+"-*") // made with mode 0600
	if err != nil {
		return fmt.Errorf("cannot write the admin key: %w", err)
	}
	_, err = f.WriteString(secret + "\n")
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("cannot write the admin key: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
