// Package testguest builds the initramfs of the conformance suite's Linux guest: the
// program in init/, compiled statically, and the kernel modules that it needs. It also
// finds the tests' kernel.
//
// It is for tests with the build tag system. Start at [Build].
package testguest

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/cavaliergopher/cpio"
)

// modules are in the order in which they must be loaded: each comes after those that
// it depends on.
var modules = []string{
	"virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "failover", "net_failover", "virtio_net",
	"virtio_console", "button", "evdev", "pvpanic", "pvpanic-mmio",
}

// Kernel returns the path of the tests' kernel and fails the test without one.
func Kernel(t testing.TB) string {
	t.Helper()
	return Asset(t, "HATCH_TEST_KERNEL", "vmlinuz")
}

// Asset returns the path in the variable, or else the file of this name below
// .cache/test, and fails the test without one.
func Asset(t testing.TB, variable, name string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join(Repository(t), ".cache", "test", name)
	}
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%s is missing (%v); fetch it with: make test-assets", filepath.Base(name), err)
	}
	return path
}

// Repository returns the root of the checkout: the nearest directory with a go.mod at or
// above the working directory, which go test sets. A test program that was compiled on
// another machine finds the checkout in which it runs.
func Repository(t testing.TB) string {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			t.Fatal("run the test in a checkout: no go.mod lies above the working directory")
		}
		dir = parent
	}
}

// Build makes the initramfs in a directory of the test and returns its path.
func Build(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "init")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "./internal/vmm/vmmtest/testguest/init")
	build.Dir = Repository(t)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build the test guest: %v\n%s", err, out)
	}
	path := filepath.Join(dir, "initramfs.cpio")
	if err := pack(path, program, Asset(t, "HATCH_TEST_MODULES", "modules")); err != nil {
		t.Fatal(err)
	}
	return path
}

// pack writes the archive: /init, and /modules, whose names sort in the order of
// loading.
func pack(path, program, moduleDir string) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { _ = out.Close() }()
	found, err := findModules(moduleDir)
	if err != nil {
		return err
	}
	archive := cpio.NewWriter(out)
	for _, dir := range []string{"dev", "proc", "sys", "modules"} {
		if err := archive.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	if err := add(archive, "init", program); err != nil {
		return err
	}
	for i, name := range modules {
		if err := add(archive, fmt.Sprintf("modules/%02d-%s.ko", i, name), found[name]); err != nil {
			return err
		}
	}
	if err := archive.Close(); err != nil {
		return err
	}
	return out.Close()
}

func add(archive *cpio.Writer, name, path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("cannot pack %s: %w", name, err)
	}
	err = archive.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | 0o755, Size: int64(len(data))})
	if err != nil {
		return err
	}
	_, err = archive.Write(data)
	return err
}

// findModules maps the names of all modules below dir to their paths.
func findModules(dir string) (map[string]string, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	err = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if name := filepath.Base(path); err == nil && filepath.Ext(name) == ".ko" {
			found[name[:len(name)-len(".ko")]] = path
		}
		return err
	})
	return found, err
}
