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
	lock, err := store.LockDir(cfg.DataDir)
	if err != nil {
		return err
	}
	if err := addIdentity(keyfile.File{Path: cfg.SecretsKeyFile}); err != nil {
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
	if err != nil || len(ids) > 1 {
		return err
	}
	made, err := secret.NewIdentity()
	if err != nil {
		return err
	}
	return keys.Store(append(secret.Identities{made}, ids...))
}

// finishRotation encrypts secrets with the newest key, and then takes the others out of
// the key file.
func (p *parts) finishRotation(ctx context.Context, keys keyfile.File) error {
	ids, err := keys.Load()
	if err != nil || len(ids) == 1 && !p.store.Rotating() {
		return err
	}
	p.log.Info("encrypting secrets with a new key", logkey.File, keys.Path)
	if err := p.store.FinishRotation(ctx); err != nil {
		return err
	}
	return keys.Store(ids[:1])
}
