//go:build system

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// assets returns the kernel and the modules of `make test-assets`.
func assets(t *testing.T) (kernel, modules string) {
	t.Helper()
	kernel, modules = os.Getenv("HATCH_TEST_KERNEL"), os.Getenv("HATCH_TEST_MODULES")
	if kernel == "" {
		kernel = filepath.Join(repository(), ".cache", "test", "vmlinuz")
	}
	if modules == "" {
		modules = filepath.Join(repository(), ".cache", "test", "modules")
	}
	for _, path := range []string{kernel, modules} {
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("%v: run make test-assets", err)
		}
	}
	return kernel, modules
}

// mustShare is share for a test.
func (w *world) mustShare(t *testing.T, path, name string) string {
	t.Helper()
	shared, err := w.share(t.Context(), path, name)
	if err != nil {
		t.Fatal(err)
	}
	return shared
}

// registerOwnKernel registers the kernel, under a name, with the minimal image's root.
func (w *world) registerOwnKernel(t *testing.T, name string) api.Image {
	t.Helper()
	kernel, modules := assets(t)
	base, err := w.client.GetImage(t.Context(), minimalID)
	if err != nil {
		t.Fatal(err)
	}
	image, err := w.client.CreateImage(t.Context(), api.CreateImage{
		KernelPath: w.mustShare(t, kernel, name+"/vmlinuz"), RootfsPath: w.mustShare(t, base.RootfsPath, name+"/root"),
		ModulesPath: w.mustShare(t, modules, name+"/modules"),
	})
	if err != nil {
		t.Fatalf("cannot register a kernel with modules beside it: %v", err)
	}
	t.Cleanup(func() { _ = w.client.DeleteImage(t.Context(), image.ID) })
	return image
}

// testOwnKernel boots a kernel that is not the image's, with its modules beside it.
// Debian has no kernel with built-in drivers; such kernels are tested where images
// are inspected.
func testOwnKernel(t *testing.T, w *world) {
	image := w.registerOwnKernel(t, "own")
	body := minimal()
	body.ImageID = image.ID
	v := w.create(t, body, client.CreateOptions{Wait: "ready", WaitTimeout: readyLimit})
	if v.State != api.StateRunning || condition(v, api.ConditionAgentReady).Status != api.StatusTrue {
		t.Errorf("the VM is %s, conditions %+v", v.State, v.Conditions)
	}
	w.delete(t, v.ID)

	empty := t.TempDir()
	w.requireRefused(t, image, w.mustShare(t, empty, "empty"), "modules.dep")
	few := t.TempDir()
	for file, content := range map[string]string{"modules.dep": "kernel/fs/fat/fat.ko:\n", "modules.builtin": ""} {
		if err := os.WriteFile(filepath.Join(few, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	w.requireRefused(t, image, w.mustShare(t, few, "few"), "virtio")
}

// requireRefused registers the image's kernel with unusable modules.
func (w *world) requireRefused(t *testing.T, image api.Image, modules, missing string) {
	t.Helper()
	base, err := w.client.GetImage(t.Context(), image.ID)
	if err != nil {
		t.Fatal(err)
	}
	got, err := w.client.CreateImage(t.Context(), api.CreateImage{
		KernelPath: base.KernelPath, RootfsPath: base.RootfsPath, ModulesPath: modules,
	})
	if err == nil {
		_ = w.client.DeleteImage(t.Context(), got.ID)
	}
	if !client.IsInvalid(err) || !strings.Contains(err.Error(), missing) {
		t.Errorf("a kernel without its modules is answered with %v; want a refusal that names %s", err, missing)
	}
}
