//go:build system

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/internal/host/kvm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/probe"
)

const apiPort = 8080

// allowed makes the SSH ports listen on every address. That, as the API does
// too, is so that guests are kept out by the rules and not by nobody listening.
const allowed = "HATCH_SSH_ALLOWED_CIDR=127.0.0.1/32," + uplinkAddr + "/32"

// chosenDriver is the environment of a hatchd whose VMs run on what
// HATCH_TEST_VMM names: qemu, when it names nothing, or firecracker.
func chosenDriver(t *testing.T) []string {
	t.Helper()
	switch name := os.Getenv("HATCH_TEST_VMM"); name {
	case "", "qemu":
		return []string{"HATCH_VMM=qemu"}
	case "firecracker":
		if found := kvm.Probe(); !found.Usable {
			t.Fatalf("Linux on Firecracker needs KVM: %s", found.Why)
		}
		return onFirecracker(t)
	default:
		t.Fatalf("HATCH_TEST_VMM=%s: it can be qemu or firecracker", name)
		return nil
	}
}

// onFirecracker is the environment of a hatchd whose VMs run on the tests'
// Firecracker.
func onFirecracker(t *testing.T) []string {
	t.Helper()
	return []string{
		"HATCH_VMM=firecracker", "HATCH_FIRECRACKER_BIN=" + probe.Firecracker(t), "HATCH_JAILER_BIN=" + probe.Jailer(t),
	}
}

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
