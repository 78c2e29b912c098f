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
// tested by the other tests, on hosts with KVM.
func TestFirecracker(t *testing.T) {
	w := newProbeWorld(t)
	empty := w.traces(t)
	tests := []test{
		{"life", testProbeLife},
		{"how a guest ends", testProbeEnds},
		{"the api socket is root's", testProbeSocket},
		{"what it cannot do is refused", testProbeCannot},
		{"its limits are firecracker's", testProbeLimits},
		{"frames leave only with the guest's own addresses", testProbeFrames},
		{"a hundred times asleep and awake", testProbeSleep},
		{"forks are guests of their own", testProbeForks},
		{"snapshots are restored and cloned", testProbeSnapshots},
		{"hatchd is killed, stopped, and set to another driver", testProbeAdoption},
		{"hatchd is killed during an operation", testProbeKilledDaemon},
		{"the vmm is killed during an operation", testProbeKilledVMM},
	}
	for i, test := range tests {
		tests[i].run = func(t *testing.T, w *world) {
			test.run(t, w)
			w.requireTraces(t, empty)
		}
	}
	w.runAll(t, tests)
	w.requireCleaned(t)
}

// probeMem is the memory of a guest in MiB, the least that a VM can have.
const probeMem = 64

// newProbeWorld starts hatchd with Firecracker, and registers the probe as its only
// image.
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
	if err := os.Chmod(filepath.Dir(w.daemon.DataDir), 0o755); err != nil { // hatchd's images are beside its data
		t.Fatal(err)
	}
	root, modules := filepath.Join(dir, "root.ext4"), filepath.Join(dir, "modules")
	if out, err := exec.Command("mkfs.ext4", "-q", "-O", "^has_journal", root, "8M").CombinedOutput(); err != nil {
		t.Fatalf("cannot make a root file system: %v\n%s", err, out)
	}
	// The probe needs none of these; registering a kernel requires them.
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
	image, err := w.client.CreateImage(t.Context(), api.CreateImage{
		KernelPath: w.mustShare(t, probe.Build(t), "probe/kernel"), RootfsPath: w.mustShare(t, root, "probe/root.ext4"), ModulesPath: w.mustShare(t, modules, "probe/modules"),
	})
	if err != nil {
		t.Fatalf("cannot register the probe: %v", err)
	}
	w.probeID = image.ID
}

// probe makes a VM of the probe and waits until it is ready.
func (w *world) probe(t *testing.T) api.VM {
	t.Helper()
	return w.create(t, w.probeBody(), client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
}

func (w *world) probeBody() api.CreateVM {
	return api.CreateVM{MachineSpec: api.MachineSpec{ImageID: w.probeID, MemMiB: new(probeMem), DiskMiB: new(smallDisk)}}
}

// testProbeSocket checks that only root can use the API socket of a VM's Firecracker.
func testProbeSocket(t *testing.T, w *world) {
	v, other := w.probe(t), w.probe(t)
	if got, err := getSocket(v.SocketPath, "/"); err != nil || !strings.Contains(got, strings.ReplaceAll(v.ID, "_", "-")) {
		t.Errorf("root gets %q, %v", got, err)
	}
	for name, uid := range map[string]int{"an unprivileged user": 65534, "another VM's user": vmm(t, other).uid} {
		t.Run(name, func(t *testing.T) {
			err := asUser(uid, func() error {
				_, err := getSocket(v.SocketPath, "/")
				return err
			})
			if !errors.Is(err, fs.ErrPermission) {
				t.Errorf("it gets %v", err)
			}
		})
	}
	w.delete(t, v.ID)
	w.delete(t, other.ID)
}

// getSocket sends a GET request to a Firecracker's API socket.
func getSocket(path, url string) (string, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	if _, err := io.WriteString(conn, "GET "+url+" HTTP/1.1\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	return string(answer[:n]), err
}

// asUser calls do with a user's file permissions.
func asUser(uid int, do func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		_, _ = unix.SetfsgidRetGid(uid)
		_, _ = unix.SetfsuidRetUid(uid)
		done <- do()
	}()
	return <-done
}

// requireCleaned checks that hatchd clean removes everything of hatchd from the host.
func (w *world) requireCleaned(t *testing.T) {
	t.Helper()
	_ = w.probe(t) // hatchd clean must end it
	w.stopDaemon(t, syscall.SIGKILL)
	cmd := exec.Command(w.daemon.Program, "clean", "--purge")
	cmd.Env = w.daemon.Environ()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("hatchd clean: %v\n%s", err, out)
	}
	if _, err := os.Stat(w.daemon.DataDir); err == nil {
		t.Error("the data directory still exists")
	}
	for _, line := range w.traces(t) {
		if strings.HasPrefix(line, "process") || strings.Contains(line, "hatch0") || strings.HasPrefix(line, "cgroup") {
			t.Errorf("hatchd clean has left %s", line)
		}
	}
	w.startDaemon(t) // the world's cleanup stops it
}
