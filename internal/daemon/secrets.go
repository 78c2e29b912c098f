package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/host/keyfile"
	"github.com/hatchvm/hatch/internal/host/owned"
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/store"
)

// lastingKeys is a key file of a data directory, which is made only where it lasts as
// long as that.
type lastingKeys struct {
	keyfile.File
	dataDir string
}

// Create implements [store.KeyFile].
func (k lastingKeys) Create() (secret.Identities, error) {
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("cannot make the key of the secrets: %w: let hatchd make it at a first start with HATCH_SECRETS_KEY_FILE on a disk, and copy it from there at each boot", err)
	}
	return k.File.Create()
}

// check refuses a file that is in memory, unless the data directory is there, too.
func (k lastingKeys) check() error {
	volatile, err := k.Volatile()
	if err != nil || !volatile {
		return err
	}
	if volatile, err = (keyfile.File{Path: filepath.Join(k.dataDir, keyfile.Name)}).Volatile(); err != nil || volatile {
		return err
	}
	return fmt.Errorf("%s is in memory (tmpfs), and a restart of the host would lose it with all secrets", k.Path)
}

// RotateSecrets encrypts all secrets with a new key, while no daemon runs. It may be
// interrupted at any time: the new key is in the key file before anything is encrypted
// with it, and the old one until nothing needs it. The next call, or start of the
// daemon, goes on.
func RotateSecrets(ctx context.Context, cfg config.Config, opt Options) (err error) {
	if _, err := os.Stat(cfg.SecretsKeyFile); err != nil {
		return fmt.Errorf("cannot rotate the secrets: %w; hatchd makes the key at its first start", err)
	}
	if err := owned.Check(cfg.DataDir, cfg.TrustDataDirParents); err != nil {
		return fmt.Errorf("cannot use HATCH_DATA_DIR %s: %w", cfg.DataDir, err)
	}
	keys := keyfile.File{Path: cfg.SecretsKeyFile}
	if err := (lastingKeys{keys, cfg.DataDir}).check(); err != nil {
		return fmt.Errorf("cannot rotate the secrets: %w: set HATCH_SECRETS_KEY_FILE to the copy on a disk for this command, and copy that to %s again afterwards", err, cfg.SecretsKeyFile)
	}
	lock, err := store.LockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	if err := addIdentity(keys); err != nil {
		return errors.Join(err, lock.Close())
	}
	if err := lock.Close(); err != nil { // which openStore holds
		return err
	}
	p := &parts{cfg: cfg, log: opt.Log, reserve: space.NewReserve(cfg.DataDir, opt.Log), vmRoot: filepath.Join(cfg.DataDir, VMsDir)}
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.openStore(ctx); err != nil {
		return err
	}
	_, err = fmt.Fprintf(opt.Out, "The secrets are encrypted with a new key, in %s.\nA backup that was made without keys before needs the key that it was made with.\n", cfg.SecretsKeyFile)
	return err
}

// addIdentity puts a new identity before those of the key file. If a rotation was
// interrupted, that one is finished instead.
func addIdentity(keys keyfile.File) error {
	ids, err := keys.Load()
	if err != nil || ids.Rotating() {
		return err
	}
	if ids, err = ids.Rotated(); err != nil {
		return err
	}
	return keys.Store(ids)
}

// finishRotation encrypts secrets with the newest key, and then takes the retired ones
// out of the key file. Others in it, which a rotation has not put there, stay.
func (p *parts) finishRotation(ctx context.Context, keys keyfile.File) error {
	ids, err := keys.Load()
	if err != nil || !ids.Rotating() && !p.store.Rotating() {
		return err
	}
	p.log.Info("encrypting secrets with a new key", logkey.File, keys.Path)
	if err := p.store.FinishRotation(ctx); err != nil || !ids.Rotating() {
		return err
	}
	if err := keys.Store(ids.Kept()); err != nil { // the next start tries again
		p.log.Warn("a retired key stays in the key file", logkey.File, keys.Path, logkey.Error, err)
	}
	return nil
}
