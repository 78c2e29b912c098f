package rootfs

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image"
)

// place is a directory that clients may register files from, beside a data directory
// and other files of the host.
type place struct{ images, data, elsewhere string }

func newPlace(t *testing.T) place {
	t.Helper()
	base, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := place{filepath.Join(base, "images"), filepath.Join(base, "data"), filepath.Join(base, "elsewhere")}
	for _, dir := range []string{p.images, p.data, p.elsewhere} {
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for dir := base; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func (p place) inspector(t *testing.T) *Inspector {
	t.Helper()
	dirs, err := OpenDirs([]string{p.images}, p.data)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := dirs.Close(); err != nil {
			t.Error(err)
		}
	})
	return New(Config{ModulesDir: filepath.Join(t.TempDir(), "modules"), Dirs: dirs})
}

// copyFile copies a file to the directory, with a mode that the umask does not change.
func copyFile(t *testing.T, from, dir, name string) string {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	path := write(t, dir, name, content)
	if err := errors.Join(os.Chmod(path, 0o644), os.Chmod(filepath.Dir(path), 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestClientsFilesComeFromAllowedDirectories names everything else by each field, and
// wants one answer for all of it.
func TestClientsFilesComeFromAllowedDirectories(t *testing.T) {
	p := newPlace(t)
	goodKernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions)))
	goodRoot := makeExt4(t, makeTree(t, "", true))
	kernel := copyFile(t, goodKernel, p.images, "vmlinuz")
	root := copyFile(t, goodRoot, filepath.Join(p.images, "roots"), "root.ext4")
	modules := filepath.Join(p.images, "modules")
	writeModules(t, modules, version)
	if err := os.Chmod(modules, 0o755); err != nil {
		t.Fatal(err)
	}
	i := p.inspector(t)
	facts, err := i.Inspect(t.Context(), image.Registration{KernelPath: kernel, RootfsPath: root, ModulesPath: modules})
	if err != nil || facts.Kernel.Path != kernel || facts.Rootfs.Path != root || facts.ModulesPath != modules {
		t.Fatalf("got %+v, %v", facts, err)
	}

	texts := map[string]bool{}
	for name, path := range p.refused(t, goodRoot) {
		for field, r := range map[string]image.Registration{
			"kernel_path":  {KernelPath: path, RootfsPath: root},
			"rootfs_path":  {KernelPath: kernel, RootfsPath: path},
			"modules_path": {KernelPath: kernel, RootfsPath: root, ModulesPath: path},
		} {
			_, err := i.Inspect(t.Context(), r)
			e, ok := errs.As(err)
			if !ok || e.Code != "invalid_"+field || e.Field != field {
				t.Errorf("%s as %s: got %v", name, field, err)
				continue
			}
			texts[strings.TrimPrefix(e.Message, field)+e.Hint] = true
		}
	}
	if len(texts) != 1 {
		t.Errorf("the answers differ: %q", slices.Sorted(maps.Keys(texts)))
	}
}

// refused makes what must be refused, and returns the paths. All but those of pipes and
// of what is missing would be good root file systems.
func (p place) refused(t *testing.T, root string) map[string]string {
	t.Helper()
	open := copyFile(t, root, p.images, "open/root.ext4") // in a directory that others may write to
	writable := copyFile(t, root, p.images, "writable.ext4")
	disk := copyFile(t, root, p.data, "vms/vm_other/disk.img")
	outside := copyFile(t, root, p.elsewhere, "root.ext4")
	pipe := filepath.Join(p.images, "pipe")
	err := errors.Join(
		os.Chmod(filepath.Dir(open), 0o777), os.Chmod(writable, 0o666), syscall.Mkfifo(pipe, 0o600),
		os.Symlink("writable.ext4", filepath.Join(p.images, "inwards")), os.Symlink(disk, filepath.Join(p.images, "outwards")),
		os.Symlink(p.elsewhere, filepath.Join(p.images, "linked")), os.Symlink("roots", filepath.Join(p.images, "beside")),
	)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{
		"another VM's disk": disk, "a file elsewhere": outside, "a missing file elsewhere": outside + ".none", "a missing file": filepath.Join(p.images, "none"),
		"a way back out": p.images + "/../elsewhere/root.ext4", "a name with the same start": p.images + "-more/root.ext4",
		"a pipe": pipe, "a device": "/dev/zero", "a link": filepath.Join(p.images, "inwards"), "a link outwards": filepath.Join(p.images, "outwards"),
		"a linked directory": filepath.Join(p.images, "linked/root.ext4"), "a linked directory inside": filepath.Join(p.images, "beside/root.ext4"),
		"a directory that others may write to": open, "a file that others may write to": writable,
		"below a file": filepath.Join(p.images, "vmlinuz/x"), "a name that is too long": filepath.Join(p.images, strings.Repeat("x", 300)),
		"a path that is too long": filepath.Join(p.images, strings.Repeat("x/", 3000)), "a descriptor": "/proc/self/fd/0", "the root": "/",
	}
}

// TestKindsOfEntries: a directory is no file, and the reverse.
func TestKindsOfEntries(t *testing.T) {
	p := newPlace(t)
	kernel := copyFile(t, write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions))), p.images, "vmlinuz")
	root := copyFile(t, makeExt4(t, makeTree(t, "", true)), p.images, "root.ext4")
	i := p.inspector(t)
	for field, r := range map[string]image.Registration{
		"kernel_path":  {KernelPath: p.images, RootfsPath: root},
		"rootfs_path":  {KernelPath: kernel, RootfsPath: p.images},
		"modules_path": {KernelPath: kernel, RootfsPath: root, ModulesPath: kernel},
	} {
		_, err := i.Inspect(t.Context(), r)
		requireField(t, err, field, "HATCH_IMAGE_DIRS")
	}
}

// TestNothingBesideAnAllowedKernelLeadsOut has modules and a configuration where those
// of the kernel are looked for, but behind links.
func TestNothingBesideAnAllowedKernelLeadsOut(t *testing.T) {
	p := newPlace(t)
	kernel := copyFile(t, write(t, t.TempDir(), "vmlinuz", bzImage(t, "x")), p.images, "vmlinuz")
	root := copyFile(t, makeExt4(t, makeTree(t, "", false)), p.images, "root.ext4")
	writeModules(t, filepath.Join(p.elsewhere, "modules"), version)
	config := write(t, p.elsewhere, "config", []byte("CONFIG_"+strings.ReplaceAll(allOptions, " ", "\nCONFIG_")+"\n"))
	err := errors.Join(os.Symlink(filepath.Join(p.elsewhere, "modules"), filepath.Join(p.images, "modules")), os.Symlink(config, filepath.Join(p.images, "config-"+version)))
	if err != nil {
		t.Fatal(err)
	}
	i := p.inspector(t)
	_, err = i.Inspect(t.Context(), image.Registration{KernelPath: kernel, RootfsPath: root})
	requireField(t, err, "kernel_path", "virtio_blk (disks)")
	if _, err := i.Inspect(t.Context(), image.Registration{KernelPath: kernel, RootfsPath: root, Trusted: true}); err != nil {
		t.Errorf("the operator's own kernel is refused: %v", err)
	}
}

func TestClientsHaveNoDirectoriesByDefault(t *testing.T) {
	p := newPlace(t)
	kernel := copyFile(t, write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions))), p.images, "vmlinuz")
	_, err := newInspector(t).Inspect(t.Context(), image.Registration{KernelPath: kernel, RootfsPath: kernel})
	requireField(t, err, "kernel_path", "HATCH_IMAGE_DIRS")
}

func TestDirectoriesThatCannotBeAllowed(t *testing.T) {
	p := newPlace(t)
	link, file, open := filepath.Join(p.elsewhere, "link"), write(t, p.elsewhere, "file", []byte("x")), filepath.Join(p.elsewhere, "open")
	err := errors.Join(os.Symlink(p.images, link), os.Mkdir(open, 0o700), os.Chmod(open, 0o777), os.MkdirAll(filepath.Join(open, "below"), 0o700), os.Mkdir(filepath.Join(p.data, "vms"), 0o700))
	if err != nil {
		t.Fatal(err)
	}
	for path, says := range map[string]string{
		p.data: "data directory", filepath.Join(p.data, "vms"): "data directory", filepath.Dir(p.data): "data directory", "/": "data directory",
		link: "give " + p.images, filepath.Join(p.images, "none"): "make it", file: "cannot open it",
		open: "other users can write", filepath.Join(open, "below"): "chmod go-w " + open,
	} {
		dirs, err := OpenDirs([]string{p.images, path}, p.data)
		if err == nil {
			_ = dirs.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), path+" of HATCH_IMAGE_DIRS") {
			t.Errorf("%s: got %v", path, err)
		}
	}
}

// TestImagesOfPrivateFilesAreNotUsed has images that were registered before their paths
// were refused.
func TestImagesOfPrivateFilesAreNotUsed(t *testing.T) {
	p := newPlace(t)
	disk, plain := write(t, p.data, "vms/vm_a/disk.img", []byte("secret")), write(t, p.data, "images/a/root.ext4", []byte("built"))
	link := filepath.Join(p.elsewhere, "link")
	if err := os.Symlink(disk, link); err != nil {
		t.Fatal(err)
	}
	i := New(Config{Private: []string{filepath.Join(p.data, "vms"), filepath.Join(p.data, "none")}})
	for path, want := range map[string]bool{disk: false, link: false, plain: true} {
		f, err := Stat(path)
		if err != nil || !Unchanged(f) {
			t.Fatal(err)
		}
		if got := i.Unchanged(f); got != want {
			t.Errorf("%s: got %v", path, got)
		}
	}
}
