package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/hatchvm/hatch/internal/daemon"
)

// backUp writes a backup to a file, which must not exist, or to stdout.
func backUp(ctx context.Context, args []string, out, errOut io.Writer) error {
	var options daemon.BackupOptions
	options.Disks, args = take(args, "--disks")
	options.WithoutKeys, args = take(args, "--without-keys")
	file, args, err := fileArgument("backup [--disks] [--without-keys] FILE|-", args)
	if err != nil {
		return err
	}
	cfg, err := loadAsUnit(args, errOut)
	if err != nil {
		return err
	}
	opt := daemon.Options{Version: version, Log: logger(cfg, errOut), Out: errOut}
	if file == "-" {
		if f, ok := out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("a backup is not written to a terminal: name a file, or pass stdout on")
		}
		return daemon.Backup(ctx, cfg, opt, options, out)
	}
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write the backup: %w", err)
	}
	err = daemon.Backup(ctx, cfg, opt, options, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(file)) // half a backup is none
	}
	return nil
}

func restore(ctx context.Context, args []string, out, errOut io.Writer) error {
	file, args, err := fileArgument("restore FILE|-", args)
	if err != nil {
		return err
	}
	cfg, err := loadAsUnit(args, errOut)
	if err != nil {
		return err
	}
	from := io.Reader(os.Stdin)
	if file != "-" {
		f, err := os.Open(filepath.Clean(file))
		if err != nil {
			return fmt.Errorf("cannot read the backup: %w", err)
		}
		defer func() { _ = f.Close() }()
		from = f
	}
	return daemon.Restore(ctx, cfg, daemon.Options{Version: version, Log: logger(cfg, errOut), Out: out}, from)
}

// fileArgument takes the last argument, which names a file; flags stay.
func fileArgument(usage string, args []string) (file string, rest []string, err error) {
	if n := len(args); n > 0 && (args[n-1] == "-" || !strings.HasPrefix(args[n-1], "-")) {
		return args[n-1], args[:n-1], nil
	}
	return "", nil, fmt.Errorf("usage: hatchd %s, the file last", usage)
}
