//go:build system

package e2e

import (
	"context"
	"errors"
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

// allowed makes the SSH ports listen on every address, as the API does: otherwise
// guests could not reach them even without rules.
const allowed = "HATCH_SSH_ALLOWED_CIDR=127.0.0.1/32," + uplinkAddr + "/32"

// chosenDriver returns the environment of hatchd for the VMM that HATCH_TEST_VMM
// names: qemu, the default, or firecracker.
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
		t.Fatalf("HATCH_TEST_VMM=%s: want qemu or firecracker", name)
		return nil
	}
}

// onFirecracker returns the environment of hatchd for the tests' Firecracker.
func onFirecracker(t *testing.T) []string {
	t.Helper()
	return []string{
		"HATCH_VMM=firecracker", "HATCH_FIRECRACKER_BIN=" + probe.Firecracker(t), "HATCH_JAILER_BIN=" + probe.Jailer(t),
	}
}

// startDaemon starts hatchd and waits until it serves.
func (w *world) startDaemon(t *testing.T, env ...string) {
	t.Helper()
	images, err := w.imageDir()
	if err != nil {
		t.Fatal(err)
	}
	w.daemon.Env = slices.Concat([]string{allowed, "HATCH_IMAGE_DIRS=" + images}, w.driver, env)
	if err := w.daemon.Start(); err != nil {
		t.Fatal(err)
	}
	if w.client, err = w.daemon.Client(); err != nil {
		t.Fatal(err)
	}
}

// imageDir makes the directory that clients may register files from. It is on the file
// system of the data directory.
func (w *world) imageDir() (string, error) {
	dir := w.daemon.DataDir + "-images"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(dir)
}

// share gives a file or a tree to imageDir under a name, as hard links if possible, and
// returns its path there.
func (w *world) share(ctx context.Context, path, name string) (string, error) {
	dir, err := w.imageDir()
	if err != nil {
		return "", err
	}
	to := filepath.Join(dir, name)
	if err := errors.Join(os.RemoveAll(to), os.MkdirAll(filepath.Dir(to), 0o755)); err != nil {
		return "", err
	}
	if exec.CommandContext(ctx, "cp", "--archive", "--link", "--no-target-directory", path, to).Run() == nil {
		return to, nil
	}
	if out, err := exec.CommandContext(ctx, "cp", "--archive", "--no-target-directory", path, to).CombinedOutput(); err != nil {
		return "", fmt.Errorf("cannot copy %s: %w: %s", path, err, out)
	}
	return to, nil
}

// stopDaemon sends hatchd a signal and waits until it has ended.
func (w *world) stopDaemon(t *testing.T, signal syscall.Signal) {
	t.Helper()
	if err := w.daemon.End(signal); err != nil {
		t.Error(err)
	}
}

// hatch runs the CLI and returns its output.
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

// command returns a command of hatch, not started.
func (w *world) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(repository(), "bin", "hatch"), args...)
	cmd.Env = w.daemon.Environ()
	return cmd
}
