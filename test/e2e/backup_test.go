//go:build system

package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// testBackup loses the data directory, and restores it: the disk of a stopped guest, the
// memory of one that sleeps, and that only.
func testBackup(t *testing.T, w *world) {
	ready := client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit}
	stopped, asleep := w.create(t, minimal(), ready), w.create(t, minimal(), ready)
	w.inside(t, stopped, "echo on disk >/root/marker; sync")
	w.inside(t, asleep, "echo in memory >/dev/marker")
	w.stop(t, stopped.ID)
	if _, err := w.client.SleepVMDurably(t.Context(), asleep.ID); err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "backup")
	began := time.Now()
	t.Logf("backup: %s", w.hatchd(t, "backup", "--disks", archive))
	took(t, "a backup of two small guests", began)
	st, err := os.Stat(archive)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the backup: %v, %v", st, err)
	}
	t.Logf("it has %d KiB", st.Size()>>10)
	w.inside(t, w.boot(t, stopped.ID), "echo after the backup >/root/marker; sync")
	w.stop(t, stopped.ID)
	w.stopDaemon(t, syscall.SIGTERM)
	w.loseData(t)
	began = time.Now()
	t.Logf("restore: %s", w.hatchd(t, "restore", archive))
	took(t, "its restore", began)
	w.startDaemon(t)
	if got := w.inside(t, w.boot(t, stopped.ID), "cat /root/marker"); got != "on disk" {
		t.Errorf("the disk has %q", got)
	}
	if _, err := w.client.WakeVM(t.Context(), asleep.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.inside(t, asleep, "cat /dev/marker"); got != "in memory" {
		t.Errorf("the memory has %q", got)
	}
}

// loseData moves the data directory away until the end of the test.
func (w *world) loseData(t *testing.T) {
	t.Helper()
	lost := w.daemon.DataDir + "-lost"
	if err := os.Rename(w.daemon.DataDir, lost); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = unix.Unmount(filepath.Join(lost, "memory"), unix.MNT_DETACH) // if it is mounted
		if err := os.RemoveAll(lost); err != nil {
			t.Error(err)
		}
	})
}

// hatchd runs a command of hatchd beside the daemon.
func (w *world) hatchd(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, w.daemon.Program, args...)
	cmd.Env = w.daemon.Environ()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("hatchd %v: %v\n%s", args, err, out)
	}
	return string(out)
}

// boot starts a VM, and waits until it is ready.
func (w *world) boot(t *testing.T, id string) api.VM {
	t.Helper()
	if _, err := w.client.StartVM(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	return w.await(t, id, "ready", readyLimit)
}
