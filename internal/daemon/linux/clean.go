package linux

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/link"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/vmm"
)

// Clean removes what hatchd has put on this host: VMMs that are provably
// hatchd's, bridge and packet rules; with purge the data directory too. It
// fails while a hatchd runs, also one with another data directory.
func Clean(ctx context.Context, cfg config.Config, purge bool, log *slog.Logger) error {
	claim, err := link.ClaimHost(link.RunDir, cfg.DataDir)
	if err != nil {
		return err
	}
	defer func() { _ = claim.Close() }()
	lock, err := store.LockDir(cfg.DataDir)
	if errors.Is(err, fs.ErrNotExist) {
		return link.New(link.Config{Network: cfg.Network, Log: log}).Teardown()
	}
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if purge && !isDataDir(cfg.DataDir) {
		return fmt.Errorf("cannot remove %s: it does not look like a data directory of hatchd", cfg.DataDir)
	}
	cfg.VMM = "auto" // all drivers: VMs may run on any
	drivers, err := makeDrivers(ctx, cfg, true, log)
	if err != nil {
		return fmt.Errorf("cannot look for VMs that run: %w", err)
	}
	for _, d := range drivers {
		if err := endMachines(ctx, d, filepath.Join(cfg.DataDir, daemon.VMsDir), log); err != nil {
			return err
		}
	}
	if err := errors.Join(link.New(link.Config{Network: cfg.Network, Log: log}).Teardown(), jail.Cgroups(cfg.Cgroup).Sweep()); err != nil {
		return err
	}
	log.Info("removed the bridge and the packet rules", "bridge", cfg.Network.Bridge)
	if err := memory.Unmount(filepath.Join(cfg.DataDir, daemon.MemoryDir), purge); err != nil {
		return err
	}
	if !purge {
		return nil
	}
	if err := os.RemoveAll(cfg.DataDir); err != nil {
		return fmt.Errorf("cannot remove the data directory: %w", err)
	}
	log.Info("removed the data directory", "dir", cfg.DataDir)
	return nil
}

// isDataDir reports whether hatchd has used the directory.
func isDataDir(dir string) bool {
	for _, name := range []string{"hatch.db", access.KeyFile} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

func endMachines(ctx context.Context, driver vmm.Driver, root string, log *slog.Logger) error {
	handles, err := driver.List(ctx, root)
	if err != nil {
		return err
	}
	var failures []error
	for _, h := range handles {
		m, err := driver.Adopt(ctx, h)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		log.Info("ending a VM", logkey.VM, h.ID, logkey.PID, h.PID)
		failures = append(failures, m.Kill(ctx), m.Close())
	}
	return errors.Join(failures...)
}
