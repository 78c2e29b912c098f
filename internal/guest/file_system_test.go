//go:build system

package guest_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/vm"
)

// diskGuest boots a guest with a disk of size MiB.
func diskGuest(t *testing.T, size int) (*machine, vm.Session) {
	t.Helper()
	dir := t.TempDir()
	o := bootOptions{
		base: filepath.Join(dir, "base"), disk: filepath.Join(dir, "disk"), overlay: true,
		cmdline: "hatch.mode=overlay hatch.rootfs=ext4 hatch.hostname=web-1",
	}
	formatDisk(t, o.base, busyboxTree(t, append(applets, "sbin/init"), map[string]string{"etc/inittab": inittab, "etc/init.d/rcS": "#!/bin/sh\n"}), 16)
	formatDisk(t, o.disk, "", size)
	m := startMachine(t, o)
	g, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	return m, g
}

// noise returns a reader of size pseudo-random bytes, the same at each call, and the hash
// of those that were read.
func noise(size int64) (io.Reader, hash.Hash) {
	sum := sha256.New()
	return io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum), sum
}

// sh runs a line in the guest and returns its output.
func sh(t *testing.T, g process.Guest, line string) string {
	t.Helper()
	out, err := runLine(g, line)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func runLine(g process.Guest, line string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	stream, err := g.Exec(ctx, process.Spec{Shell: line})
	if err != nil {
		return "", err
	}
	defer func() { _ = stream.Close() }()
	var out bytes.Buffer
	for {
		chunk, err := stream.Next()
		if err != nil {
			return "", err
		}
		out.Write(chunk.Data)
		if chunk.Exit != nil && chunk.Exit.Code != 0 {
			return "", fmt.Errorf("%s: %+v: %s", line, *chunk.Exit, out.String())
		}
		if chunk.Exit != nil {
			return out.String(), nil
		}
	}
}

func mbPerSecond(size int64, took time.Duration) string {
	return fmt.Sprintf("%.1f MB/s", float64(size)/1e6/took.Seconds())
}

// TestFileThroughput copies a large file in both directions and, for comparison, as many
// bytes through a virtio-serial port without a protocol.
func TestFileThroughput(t *testing.T) {
	const size = 32 << 20 // the tests of the whole product copy more
	m, g := diskGuest(t, 256)
	files, ctx := g, t.Context()

	content, sum := noise(size)
	began := time.Now()
	if _, err := files.WriteFile(ctx, file.WriteSpec{Path: "/large"}, content); err != nil {
		t.Fatal(err)
	}
	t.Logf("up, to the disk: %s", mbPerSecond(size, time.Since(began)))
	sent := sum.Sum(nil)
	if got := sh(t, g, "busybox sha256sum /large"); !strings.HasPrefix(got, fmt.Sprintf("%x ", sent)) {
		t.Errorf("the guest has %q, want %x", got, sent)
	}

	began = time.Now()
	_, back, err := files.ReadFile(ctx, file.ReadSpec{Path: "/large", Length: -1})
	if err != nil {
		t.Fatal(err)
	}
	sum.Reset()
	n, err := io.Copy(sum, back)
	if err := errors.Join(err, back.Close()); err != nil || n != size || !bytes.Equal(sum.Sum(nil), sent) {
		t.Fatalf("%d bytes were read: %v", n, err)
	}
	t.Logf("down: %s", mbPerSecond(size, time.Since(began)))

	throughRawPort(t, m, g, "up", size, "busybox dd if=/dev/vport0p2 of=/dev/null bs=32k", func(port io.ReadWriter) error {
		raw, _ := noise(size)
		_, err := io.CopyBuffer(port, raw, make([]byte, 64<<10))
		return err
	})
	for way, from := range map[string]string{"down": "/dev/zero", "down from the disk": "/large"} {
		line := fmt.Sprintf("busybox dd if=%s of=/dev/vport0p2 bs=32k count=%d", from, size>>15)
		throughRawPort(t, m, g, way, size, line, func(port io.ReadWriter) error {
			_, err := io.CopyN(io.Discard, port, size)
			return err
		})
	}
}

// throughRawPort logs how fast a program in the guest reads or writes a port. Its
// input ends when the host closes the port.
func throughRawPort(t *testing.T, m *machine, g process.Guest, way string, size int64, line string, pass func(io.ReadWriter) error) {
	t.Helper()
	port, err := m.dialPort(t.Context(), "raw")
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	done := make(chan error, 1)
	go func() {
		_, err := runLine(g, line)
		done <- err
	}()
	err = pass(port)
	if err := errors.Join(err, port.Close(), <-done); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s, raw: %s", way, mbPerSecond(size, time.Since(began)))
}

func TestFilesOfARealGuest(t *testing.T) {
	_, g := diskGuest(t, 32)
	files, ctx := g, t.Context()
	dir := "/w/with space/not\xffutf8"
	changes := make(chan file.Change, 1024)
	if _, err := files.MakeDirectory(ctx, "/w", 0o755, "", false); err != nil {
		t.Fatal(err)
	}
	watching, stop := context.WithCancel(ctx)
	began, watched := make(chan struct{}), make(chan error, 1)
	go func() {
		watched <- files.WatchFiles(watching, "/w", true, func() { close(began) }, func(c file.Change) error { changes <- c; return nil })
	}()
	<-began

	if _, err := files.WriteFile(ctx, file.WriteSpec{Path: dir + "/f", Parents: true}, strings.NewReader("old")); err != nil {
		t.Fatal(err)
	}
	for {
		c := <-changes
		if c.Path == dir+"/f" {
			break
		}
	}
	sh(t, g, "mkdir -p /w/a/b && echo hello >/w/a/b/c && mv /w/a/b/c /w/a/d")
	for c := range changes {
		if c.Kind == file.Renamed && c.From == "/w/a/b/c" && c.Path == "/w/a/d" {
			break
		}
	}
	stop()
	if err := <-watched; !errors.Is(err, context.Canceled) {
		t.Errorf("the watch ended with %v", err)
	}

	full, _ := noise(64 << 20)
	_, err := files.WriteFile(ctx, file.WriteSpec{Path: dir + "/f"}, full)
	requireCode(t, err, errs.Exhausted, "guest_disk_full")
	if got := string(read(t, files, dir+"/f", 0, -1)); got != "old" {
		t.Errorf("the old file is %q", got)
	}
	if got := sh(t, g, "cd /w/with*/not* && ls -A"); got != "f\n" {
		t.Errorf("there are %q", got)
	}

	here := filepath.Join(t.TempDir(), "tree")
	makeTree(t, here)
	local := openFiles(t)
	up, err := local.ReadTree(ctx, here)
	if err != nil {
		t.Fatal(err)
	}
	if err := files.WriteTree(ctx, file.TreeSpec{Path: "/t"}, up); err != nil {
		t.Fatal(err)
	}
	down, err := files.ReadTree(ctx, "/t/tree")
	if err != nil {
		t.Fatal(err)
	}
	back := t.TempDir()
	if err := local.WriteTree(ctx, file.TreeSpec{Path: back}, down); err != nil {
		t.Fatal(err)
	}
	want, got := describeTree(t, here), describeTree(t, filepath.Join(back, "tree"))
	delete(want, "pipe")
	if !reflect.DeepEqual(want, got) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
	if got := read(t, files, "/proc/cpuinfo", 0, -1); !bytes.Contains(got, []byte("processor")) {
		t.Errorf("/proc/cpuinfo holds %q", got)
	}
}
