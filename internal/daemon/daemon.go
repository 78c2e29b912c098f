// Package daemon wires hatchd: it makes every part from the configuration,
// hands each the ones it needs, serves the API and shuts down in order.
//
// It decides nothing itself, and it gets everything that touches the computer
// it runs on as a [Host]: daemon/linux makes the real one. Start at [Run];
// parts.go makes the parts.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"sync"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/logkey"
)

// Options is what Run needs beside the configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	Out     io.Writer // stdout; it names the file of a new admin key, and a terminal shows the key
	Host    OpenHost
	Serving func() error // called once the API answers; nil: nothing
}

// Run serves until ctx is done. VMs go on running when it returns, unless the host
// shuts down.
func Run(ctx context.Context, cfg config.Config, opt Options) (err error) {
	if err := limitMemory(cfg); err != nil {
		return err
	}
	var p *parts
	reserve := space.NewReserve(cfg.DataDir, opt.Log)
	if err := reserve.Do(func() error { p, err = assemble(ctx, cfg, opt, reserve); return err }); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()

	api, err := p.openAPI(ctx)
	if err != nil {
		return err
	}
	addr := api.network.Addr().String()
	if err := reserve.Do(func() error { return publishAddr(addrFile(cfg.DataDir), addr) }); err != nil {
		return errors.Join(err, api.close())
	}
	if err := reserve.Do(func() error { return p.openDoors(ctx) }); err != nil {
		return errors.Join(err, api.close())
	}
	served := make(chan error, 1)
	go func() { served <- api.serve() }()
	opt.Log.Info("hatchd is serving", logkey.Addr, addr, "tls", api.tls, logkey.VMM, p.info.Name, "accel", p.info.Accel, logkey.Reason, p.info.Why, logkey.Version, opt.Version)
	if opt.Serving != nil {
		if err := opt.Serving(); err != nil {
			opt.Log.Warn("cannot tell the service manager that hatchd serves", logkey.Error, err)
		}
	}

	working, endWork := context.WithCancel(ctx)
	defer endWork()
	background := p.startBackground(working)
	select {
	case err = <-served:
	case <-ctx.Done():
	}
	endWork()
	err = errors.Join(ignoreClosed(err), p.end(ctx, api.Server, background))
	return errors.Join(err, os.Remove(addrFile(cfg.DataDir)))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func addrFile(dataDir string) string { return filepath.Join(dataDir, "hatchd.addr") }

// publishAddr writes an address to a file, for scripts that set port 0.
func publishAddr(file, addr string) error {
	tmp := file + ".new"
	if err := os.WriteFile(tmp, []byte(addr+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot publish the listening address: %w", err)
	}
	return os.Rename(tmp, file)
}

// startBackground adopts the VMs that an earlier daemon left, while the API
// already serves, and then fills the warm pool; meanwhile snapshots expire, and domains
// are proved again. The
// returned channel is closed once ctx is done and all of that has ended.
func (p *parts) startBackground(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() { p.reserve.Run(ctx) })
	work.Go(func() { p.snapshots.Run(ctx) })
	work.Go(func() { p.routes.Run(ctx) })
	work.Go(func() {
		if err := p.vms.Recover(ctx, p.vmRoot); err != nil {
			p.log.Error("cannot reconcile all VMs", logkey.Error, err)
		}
		work.Go(func() { p.idle.Run(ctx) })
		if p.e2b != nil {
			work.Go(func() { p.e2b.Run(ctx) })
		}
		if err := p.defaultImage(ctx); err != nil {
			p.log.Warn("cannot make the default image", logkey.Error, err)
		}
		p.warm.Run(ctx, p.vms)
	})
	go func() { defer close(done); work.Wait() }()
	return done
}
