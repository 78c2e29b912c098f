// Command hatchd is the daemon of Hatch: it serves the REST API and runs
// virtual machines on this host.
//
//	hatchd [flags]           serve
//	hatchd config [flags]    print what is in force and from where
//	hatchd doctor [flags]    examine this host
//	hatchd clean [flags]     remove what hatchd has put on this host
//	hatchd backup FILE       write a backup; hatchd may be running
//	hatchd restore FILE      restore one to an empty data directory
//	hatchd rotate-secrets    encrypt secrets with a new key
//	hatchd version
//
// It only reads flags and hands over: start reading at internal/daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"text/tabwriter"

	systemd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/pflag"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/daemon"
	"github.com/hatchvm/hatch/internal/daemon/linux"
)

// version is set by the linker; see the Makefile.
var version = "dev"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintf(os.Stderr, "hatchd: %v\n", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop has been called
	}
}

const usage = `hatchd is the daemon of Hatch: it serves the REST API and runs virtual machines.

Usage:
  hatchd [flags]           serve
  hatchd config [flags]    print what is in force and from where
  hatchd doctor [flags]    examine this host (-o json, --fix)
  hatchd clean [flags]     remove what hatchd has put on this host (--purge: its data too)
  hatchd backup FILE|-     write a backup, also while hatchd runs (--disks, --without-keys)
  hatchd restore FILE|-    restore a backup to an empty data directory
  hatchd rotate-secrets    encrypt the secrets in the database with a new key, while hatchd is stopped
  hatchd version

Flags:
`

func run(ctx context.Context, args []string, out, errOut io.Writer) error {
	command := "serve"
	if len(args) > 0 && len(args[0]) > 0 && args[0][0] != '-' {
		command, args = args[0], args[1:]
	}
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"serve": serve, "config": showConfig, "doctor": examine, "clean": clean, "rotate-secrets": rotateSecrets, "backup": backUp, "restore": restore,
		"version": showVersion, "help": help,
	}
	do, ok := commands[command]
	if !ok {
		return fmt.Errorf("there is no command %q; hatchd help lists them", command)
	}
	err := do(ctx, args, out, errOut)
	if errors.Is(err, pflag.ErrHelp) {
		return help(ctx, nil, out, errOut)
	}
	return err
}

func help(_ context.Context, _ []string, out, _ io.Writer) error {
	_, err := fmt.Fprint(out, usage, config.Flags().FlagUsages())
	return err
}

func showVersion(_ context.Context, _ []string, out, _ io.Writer) error {
	_, err := fmt.Fprintln(out, "hatchd", version)
	return err
}

// load reads the configuration and prints its warnings. The environment wins over
// defaults, which are variables, too.
func load(args []string, errOut io.Writer, defaults ...string) (config.Config, error) {
	sources, err := config.FromProcess(args)
	if err != nil {
		return config.Config{}, err
	}
	sources.Environ = append(defaults, sources.Environ...)
	cfg, err := config.Load(sources)
	if err != nil {
		return config.Config{}, err
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintln(errOut, "hatchd: warning:", w)
	}
	return cfg, nil
}

func logger(cfg config.Config, out io.Writer) *slog.Logger {
	options := &slog.HandlerOptions{Level: cfg.LogLevel}
	if cfg.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(out, options))
	}
	return slog.New(slog.NewTextHandler(out, options))
}

func serve(ctx context.Context, args []string, out, errOut io.Writer) error {
	cfg, err := load(args, errOut)
	if err != nil {
		return err
	}
	return daemon.Run(ctx, cfg, daemon.Options{Version: version, Log: logger(cfg, errOut), Out: out, Host: linux.Open, Serving: serving})
}

// serving tells systemd, if it has started hatchd, that the API answers.
func serving() error {
	_, err := systemd.SdNotify(true, systemd.SdNotifyReady)
	return err
}

func showConfig(_ context.Context, args []string, out, errOut io.Writer) error {
	cfg, err := loadAsUnit(args, errOut)
	if err != nil {
		return err
	}
	table := tabwriter.NewWriter(out, 0, 4, 2, ' ', 0)
	fmt.Fprintln(table, "SETTING\tVALUE\tSOURCE")
	for _, v := range cfg.Values() {
		fmt.Fprintf(table, "%s\t%s\t%s\n", v.Env, v.Value, v.Source)
	}
	return table.Flush()
}

func clean(ctx context.Context, args []string, _, errOut io.Writer) error {
	purge, args := take(args, "--purge")
	cfg, err := loadAsUnit(args, errOut)
	if err != nil {
		return err
	}
	return linux.Clean(ctx, cfg, purge, logger(cfg, errOut))
}

func rotateSecrets(ctx context.Context, args []string, out, errOut io.Writer) error {
	cfg, err := loadAsUnit(args, errOut)
	if err != nil {
		return err
	}
	return daemon.RotateSecrets(ctx, cfg, daemon.Options{Version: version, Log: logger(cfg, errOut), Out: out})
}

// take removes flag from args and reports whether it was there.
func take(args []string, flag string) (found bool, rest []string) {
	for _, a := range args {
		if a == flag {
			found = true
			continue
		}
		rest = append(rest, a)
	}
	return found, rest
}
