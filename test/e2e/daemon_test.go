//go:build system

package e2e

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
)

const apiPort = 8080

// allowed makes the SSH ports listen on every address. That, as the API does
// too, is so that guests are kept out by the rules and not by nobody listening.
const allowed = "HATCH_SSH_ALLOWED_CIDR=127.0.0.1/32," + uplinkAddr + "/32"

// startDaemon starts hatchd on the world's data directory and waits until it
// serves.
func (w *world) startDaemon(t *testing.T, env ...string) {
	t.Helper()
	w.daemon.Env = slices.Concat([]string{allowed}, w.driver, env)
	if err := w.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.client, err = w.daemon.Client(); err != nil {
		t.Fatal(err)
	}
}

// stopDaemon sends hatchd a signal and waits until it is gone.
func (w *world) stopDaemon(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := w.daemon.End(signal); err != nil {
		t.Error(err)
	}
}

// hatch runs the CLI and returns what it printed.
func (w *world) hatch(t *testing.T, args ...string) string {
	t.Helper()
	out, err := w.tryHatch(args...)
	if err != nil {
		t.Fatalf("hatch %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (w *world) tryHatch(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), readyLimit)
	defer cancel()
	cmd := w.command(ctx, args...)
	var errOut strings.Builder
	cmd.Stderr = &errOut
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%w: %s%s", err, out, errOut.String())
	}
	return string(out), err
}

// command is a run of hatch that has not begun.
func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(repository(), "bin", "hatch"), args...)
	cmd.Env = w.daemon.Environ()
	return cmd
}
