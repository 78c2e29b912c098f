// Package daemon wires hatchd: it makes every part from the configuration,
// hands each the ones it needs, serves the API and shuts down in order.
//
// It is the only package that knows all others, and it decides nothing itself.
// Start at [Run]; parts.go makes the parts, fake.go stands in for the host
// when HATCH_VMM=fake.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/config"
)

// shutdownPatience bounds how long requests and operations under way may take
// to end after the daemon was asked to.
const shutdownPatience = 30 * time.Second

// Options is what Run needs beside the configuration.
type Options struct {
	Version string
	Log     *slog.Logger
	Out     io.Writer // for the admin key, shown once
}

// Run serves until ctx is done. VMs go on running when it returns.
func Run(ctx context.Context, cfg config.Config, opt Options) (err error) {
	p, err := assemble(ctx, cfg, opt)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.close()) }()

	listener, err := net.Listen("tcp", cfg.HTTPAddr)
	if err != nil {
		return fmt.Errorf("cannot listen on HATCH_HTTP_ADDR %s: %w", cfg.HTTPAddr, err)
	}
	if err := publishAddr(cfg.DataDir, listener.Addr().String()); err != nil {
		return errors.Join(err, listener.Close())
	}
	server := &http.Server{
		Handler:           p.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		// No WriteTimeout: waits and log streams are long, and each bounds itself.
		ErrorLog:    slog.NewLogLogger(opt.Log.Handler(), slog.LevelWarn),
		BaseContext: func(net.Listener) context.Context { return p.streams },
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	opt.Log.Info("hatchd is serving", "addr", listener.Addr().String(), "vmm", p.info.Name, "accel", p.info.Accel, "why", p.info.Why, "version", opt.Version)

	settled := p.settle(ctx)
	select {
	case err = <-served:
	case <-ctx.Done():
		opt.Log.Info("hatchd is shutting down; VMs go on running")
	}
	p.endStreams()
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownPatience)
	defer cancel()
	err = errors.Join(ignoreClosed(err), ignoreClosed(server.Shutdown(patience)))
	<-settled
	p.shut()
	return errors.Join(err, p.vms.Close(patience), os.Remove(addrFile(cfg.DataDir)))
}

func ignoreClosed(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func addrFile(dataDir string) string { return filepath.Join(dataDir, "hatchd.addr") }

// publishAddr writes where the API listens, for scripts that asked for port 0.
func publishAddr(dataDir, addr string) error {
	tmp := addrFile(dataDir) + ".new"
	if err := os.WriteFile(tmp, []byte(addr+"\n"), 0o600); err != nil {
		return fmt.Errorf("cannot publish the listening address: %w", err)
	}
	return os.Rename(tmp, addrFile(dataDir))
}

// settle takes over what an earlier daemon left, while the API already serves,
// and then keeps guests booted. Meanwhile snapshots that get too old are removed.
// The returned channel is closed once ctx is done and all that has ended.
func (p *parts) settle(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() { p.kept.Run(ctx) })
	work.Go(func() {
		if err := p.vms.Adopt(ctx, p.vmRoot); err != nil {
			p.log.Error("cannot bring every VM to a true state", "err", err)
		}
		if err := p.defaultImage(ctx); err != nil {
			p.log.Warn("there is no default image yet", "err", err)
		}
		p.warm.Run(ctx, p.vms)
	})
	go func() { defer close(done); work.Wait() }()
	return done
}
