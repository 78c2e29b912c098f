//go:build system

package e2e

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/probe"
)

// testFailedCreates injects one fault after another. Each time the create must be
// refused with a reason and leave nothing on the host, and the next must succeed.
func testFailedCreates(t *testing.T, w *world) {
	for _, fault := range []struct {
		name   string
		step   string // of the start, as state_reason names it
		inject func(*testing.T) (remove func())
	}{
		{"there is no space for its disk", "files", w.fillDisk},
		{"no TAP can be made", "network", w.hideTUN},
		{"the VMM does not start", "machine", w.replaceVMM("/bin/false")},
		{"the VMM is another program", "machine", w.replaceVMM("/bin/true")},
	} {
		t.Run(fault.name, func(t *testing.T) {
			before := w.traces(t)
			files := w.openFiles(t)
			remove := fault.inject(t)
			broken := w.traces(t) // the fault may be a mount
			_, err := w.client.CreateVM(t.Context(), minimal(), client.CreateOptions{})
			failed := w.failedVM(t, broken)
			remove()
			if err == nil {
				t.Fatal("the create has succeeded: the fault has no effect")
			}
			t.Logf("the answer: %v", err)
			requireCleanFailure(t, failed, fault.step)
			w.delete(t, failed.ID)
			w.requireTraces(t, before)
			if now := w.openFiles(t); now > files+2 {
				t.Errorf("hatchd had %d files open before, %d after", files, now)
			}
			v := w.create(t, minimal(), client.CreateOptions{})
			w.delete(t, v.ID)
			w.requireTraces(t, before)
		})
	}
	t.Run("its kernel is missing", w.testMissingKernel)
	t.Run("every ssh port is taken", w.testNoFreePort)
}

// failedVM returns the VM of the failed create, and checks that its row is all that
// the create has left.
func (w *world) failedVM(t *testing.T, before traces) api.VM {
	t.Helper()
	if more := minus(w.traces(t), before); len(more) > 0 {
		t.Errorf("the failed create has left:\n%s", strings.Join(more, "\n"))
	}
	for v, err := range w.client.ListVMs(t.Context(), client.ListOptions{State: api.StateError}) {
		if err != nil {
			t.Fatal(err)
		}
		return w.get(t, v.ID)
	}
	t.Fatal("the failed create has left no row with a reason")
	return api.VM{}
}

func requireCleanFailure(t *testing.T, v api.VM, step string) {
	t.Helper()
	if v.StateReason == "" || !strings.Contains(v.StateReason, "("+step+")") {
		t.Errorf("the reason is %q, want one that names the step %s", v.StateReason, step)
	}
	if v.GuestIP != "" || v.SSHPort != 0 || v.TapName != "" || v.GuestMAC != "" {
		t.Errorf("a VM that failed has an address: %+v", v)
	}
}

// openFiles returns how many files hatchd has open.
func (w *world) openFiles(t *testing.T) int {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.daemon.PID()))
	if err != nil {
		t.Fatal(err)
	}
	return len(fds)
}

// fillDisk mounts a full file system where VMs' files go.
func (w *world) fillDisk(t *testing.T) func() {
	t.Helper()
	return cover(t, "tmpfs", w.data("vms"), "tmpfs", 0, "size=4k,nr_inodes=3,mode=700")
}

// hideTUN replaces /dev/net/tun by a device that makes no TAP.
func (w *world) hideTUN(t *testing.T) func() {
	t.Helper()
	return cover(t, "/dev/null", "/dev/net/tun", "", unix.MS_BIND, "")
}

// replaceVMM replaces the VMM's program by another.
func (w *world) replaceVMM(program string) func(*testing.T) func() {
	return func(t *testing.T) func() {
		t.Helper()
		vmm := "/usr/bin/qemu-system-x86_64"
		if slices.Contains(w.driver, "HATCH_VMM=firecracker") {
			vmm = probe.Firecracker(t)
		}
		vmm, err := filepath.EvalSymlinks(vmm)
		if err != nil {
			t.Fatal(err)
		}
		return cover(t, program, vmm, "", unix.MS_BIND, "")
	}
}

// cover mounts a file system over a path of the sandbox until the returned function
// is called.
func cover(t *testing.T, source, target, kind string, flags uintptr, options string) func() {
	t.Helper()
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatalf("cannot cover %s: %v", target, err)
	}
	covered := true
	uncover := func() {
		if !covered {
			return
		}
		covered = false
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Errorf("cannot uncover %s: %v", target, err)
		}
	}
	t.Cleanup(uncover)
	return uncover
}

// testMissingKernel removes an image's kernel after its registration.
func (w *world) testMissingKernel(t *testing.T) {
	before := w.traces(t)
	image := w.registerOwnKernel(t, "missing")
	if err := os.Remove(image.KernelPath); err != nil {
		t.Fatal(err)
	}
	body := minimal()
	body.ImageID = image.ID
	v, err := w.client.CreateVM(t.Context(), body, client.CreateOptions{})
	if err == nil {
		w.cleanUp(t, v.ID)
		t.Fatal("a VM was created without a kernel")
	}
	if !client.IsConflict(err) {
		t.Errorf("the answer is %v, want a conflict", err)
	}
	w.requireTraces(t, before)
}

// testNoFreePort leaves hatchd one SSH port, which another process has.
func (w *world) testNoFreePort(t *testing.T) {
	taken, err := net.Listen("tcp", "0.0.0.0:15999")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	w.stopDaemon(t, syscall.SIGTERM)
	w.startDaemon(t, "HATCH_SSH_PORT_MIN=15999", "HATCH_SSH_PORT_MAX=15999")
	defer func() {
		w.stopDaemon(t, syscall.SIGTERM)
		w.startDaemon(t)
	}()
	before := w.traces(t)
	v, err := w.client.CreateVM(t.Context(), minimal(), client.CreateOptions{})
	if err == nil {
		w.cleanUp(t, v.ID)
		t.Fatal("a VM was created without a free SSH port")
	}
	t.Logf("the answer: %v", err)
	if !client.IsExhausted(err) && !client.IsConflict(err) {
		t.Errorf("the answer is %v, want 507 or 409", err)
	}
	w.requireTraces(t, before)
}
