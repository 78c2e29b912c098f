//go:build system

package e2e

import (
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest/probe"
	"github.com/hatchvm/hatch/test/sandbox"
)

// TestFirecracker runs a real Firecracker under its jailer through the real
// API, with a guest that needs no hardware virtualization: the probe, a program
// of a few KiB that takes the kernel's place. What needs a Linux in the guest is
// TestRealGuests' on hosts with KVM.
func TestFirecracker(t *testing.T) {
	w := newProbeWorld(t)
	empty := w.look(t)
	for _, test := range []struct {
		name string
		run  func(*testing.T, *world)
	}{
		{"life", testProbeLife},
		{"how a guest ends", testProbeEnds},
		{"the api socket is root's", testProbeSocket},
		{"what it cannot do it says", testProbeCannot},
		{"its limits are firecracker's", testProbeLimits},
		{"frames leave with the guest's own addresses only", testProbeFrames},
		{"a hundred times asleep and awake", testProbeSleep},
		{"forks are guests of their own", testProbeForks},
		{"snapshots are gone back to, and begun from", testProbeSnapshots},
		{"hatchd is killed, stopped, and set to another driver", testProbeAdoption},
		{"hatchd is killed amid all that it does", testProbeDaemonDies},
		{"the vmm is killed amid all that it does", testProbeVMMDies},
	} {
		t.Run(test.name, func(t *testing.T) {
			test.run(t, w)
			w.requireOnly(t, empty)
		})
	}
	w.requireCleaned(t)
}

// probeMem is the memory of a guest in MiB, the least that a VM can have.
const probeMem = 64

// newProbeWorld starts a hatchd on a data directory of its own, whose VMs run
// on Firecracker, and registers the probe as its one image.
func newProbeWorld(t *testing.T) *world {
	t.Helper()
	dir, err := os.MkdirTemp("", "fc") // short: a socket's path has few bytes
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	w := &world{dir: t.TempDir(), guests: map[string]*guest{}}
	w.daemon = &sandbox.Daemon{
		Program: filepath.Join(repository(), "bin", "hatchd"),
		DataDir: filepath.Join(dir, "data"),
		LogFile: filepath.Join(w.dir, "hatchd.log"), Port: apiPort,
	}
	w.driver = onFirecracker(t)
	w.internet = openInternet(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of hatchd's log:\n%s", sandbox.Tail(w.daemon.LogFile, 80))
		}
	})
	if err := os.Mkdir(w.daemon.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	w.startDaemon(t)
	t.Cleanup(func() { w.stopDaemon(t, syscall.SIGTERM) })
	w.registerProbe(t)
	return w
}

// registerProbe makes an image of the probe and an empty root file system.
func (w *world) registerProbe(t *testing.T) {
	t.Helper()
	dir := t.TempDir()
	for _, parent := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(parent, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	root, modules := filepath.Join(dir, "root.ext4"), filepath.Join(dir, "modules")
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", root, "8M").CombinedOutput(); err != nil {
		t.Fatalf("cannot make a root file system: %v\n%s", err, out)
	}
	// Nothing of this is needed by the probe; it is what a kernel is asked for.
	var builtin []string
	for _, name := range []string{"virtio", "virtio_ring", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "ext4", "overlay", "isofs"} {
		builtin = append(builtin, "kernel/"+name+".ko\n")
	}
	if err := os.Mkdir(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{"modules.builtin": strings.Join(builtin, ""), "modules.dep": ""} {
		if err := os.WriteFile(filepath.Join(modules, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	image, err := w.client.CreateImage(t.Context(), api.CreateImage{KernelPath: probe.Build(t), RootfsPath: root, ModulesPath: modules})
	if err != nil {
		t.Fatalf("cannot register the probe: %v", err)
	}
	w.probeID = image.ID
}

// probe makes a VM whose guest is the probe, and waits until it is ready.
func (w *world) probe(t *testing.T) api.VM {
	t.Helper()
	return w.create(t, w.probeBody(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
}

func (w *world) probeBody() api.CreateVM {
	return api.CreateVM{ImageID: w.probeID, MemMiB: new(probeMem), DiskMiB: new(smallDisk)}
}

// testProbeSocket looks at a VM through its Firecracker's own API, as root may
// and nobody else.
func testProbeSocket(t *testing.T, w *world) {
	v, other := w.probe(t), w.probe(t)
	if got, err := askSocket(v.SocketPath, "/"); err != nil || !strings.Contains(got, strings.ReplaceAll(v.ID, "_", "-")) {
		t.Errorf("root is answered %q, %v", got, err)
	}
	for who, uid := range map[string]int{"nobody": 65534, "another VM's user": vmm(t, other).uid} {
		err := asUser(uid, func() error {
			_, err := askSocket(v.SocketPath, "/")
			return err
		})
		if !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s gets %v", who, err)
		}
	}
	w.delete(t, v.ID)
	w.delete(t, other.ID)
}

// askSocket asks a Firecracker for what its API has there.
func askSocket(path, what string) (string, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET "+what+" HTTP/1.1\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	return string(answer[:n]), err
}

// asUser calls do with a user's rights to files.
func asUser(uid int, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine, and nobody else gets it
		_, _ = unix.SetfsgidRetGid(uid)
		_, _ = unix.SetfsuidRetUid(uid)
		done <- do()
	}()
	return <-done
}

// requireCleaned lets hatchd remove all that it has put on the host.
func (w *world) requireCleaned(t *testing.T) {
	t.Helper()
	_ = w.probe(t) // whom it must end
	w.stopDaemon(t, syscall.SIGKILL)
	cmd := exec.Command(w.daemon.Program, "clean", "--purge")
	cmd.Env = w.daemon.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("hatchd clean: %v\n%s", err, out)
	}
	if _, err := os.Stat(w.daemon.DataDir); err == nil {
		t.Error("the data directory is still there")
	}
	for _, line := range w.look(t) {
		if strings.HasPrefix(line, "process") || strings.Contains(line, "hatch0") || strings.HasPrefix(line, "cgroup") {
			t.Errorf("hatchd clean has left %s", line)
		}
	}
	w.startDaemon(t) // for who stops it
}
