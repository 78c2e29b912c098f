//go:build system

package rootfs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/image/kernel"
)

// asset returns a file of Debian's kernel package.
func asset(t *testing.T, variable, name string) string {
	t.Helper()
	path := os.Getenv(variable)
	if path == "" {
		path = filepath.Join("..", "..", "..", ".cache", "test", name)
	}
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v; run: make test-assets", err)
	}
	return path
}

func debianKernel(t *testing.T) (path, version string) {
	t.Helper()
	path = asset(t, "HATCH_TEST_KERNEL", "vmlinuz")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	k, err := kernel.Read(f, st.Size())
	if err != nil || k.Version == "" {
		t.Fatalf("Debian's kernel is not recognised: %v", err)
	}
	return path, k.Version
}

// TestDebiansKernel inspects the kernel and the modules that images are made of.
func TestDebiansKernel(t *testing.T) {
	kernelPath, version := debianKernel(t)
	modulesDir := asset(t, "HATCH_TEST_MODULES", "modules")
	// The kernel is alone in its directory, without modules beside it.
	alone := filepath.Join(t.TempDir(), "boot", "vmlinuz")
	content, err := os.ReadFile(kernelPath)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Dir(alone), "vmlinuz", content)

	tree := makeTree(t, "", true)
	bare := makeExt4(t, tree)
	_, err = inspect(t, image.Registration{KernelPath: alone, RootfsPath: bare})
	requireField(t, err, "kernel_path", version, "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "isofs")

	facts, err := inspect(t, image.Registration{KernelPath: alone, RootfsPath: bare, ModulesPath: modulesDir})
	if err != nil || facts.KernelVersion != version || facts.ModulesPath != modulesDir || facts.DiskMode != image.DiskOverlay {
		t.Errorf("got %+v, %v", facts, err)
	}

	inside := filepath.Join(tree, "usr/lib/modules", version)
	if err := os.CopyFS(inside, os.DirFS(modulesDir)); err != nil {
		t.Fatal(err)
	}
	whole := filepath.Join(t.TempDir(), "whole.ext4")
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, whole, "300M")
	for _, rootfs := range []string{whole, makeSquashfs(t, tree)} {
		facts, err := inspect(t, image.Registration{KernelPath: alone, RootfsPath: rootfs})
		if err != nil || !facts.CloudInit || facts.DiskMode != image.DiskOverlay {
			t.Fatalf("got %+v, %v", facts, err)
		}
		requireSame(t, modulesDir, facts.ModulesPath, "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "overlay", "isofs")
	}
}

// requireSame compares modules and their dependencies with their sources.
func requireSame(t *testing.T, from, to string, names ...string) {
	t.Helper()
	mods := readModules(t, to)
	for _, name := range names {
		if !mods.has(name) {
			t.Errorf("%s, or a dependency of it, is missing", name)
			continue
		}
		for _, file := range append([]string{mods.index[name].file}, mods.index[name].deps...) {
			want, err := os.ReadFile(filepath.Join(from, file))
			if err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(to, file))
			if err != nil || string(got) != string(want) {
				t.Errorf("%s is not as it was: %v", file, err)
			}
		}
	}
}

// TestMarksAreTheDriversOwn compares the result of the search for texts in Debian's
// kernel with its package: ext4 is built in, the others are modules.
func TestMarksAreTheDriversOwn(t *testing.T) {
	path, _ := debianKernel(t)
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	facts, err := New(Config{ModulesDir: t.TempDir()}).readKernel(anywhere{}, f, filepath.Join(t.TempDir(), "alone"))
	if err != nil {
		t.Fatal(err)
	}
	mods := readModules(t, asset(t, "HATCH_TEST_MODULES", "modules"))
	drivers := []kernel.Driver{isofs.driver}
	for _, n := range append(append([]need{}, common...), overlay...) {
		drivers = append(drivers, n.driver)
	}
	for _, d := range rootDrivers {
		drivers = append(drivers, d)
	}
	for _, d := range drivers {
		want := kernel.No
		if mods.builtin[d.Module] {
			want = kernel.Yes
		}
		if got := facts.witness.Builtin(d); got != want {
			t.Errorf("%s: got %v, want %v", d.Module, got, want)
		}
		if want == kernel.Yes {
			continue
		}
		// The module itself has the text that was looked for in the kernel.
		content, err := os.ReadFile(filepath.Join(mods.dir, mods.index[d.Module].file))
		if err != nil {
			t.Fatal(err)
		}
		if got := (kernel.Witness{Vmlinux: content}).Builtin(d); got != kernel.Yes {
			t.Errorf("%s: its text is not in the module", d.Module)
		}
	}
}
