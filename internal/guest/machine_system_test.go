//go:build system

package guest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/guest"
	"github.com/hatchvm/hatch/internal/guest/initramfs"
	"github.com/hatchvm/hatch/internal/vm"
)

// bootTimeout is how long a guest may take to boot, emulated on a busy host.
const bootTimeout = 90 * time.Second

func repository(t *testing.T) string {
	t.Helper()
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		t.Fatal("cannot find the path of this source file")
	}
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// asset returns the path that the environment names, or the one in the cache.
func asset(t *testing.T, variable, name string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(repository(t), ".cache", "test", name)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing (%v); fetch it with: make test-assets", name, err)
	}
	return path
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// packInitramfs builds the agent, and an initramfs with it.
func packInitramfs(t *testing.T, dir string, overlay bool) string {
	t.Helper()
	agent := filepath.Join(dir, "hatch-agent")
	run(t, repository(t), "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=test", "-o", agent, "./cmd/hatch-agent")
	path := filepath.Join(dir, "initramfs")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	err = initramfs.Build(f, initramfs.Source{
		AgentPath: agent, ModulesDir: asset(t, "HATCH_TEST_MODULES", "modules"), RootfsFormat: "ext4", Overlay: overlay,
	})
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
	return path
}

// formatDisk creates an ext4 image of size MiB, with the tree or empty.
func formatDisk(t *testing.T, path, tree string, size int) {
	t.Helper()
	args := []string{"-q", "-F", "-t", "ext4"}
	if tree != "" {
		args = append(args, "-d", tree)
	}
	run(t, "", "mke2fs", append(args, path, fmt.Sprintf("%dM", size))...)
}

// busyboxTree creates a root with busybox and the files, by path.
func busyboxTree(t *testing.T, applets []string, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for _, dir := range []string{"bin", "sbin", "etc/init.d", "usr/bin", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	run(t, "", "cp", "/bin/busybox", filepath.Join(root, "bin/busybox"))
	for _, path := range applets {
		if err := os.Symlink("/bin/busybox", filepath.Join(root, path)); err != nil {
			t.Fatal(err)
		}
	}
	for path, text := range files {
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// clock returns kernel parameters with the clock rate of the emulated CPU. On a busy host
// the kernel fails to measure it, and then waits for timer ticks, which the microvm
// machine does not have.
func clock(t *testing.T) string {
	t.Helper()
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	rate := regexp.MustCompile(`(?m)^cpu MHz\s*: (\d+)\.(\d{3})`).FindSubmatch(info)
	if rate == nil {
		t.Fatal("/proc/cpuinfo has no clock rate")
	}
	return fmt.Sprintf("tsc_early_khz=%s%s tsc=reliable", rate[1], rate[2])
}

// bootOptions describes the machine to boot.
type bootOptions struct {
	base    string // the read-only base; "" in mode copy
	disk    string
	cmdline string
	nic     string // MAC; "" means no NIC
	overlay bool
}

// machine is a QEMU process.
type machine struct {
	t       *testing.T
	dir     string
	started time.Time
	exited  chan struct{}
	console *lockedBuffer
}

func startMachine(t *testing.T, o bootOptions) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{t: t, dir: dir, exited: make(chan struct{}), console: &lockedBuffer{}}
	args := []string{
		"-M", "microvm,acpi=on", "-cpu", "max", "-accel", "tcg", "-m", "256", "-nodefaults", "-no-user-config",
		"-display", "none", "-global", "virtio-mmio.force-legacy=false", "-serial", "stdio",
		"-kernel", asset(t, "HATCH_TEST_KERNEL", "vmlinuz"), "-initrd", packInitramfs(t, dir, o.overlay),
		"-append", "console=ttyS0 loglevel=7 panic=-1 reboot=t " + clock(t) + " " + o.cmdline,
		"-device", "virtio-serial-device", "-chardev", "socket,id=agent,server=on,wait=off,path=" + m.socket("agent"),
		"-device", "virtserialport,chardev=agent,name=hatch.agent.0",
		"-chardev", "socket,id=raw,server=on,wait=off,path=" + m.socket("raw"), "-device", "virtserialport,chardev=raw,name=test.raw",
		"-qmp", "unix:" + m.socket("qmp") + ",server=on,wait=off",
		"-drive", "if=none,id=disk,format=raw,file=" + o.disk, "-device", "virtio-blk-device,drive=disk,serial=hatch-disk",
		"-device", "virtio-rng-device",
	}
	if o.base != "" {
		args = append(args, "-drive", "if=none,id=base,format=raw,readonly=on,file="+o.base,
			"-device", "virtio-blk-device,drive=base,serial=hatch-root")
	}
	if o.nic != "" {
		args = append(args, "-netdev", "user,id=n,restrict=on", "-device", "virtio-net-device,netdev=n,mac="+o.nic)
	}
	cmd := exec.Command("qemu-system-x86_64", args...)
	cmd.Stdout, cmd.Stderr = m.console, m.console
	m.started = time.Now()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(m.exited)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-m.exited
		if t.Failed() {
			t.Logf("console:\n%s", m.console.String())
		}
	})
	return m
}

func (m *machine) socket(name string) string { return filepath.Join(m.dir, name+".sock") }

func (m *machine) dial(ctx context.Context) (net.Conn, error) { return m.dialPort(ctx, "agent") }

func (m *machine) dialPort(ctx context.Context, name string) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "unix", m.socket(name))
}

// qmp executes one command.
func (m *machine) qmp(command string) {
	m.t.Helper()
	conn, err := net.Dial("unix", m.socket("qmp"))
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	lines := bufio.NewScanner(conn)
	lines.Scan() // greeting
	for _, c := range []string{"qmp_capabilities", command} {
		if _, err := fmt.Fprintf(conn, "{\"execute\":%q}\n", c); err != nil {
			m.t.Fatal(err)
		}
		for lines.Scan() {
			var answer struct {
				Return *json.RawMessage `json:"return"`
				Error  *json.RawMessage `json:"error"`
			}
			if err := json.Unmarshal(lines.Bytes(), &answer); err != nil || answer.Error != nil {
				m.t.Fatalf("%s: %s", c, lines.Bytes())
			}
			if answer.Return != nil {
				break
			}
		}
	}
}

func (m *machine) awaitExit(within time.Duration) {
	m.t.Helper()
	select {
	case <-m.exited:
	case <-time.After(within):
		m.t.Fatalf("the machine still runs after %v", within)
	}
}

// connect opens a session. Its reports arrive on the channel, nil when it is lost.
func (m *machine) connect() (vm.Session, <-chan *vm.GuestReport) {
	m.t.Helper()
	reports := make(chan *vm.GuestReport, 64)
	g := guest.New(slog.New(slog.NewTextHandler(logWriter{m.t}, nil)), "").
		Connect("vm_test", m.dial, func(r *vm.GuestReport) { reports <- r })
	m.t.Cleanup(func() { _ = g.Close() })
	return g, reports
}

// await returns the first report for which wanted is true.
func (m *machine) await(reports <-chan *vm.GuestReport, what string, within time.Duration, wanted func(*vm.GuestReport) bool) *vm.GuestReport {
	m.t.Helper()
	timeout := time.After(within)
	for {
		select {
		case r := <-reports:
			if wanted(r) {
				return r
			}
		case <-m.exited:
			m.t.Fatalf("the machine ended before: %s", what)
		case <-timeout:
			m.t.Fatalf("not within %v: %s", within, what)
		}
	}
}

func ready(r *vm.GuestReport) bool { return r != nil }
func lost(r *vm.GuestReport) bool  { return r == nil }

type logWriter struct{ t *testing.T }

func (w logWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(p)))
	return len(p), nil
}

// lockedBuffer collects the console.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
