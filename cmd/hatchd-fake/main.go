// Command hatchd-fake is hatchd on a fake host: the real API, database and
// services, but VMs are pretended. It needs no root and no VMM.
//
//	hatchd-fake [flags]    serve; flags and environment are hatchd's
//
// It is for scripts and tests; see internal/fake/host for what is pretended.
// HATCH_VMM has no effect.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/fake/host"
)

// version is set by the linker; see the Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "hatchd-fake: %v\n", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

func run(ctx context.Context) error {
	sources, err := config.FromProcess(os.Args[1:])
	if err != nil {
		return err
	}
	cfg, err := config.Load(sources)
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: cfg.LogLevel}))
	return daemon.Run(ctx, cfg, daemon.Options{Version: version, Log: log, Out: os.Stdout, Host: host.Open})
}
