package rootfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/image"
)

func TestOtherFormatsAreRefusedWithAHint(t *testing.T) {
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions)))
	at := func(offset int, magic string) []byte {
		b := make([]byte, 40<<10)
		copy(b[offset:], magic)
		return b
	}
	for says, content := range map[string][]byte{
		"qemu-img convert -f qcow2": at(0, "QFI\xfb"),
		"(GPT)":                     at(512, "EFI PART"),
		"(MBR)":                     at(510, "\x55\xaa"),
		"FAT":                       append(append(at(0, "")[:54], "FAT16   "...), at(510-62, "\x55\xaa")...),
		"tar archive":               at(257, "ustar"),
		"gunzip":                    at(0, "\x1f\x8b\x08"),
		"ISO 9660":                  at(0x8001, "CD001"),
		"no known file system":      []byte("hello"),
		"a Linux kernel":            bzImage(t, "x"),
	} {
		_, err := inspect(t, image.Registration{KernelPath: kernel, RootfsPath: write(t, t.TempDir(), "root", content)})
		requireField(t, err, "rootfs_path", says)
	}
}

func TestFormatsAreRecognised(t *testing.T) {
	at := func(offset int, magic string) []byte {
		b := make([]byte, headSize)
		copy(b[offset:], magic)
		return b
	}
	for name, head := range map[string][]byte{
		"erofs": at(1024, "\xe2\xe1\xf5\xe0"), "xfs": at(0, "XFSB"), "btrfs": at(0x10040, "_BHRfS_M"),
		"squashfs": at(0, "hsqs"), "ext4": at(0x438, "\x53\xef"),
	} {
		if got, ok := formatOf(head); !ok || got.name != name {
			t.Errorf("got %q for %s", got.name, name)
		}
	}
}

func TestTruncatedFileSystemsAreRefused(t *testing.T) {
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions)))
	tree := makeTree(t, version, false)
	for _, path := range []string{makeExt4(t, tree), makeSquashfs(t, tree)} {
		st, err := os.Stat(path)
		if err == nil {
			err = os.Truncate(path, st.Size()/16)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, err = inspect(t, image.Registration{KernelPath: kernel, RootfsPath: path})
		requireField(t, err, "rootfs_path", "truncated")
	}
}

func TestDamagedFileSystemsAreRefused(t *testing.T) {
	kernel := write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, allOptions)))
	tree := makeTree(t, version, true)
	for path, superblocks := range map[string]int{makeExt4(t, tree): 2048, makeSquashfs(t, tree): 96} {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for at := superblocks; at < len(content); at++ {
			content[at] = 0xa5
		}
		path = write(t, t.TempDir(), "root", content)
		_, err = inspect(t, image.Registration{KernelPath: kernel, RootfsPath: path})
		requireField(t, err, "rootfs_path", "damaged")
	}
}

func TestIndexThatLeadsOutIsRefused(t *testing.T) {
	tree := makeTree(t, version, false)
	write(t, tree, "usr/lib/modules/"+version+"/modules.dep", []byte("../../../../etc/virtio_blk.ko:\n"))
	r := image.Registration{
		KernelPath: write(t, t.TempDir(), "vmlinuz", bzImage(t, config(t, bootOptions))), RootfsPath: makeExt4(t, tree),
	}
	_, err := inspect(t, r)
	requireField(t, err, "rootfs_path", "not the path of a module")
}

func TestProgramsAreLimited(t *testing.T) {
	f, err := os.Open(write(t, t.TempDir(), "image", []byte("content")))
	if err != nil {
		t.Fatal(err)
	}
	p := func(path string) *program { return &program{path: path, image: f} }
	defer p("").close()
	if res, err := p("/bin/cat").run(t.Context(), 100, imageArg); err != nil || string(res.stdout) != "content" {
		t.Errorf("the image cannot be read: %q, %v", res.stdout, err)
	}
	if _, err := p("/bin/cat").run(t.Context(), 1<<20, "/dev/zero"); !errors.Is(err, errDamaged) {
		t.Errorf("endless output is accepted: %v", err)
	}
	uid := os.Geteuid()
	if uid == 0 {
		uid = unprivileged
	}
	if res, err := p("/usr/bin/id").run(t.Context(), 100, "-u"); err != nil || strings.TrimSpace(string(res.stdout)) != strconv.Itoa(uid) {
		t.Errorf("the program runs as %q, %v", res.stdout, err)
	}
	if res, err := p("/usr/bin/env").run(t.Context(), 1000); err != nil || strings.Contains(string(res.stdout), "HOME") {
		t.Errorf("the program sees the environment: %q, %v", res.stdout, err)
	}
}

func TestPathsOfModules(t *testing.T) {
	for path, want := range map[string]bool{
		"kernel/fs/ext4/ext4.ko": true, "updates/dkms/x-y_z.ko.xz": true, "a.ko": true,
		"../a.ko": false, "/a.ko": false, "a/../b.ko": false, "a b.ko": false, "a\".ko": false, "a;b.ko": false,
		"kernel/readme": false, "": false, strings.Repeat("a", 600) + ".ko": false,
	} {
		if isModulePath(path) != want {
			t.Errorf("%q: want %v", path, want)
		}
	}
}

func FuzzParseDep(f *testing.F) {
	f.Add([]byte("kernel/fs/a.ko: kernel/fs/b.ko\nkernel/fs/b.ko:\n"))
	f.Add([]byte("../x.ko:"))
	f.Fuzz(func(t *testing.T, text []byte) {
		found, err := parseDep(bytes.NewReader(text))
		if err != nil {
			return
		}
		for name, m := range found {
			for _, file := range append([]string{m.file}, m.deps...) {
				if !filepath.IsLocal(file) || name == "" {
					t.Errorf("%q of %q leads out", file, name)
				}
			}
		}
	})
}

func FuzzFormat(f *testing.F) {
	f.Add(0x438, []byte("\x53\xef"))
	f.Add(0, []byte("hsqs"))
	f.Fuzz(func(t *testing.T, at int, bytes []byte) {
		head := make([]byte, headSize)
		if at >= 0 && at < len(head) {
			copy(head[at:], bytes)
		}
		if form, ok := formatOf(head); ok {
			_ = form.size(head)
		} else if what, hint := otherFormatOf(head); what == "" || hint == "" {
			t.Error("no word about it")
		}
	})
}
