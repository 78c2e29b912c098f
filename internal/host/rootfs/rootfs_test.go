package rootfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// requireField checks that err is about a field, and what its message and hint say.
func requireField(t *testing.T, err error, field string, says ...string) {
	t.Helper()
	var e *errs.Error
	if !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != field {
		t.Fatalf("got %v; want an error about %s", err, field)
	}
	for _, word := range says {
		if !strings.Contains(e.Message+" "+e.Hint, word) {
			t.Errorf("%q (%s) does not say %q", e.Message, e.Hint, word)
		}
	}
}

func TestKernelWithEverythingBuiltInNeedsNoModules(t *testing.T) {
	marks := "virtio-mmio\x00virtio_blk\x00virtio_console\x00virtio_net\x00overlayfs: EXT4-fs (%s) ISO 9660 Extensions"
	rootfs := makeExt4(t, makeTree(t, "", true))
	for name, content := range map[string]string{"by its configuration": config(t, allOptions), "by its texts": marks} {
		facts, err := inspect(t, image.Registration{KernelPath: write(t, t.TempDir(), "vmlinuz", bzImage(t, content)), RootfsPath: rootfs})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if facts.ModulesPath != "" || facts.DiskMode != image.DiskOverlay || facts.KernelVersion != version || facts.RootfsFormat != "ext4" || !facts.CloudInit {
			t.Errorf("%s: got %+v", name, facts)
		}
		if !Unchanged(facts.Kernel) || !Unchanged(facts.Rootfs) || len(facts.Rootfs.Digest) != len("sha256:")+64 {
			t.Errorf("%s: the files are not identified: %+v", name, facts)
		}
	}
}

func TestModulesComeOutOfTheRoot(t *testing.T) {
	tree := makeTree(t, version, true)
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, "nothing is built in"))
	private := makeExt4(t, tree)
	if err := os.Chmod(private, 0o600); err != nil {
		t.Fatal(err)
	}
	i := newInspector(t)
	var dirs []string
	for _, rootfs := range []string{makeExt4(t, tree), private, makeSquashfs(t, tree)} {
		facts, err := i.Inspect(t.Context(), image.Registration{KernelPath: kernel, RootfsPath: rootfs, Trusted: true})
		if err != nil {
			t.Fatal(err)
		}
		if facts.DiskMode != image.DiskOverlay || !facts.CloudInit {
			t.Errorf("got %+v", facts)
		}
		dirs = append(dirs, facts.ModulesPath)
	}
	if dirs[0] != dirs[1] {
		t.Errorf("the same modules are stored more than once: %v", dirs)
	}
	requireModules(t, dirs[0])
	requireModules(t, dirs[2]) // has squashfs too
	left, err := os.ReadDir(i.config.ModulesDir)
	if err != nil || len(left) != 2 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// requireModules checks that a directory has the needed modules and no others.
func requireModules(t *testing.T, dir string) {
	t.Helper()
	mods := readModules(t, dir)
	for _, name := range []string{"virtio_ring", "virtio_mmio", "virtio_blk", "virtio_net", "virtio_console", "virtio_rng", "overlay"} {
		if !mods.has(name) && name != "virtio_ring" {
			t.Errorf("%s is missing", name)
		}
	}
	if mods.has("unrelated") {
		t.Error("an unneeded module is stored")
	}
	file := "kernel/drivers/net/virtio_net.ko"
	content, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil || string(content) != string(elfFile(file+"\x00vermagic="+version+" SMP \x00")) {
		t.Errorf("the module is not as it was: %d bytes, %v", len(content), err)
	}
}

func TestModulesBesideTheKernel(t *testing.T) {
	rootfs := makeExt4(t, makeTree(t, "", false))
	for _, at := range []string{"boot/modules/" + version, "boot/" + version, "boot/modules", "lib/modules/" + version} {
		dir := t.TempDir()
		kernel := write(t, dir, "boot/vmlinuz", bzImage(t, "x"))
		writeModules(t, filepath.Join(dir, at), version)
		facts, err := inspect(t, image.Registration{KernelPath: kernel, RootfsPath: rootfs})
		if err != nil || facts.ModulesPath != filepath.Join(dir, at) {
			t.Errorf("%s: got %q, %v", at, facts.ModulesPath, err)
		}
	}
	dir := t.TempDir()
	writeModules(t, filepath.Join(dir, "modules"), "5.10.0-other")
	_, err := inspect(t, image.Registration{KernelPath: write(t, dir, "vmlinuz", bzImage(t, "x")), RootfsPath: rootfs})
	requireField(t, err, "kernel_path", "virtio_blk (disks)")
}

func TestModulesPath(t *testing.T) {
	rootfs := makeExt4(t, makeTree(t, "", false))
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, "x"))
	ask := func(dir string) (image.Facts, error) {
		return inspect(t, image.Registration{KernelPath: kernel, RootfsPath: rootfs, ModulesPath: dir})
	}
	right, wrong, bare, partial := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	writeModules(t, filepath.Join(right, version), version)
	writeModules(t, wrong, "5.10.0-other")
	writeModules(t, bare, version)
	writeModules(t, partial, version, "virtio")
	for _, index := range []string{"modules.dep", "modules.builtin"} {
		if err := os.Remove(filepath.Join(bare, index)); err != nil {
			t.Fatal(err)
		}
	}
	for _, dir := range []string{right, filepath.Join(right, version)} {
		if facts, err := ask(dir); err != nil || facts.ModulesPath != filepath.Join(right, version) {
			t.Errorf("got %q, %v", facts.ModulesPath, err)
		}
	}
	_, err := ask(wrong)
	requireField(t, err, "modules_path", "5.10.0-other", version)
	_, err = ask(t.TempDir())
	requireField(t, err, "modules_path", "no kernel modules", "modules.dep")
	_, err = ask("modules")
	requireField(t, err, "modules_path", "absolute")
	_, err = ask(partial) // the index names a file that is not there
	requireField(t, err, "kernel_path", "virtio_blk (disks)", "in modules_path")
	_, err = ask(bare) // modules without an index; ext4 is nowhere
	requireField(t, err, "kernel_path", "ext4 (the root file system, which is ext4)")
	if strings.Contains(err.Error(), "virtio_blk") {
		t.Errorf("modules without an index were not found: %v", err)
	}
}

func TestMissingDriversAreListed(t *testing.T) {
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, bootOptions+"VIRTIO_MMIO=y VIRTIO_BLK=y EXT4_FS=y VIRTIO_NET=m")))
	_, err := inspect(t, image.Registration{KernelPath: kernel, RootfsPath: makeExt4(t, makeTree(t, "", true))})
	requireField(t, err, "kernel_path", "virtio_console (", "virtio_net (the network)", "isofs (", "CONFIG_VIRTIO_NET=y", "modules_path", version)
	if strings.Contains(err.Error(), "virtio_blk") || strings.Contains(err.Error(), "overlay") {
		t.Errorf("%v names a driver that exists or is optional", err)
	}
	noInitramfs := strings.ReplaceAll(allOptions, "BLK_DEV_INITRD=y", "")
	kernel = write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, noInitramfs)))
	_, err = inspect(t, image.Registration{KernelPath: kernel, RootfsPath: makeExt4(t, makeTree(t, "", false))})
	requireField(t, err, "kernel_path", "initramfs", "CONFIG_BLK_DEV_INITRD=y")
}

func TestKernelThatCannotLoadModulesDoesNotCountThem(t *testing.T) {
	dir := t.TempDir()
	writeModules(t, filepath.Join(dir, "modules"), version)
	static := strings.ReplaceAll(bootOptions, "MODULES=y", "") + "EXT4_FS=y"
	kernel := write(t, dir, "vmlinuz", bzImage(t, config(t, static)))
	_, err := inspect(t, image.Registration{KernelPath: kernel, RootfsPath: makeExt4(t, makeTree(t, "", false))})
	requireField(t, err, "kernel_path", "virtio_net")
}

func TestWithoutOverlayfsTheRootIsCopied(t *testing.T) {
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, strings.ReplaceAll(allOptions, "OVERLAY_FS=y", ""))))
	tree := makeTree(t, "", false)
	facts, err := inspect(t, image.Registration{KernelPath: kernel, RootfsPath: makeExt4(t, tree)})
	if err != nil || facts.DiskMode != image.DiskCopy || facts.ModulesPath != "" {
		t.Errorf("got %+v, %v", facts, err)
	}
	_, err = inspect(t, image.Registration{KernelPath: kernel, RootfsPath: makeSquashfs(t, tree)})
	requireField(t, err, "kernel_path", "overlay (a shared root")
}

func TestConfigurationBesideTheKernelCounts(t *testing.T) {
	dir := t.TempDir()
	text := "CONFIG_" + strings.ReplaceAll(allOptions, " ", "\nCONFIG_") + "\n"
	write(t, dir, "config-"+version, []byte(text))
	facts, err := inspect(t, image.Registration{KernelPath: write(t, dir, "vmlinuz", bzImage(t, "x")), RootfsPath: makeExt4(t, makeTree(t, "", false))})
	if err != nil || facts.ModulesPath != "" || facts.DiskMode != image.DiskOverlay {
		t.Errorf("got %+v, %v", facts, err)
	}
}

func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	good := write(t, dir, "good", bzImage(t, config(t, allOptions)))
	rootfs := makeExt4(t, makeTree(t, "", false))
	empty := write(t, dir, "empty", nil)
	pipe, loop, dangling, link := filepath.Join(dir, "pipe"), filepath.Join(dir, "loop"), filepath.Join(dir, "dangling"), filepath.Join(dir, "link")
	if err := errors.Join(syscall.Mkfifo(pipe, 0o600), os.Symlink(loop, loop), os.Symlink("nowhere", dangling), os.Symlink("good", link)); err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		"": "is needed", "boot/vmlinuz": "not an absolute path", dir: "is a directory", dir + "/none": "there is no file",
		good + "/x": "there is no file", empty: "is empty", pipe: "not a regular file", loop: "leads to itself",
		dangling: "there is no file", "/dev/zero": "is a device", "/\x00": "not a path", "/" + strings.Repeat("x", 300): "too long",
	} {
		_, err := inspect(t, image.Registration{KernelPath: path, RootfsPath: rootfs})
		requireField(t, err, "kernel_path", says)
		_, err = inspect(t, image.Registration{KernelPath: good, RootfsPath: path})
		requireField(t, err, "rootfs_path", says)
	}
	facts, err := inspect(t, image.Registration{KernelPath: link, RootfsPath: rootfs})
	if err != nil || facts.Kernel.Path != link || !Unchanged(facts.Kernel) {
		t.Errorf("a link to a file is refused: %+v, %v", facts, err)
	}
	_, err = inspect(t, image.Registration{KernelPath: rootfs, RootfsPath: rootfs})
	requireField(t, err, "kernel_path", "not a Linux kernel")
}

func TestPVHIsRequiredWhereItIsNeeded(t *testing.T) {
	bare := write(t, t.TempDir(), "vmlinux", elfFile("Linux version "+version+" (x)\x00"+config(t, allOptions)))
	r := image.Registration{KernelPath: bare, RootfsPath: makeExt4(t, makeTree(t, "", false)), Trusted: true}
	if _, err := inspect(t, r); err != nil {
		t.Error(err)
	}
	_, err := New(Config{ModulesDir: t.TempDir(), NeedsPVH: true}).Inspect(t.Context(), r)
	requireField(t, err, "kernel_path", "PVH", "bzImage")
}

func TestInspectEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i := newInspector(t)
	r := image.Registration{KernelPath: write(t, t.TempDir(), "k", bzImage(t, config(t, allOptions))), RootfsPath: makeExt4(t, makeTree(t, "", false)), Trusted: true}
	if _, err := i.Inspect(ctx, r); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if _, err := i.Inspect(t.Context(), r); err != nil {
		t.Errorf("the inspector does not work afterwards: %v", err)
	}
}
