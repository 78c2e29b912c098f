//go:build system

package e2e

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
	"github.com/hatchvm/hatch/test/sandbox"
)

// The disk of the data directory, in MiB: when VMs are made, which needs room, and what
// is left free of it then. The guest's file is larger than that.
const (
	roomyDisk = 1300
	leftFree  = 56
	guestFile = 100
	guestDisk = 256
)

// noticed is how long hatchd may take to see how a VMM is, on a busy host.
const noticed = 2 * time.Minute

// testFullDisk lets a guest fill the disk of the data directory. It stands still, and
// loses nothing: with a full disk VMs are stopped and deleted and hatchd starts, and
// once there is room the guest goes on by itself.
func testFullDisk(t *testing.T, w *world) {
	w.moveToSmallDisk(t)
	body := minimal()
	body.DiskMiB = new(guestDisk)
	writer := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	idle := [3]api.VM{}
	for i := range idle {
		idle[i] = w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	}
	w.requireDiskHealth(t, "ok")
	w.resizeDisk(t, w.usedDisk(t)+leftFree<<20)
	w.writeBig(t, writer)
	w.awaitMachine(t, writer.ID, "HostDiskFull")
	freeDisk := w.fillRest(t)
	if why := w.hatch(t, "why", writer.ID); !strings.Contains(why, "the host's disk is full") {
		t.Errorf("hatch why does not say that the disk is full:\n%s", why)
	}
	w.requireDiskHealth(t, "degraded")
	w.stop(t, idle[0].ID)
	w.delete(t, idle[1].ID)

	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	w.requireDiskHealth(t, "degraded")
	w.awaitMachine(t, writer.ID, "HostDiskFull")
	w.stop(t, idle[2].ID)
	w.delete(t, idle[0].ID)

	freeDisk()
	w.resizeDisk(t, roomyDisk<<20)
	w.awaitMachine(t, writer.ID, "Answering")
	w.requireBig(t, writer)
	w.awaitDiskOK(t)
	w.requireLifeWithoutInodes(t)

	w.resizeDisk(t, w.usedDisk(t)+leftFree<<20)
	w.writeBig(t, writer)
	w.awaitMachine(t, writer.ID, "HostDiskFull")
	w.fillRest(t)
	w.stop(t, writer.ID)
	w.delete(t, writer.ID)
}

// requireLifeWithoutInodes takes all inodes of the disk: nothing is created then, but
// VMs are stopped and deleted and hatchd starts.
func (w *world) requireLifeWithoutInodes(t *testing.T) {
	t.Helper()
	v := w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	free := w.fillInodes(t)
	w.requireDiskHealth(t, "degraded")
	if refused, err := w.client.CreateVM(t.Context(), minimal(), client.CreateOptions{}); !client.IsExhausted(err) {
		t.Errorf("a VM is created without inodes: %s, %v", refused.ID, err)
	}
	w.stopDaemon(t, syscall.SIGTERM)
	freeMore := w.fillInodes(t) // those of files that hatchd removes at its end
	w.startDaemon(t)
	w.stop(t, v.ID)
	w.delete(t, v.ID)
	freeMore()
	free()
	w.awaitDiskOK(t)
}

// fillInodes takes all inodes that are left of the disk.
func (w *world) fillInodes(t *testing.T) (free func()) {
	t.Helper()
	var st unix.Statfs_t
	err := unix.Statfs(w.daemon.DataDir, &st)
	if err == nil {
		err = unix.Mount("", w.daemon.DataDir, "", unix.MS_REMOUNT, fmt.Sprintf("nr_inodes=%d", st.Files-st.Ffree))
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := unix.Mount("", w.daemon.DataDir, "", unix.MS_REMOUNT, "nr_inodes=100000"); err != nil {
			t.Error(err)
		}
	}
}

func (w *world) awaitDiskOK(t *testing.T) {
	t.Helper()
	if err := sandbox.Poll(noticed, func() (bool, error) { return w.diskHealth(t) == "ok", nil }); err != nil {
		t.Errorf("the disk has room again, and its health is %s", w.diskHealth(t))
	}
}

// moveToSmallDisk restarts hatchd on an empty data directory on a disk of its own, with
// the minimal image, until the end of the test.
func (w *world) moveToSmallDisk(t *testing.T) {
	t.Helper()
	w.stopDaemon(t, syscall.SIGTERM)
	t.Cleanup(func() { w.startDaemon(t) })
	images := t.TempDir()
	cover(t, w.data("images"), images, "", unix.MS_BIND, "")
	cover(t, "tmpfs", w.daemon.DataDir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=700", roomyDisk))
	if err := os.Mkdir(w.data("images"), 0o700); err != nil {
		t.Fatal(err)
	}
	cover(t, images, w.data("images"), "", unix.MS_BIND, "")
	w.startDaemon(t)
	t.Cleanup(func() { w.stopDaemon(t, syscall.SIGTERM) })
	build, err := w.client.StartImageBuild(t.Context(), api.BuildImage{Recipe: "minimal"})
	if err != nil {
		t.Fatal(err)
	}
	err = sandbox.Poll(readyLimit, func() (bool, error) {
		build, err = w.client.GetImageBuild(t.Context(), build.ID)
		return err == nil && build.State != "running", err
	})
	if err != nil || build.State != "done" {
		t.Fatalf("the image is %+v: %v", build, err)
	}
}

func (w *world) resizeDisk(t *testing.T, bytes int64) {
	t.Helper()
	if err := unix.Mount("", w.daemon.DataDir, "", unix.MS_REMOUNT, fmt.Sprintf("size=%d", bytes)); err != nil {
		t.Fatal(err)
	}
}

func (w *world) usedDisk(t *testing.T) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(w.daemon.DataDir, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// fillRest takes all that is left of the disk.
func (w *world) fillRest(t *testing.T) (free func()) {
	t.Helper()
	path := w.data("filler")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	for zeros := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(zeros)
	}
	if err = errors.Join(ignoreFull(err), f.Close()); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Error(err)
		}
	}
}

func ignoreFull(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return nil
	}
	return err
}

// writeBig lets the guest write a file, and waits for nothing: it may stand still.
func (w *world) writeBig(t *testing.T, v api.VM) {
	t.Helper()
	line := fmt.Sprintf("rm -f /written; dd if=/dev/urandom of=/big bs=1M count=%d conv=fsync && sha256sum /big >/written && sync", guestFile)
	if _, err := w.client.StartExec(t.Context(), v.ID, api.RunExec{Command: api.Command{Shell: line}}); err != nil {
		t.Fatal(err)
	}
}

// requireBig checks that the guest has written its file, and reads it as written from
// its disk.
func (w *world) requireBig(t *testing.T, v api.VM) {
	t.Helper()
	line := "while ! [ -s /written ]; do sleep 1; done; echo 3 >/proc/sys/vm/drop_caches; sha256sum -c /written && wc -c </big"
	if got := w.inside(t, v, line); !strings.HasSuffix(got, fmt.Sprint(guestFile<<20)) {
		t.Errorf("the guest's file: %s", got)
	}
}

// awaitMachine waits until the condition of a VM's machine has a reason.
func (w *world) awaitMachine(t *testing.T, id, reason string) {
	t.Helper()
	last := api.Condition{}
	err := sandbox.Poll(noticed, func() (bool, error) {
		for _, c := range w.get(t, id).Conditions {
			if c.Type == api.ConditionVMMHealthy {
				last = c
			}
		}
		return last.Reason == reason, nil
	})
	if err != nil {
		t.Fatalf("the machine of %s is %+v, want the reason %s", id, last, reason)
	}
}

func (w *world) stop(t *testing.T, id string) {
	t.Helper()
	v, err := w.client.StopVM(t.Context(), id)
	if err != nil || v.State != api.StateStopped {
		t.Fatalf("after a stop %s is %q: %v", id, v.State, err)
	}
}

func (w *world) diskHealth(t *testing.T) string {
	t.Helper()
	health, err := w.client.Health(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range health.Parts {
		if part.Name == "disk" {
			return part.Status
		}
	}
	return "missing"
}

func (w *world) requireDiskHealth(t *testing.T, want string) {
	t.Helper()
	if got := w.diskHealth(t); got != want {
		t.Errorf("the health of the disk is %s, want %s", got, want)
	}
}

// testHungVMM stops the process of a VMM, as a debugger or a disk that does not answer
// does. It is seen and told; the VM is stopped and deleted all the same, also by a
// hatchd that starts while the VMM hangs, and another VM is not delayed.
func testHungVMM(t *testing.T, w *world) {
	made := [4]api.VM{}
	for i := range made {
		made[i] = w.create(t, minimal(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	}
	stopped, deleted, back, other := made[0], made[1], made[2], made[3]
	resume := func() {}
	for _, v := range []api.VM{stopped, deleted, back} {
		resume = vmmtest.Suspend(t, vmm(t, v).pid) // in the end that of back
	}
	w.awaitMachine(t, stopped.ID, "Unresponsive")
	w.stop(t, stopped.ID)
	w.stopDaemon(t, syscall.SIGKILL)
	w.startDaemon(t)
	if got := w.inside(t, other, "echo well"); got != "well" {
		t.Errorf("another guest says %q", got)
	}
	w.delete(t, deleted.ID)
	w.awaitMachine(t, back.ID, "Unresponsive")
	resume()
	w.awaitMachine(t, back.ID, "Answering")
	if got := w.inside(t, back, "echo well"); got != "well" {
		t.Errorf("the guest of a VMM that hung says %q", got)
	}
}
