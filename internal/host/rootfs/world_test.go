package rootfs

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/image"
)

const version = "6.1.0-9-test"

// elfFile returns an ELF header for x86-64 with content behind it.
func elfFile(content string) []byte {
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(head[16:], 2)
	binary.LittleEndian.PutUint16(head[18:], 62)
	binary.LittleEndian.PutUint32(head[20:], 1)
	binary.LittleEndian.PutUint16(head[52:], 64)
	return append(head, content...)
}

func gzipped(t *testing.T, content []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := z.Write(content); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bzImage packs a kernel whose bare image has content.
func bzImage(t *testing.T, content string) []byte {
	t.Helper()
	payload := gzipped(t, elfFile(content))
	file := make([]byte, 4*512)
	file[0x1f1] = 3
	copy(file[0x1fe:], "\x55\xaa\xeb\x6aHdrS")
	binary.LittleEndian.PutUint16(file[0x206:], 0x020f)
	binary.LittleEndian.PutUint16(file[0x20e:], 0x100)
	binary.LittleEndian.PutUint16(file[0x236:], 1)
	copy(file[0x300:], version+" (builder@host) #1 SMP\x00")
	binary.LittleEndian.PutUint32(file[0x24c:], uint32(len(payload)))
	return append(file, payload...)
}

// config is the content of a kernel that carries this configuration.
func config(t *testing.T, options string) string {
	t.Helper()
	var text strings.Builder
	for option := range strings.FieldsSeq(options) {
		text.WriteString("CONFIG_" + option + "\n")
	}
	return "x\x00IKCFG_ST" + string(gzipped(t, []byte(text.String()))) + "IKCFG_ED"
}

const (
	bootOptions = "BLK_DEV_INITRD=y DEVTMPFS=y ACPI=y SERIAL_8250_CONSOLE=y MODULES=y "
	allOptions  = bootOptions + "VIRTIO_MMIO=y VIRTIO_BLK=y VIRTIO_CONSOLE=y VIRTIO_NET=y EXT4_FS=y OVERLAY_FS=y SQUASHFS=y ISO9660_FS=y"
)

// write puts a file below dir and returns its path.
func write(t *testing.T, dir, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// moduleFiles are the drivers that the kernels of distributions have as modules.
var moduleFiles = map[string]string{
	"kernel/drivers/virtio/virtio_ring.ko":        "",
	"kernel/drivers/virtio/virtio.ko":             "kernel/drivers/virtio/virtio_ring.ko",
	"kernel/drivers/virtio/virtio_mmio.ko":        "kernel/drivers/virtio/virtio.ko kernel/drivers/virtio/virtio_ring.ko",
	"kernel/drivers/block/virtio_blk.ko":          "kernel/drivers/virtio/virtio.ko",
	"kernel/drivers/net/virtio_net.ko":            "kernel/drivers/virtio/virtio.ko",
	"kernel/drivers/char/virtio_console.ko":       "kernel/drivers/virtio/virtio.ko",
	"kernel/drivers/char/hw_random/virtio-rng.ko": "kernel/drivers/virtio/virtio.ko",
	"kernel/fs/overlayfs/overlay.ko":              "",
	"kernel/fs/squashfs/squashfs.ko":              "",
	"kernel/fs/isofs/isofs.ko":                    "",
	"kernel/sound/unrelated.ko":                   "",
}

// writeModules fills dir with modules for a kernel version; ext4 is built in.
func writeModules(t *testing.T, dir, version string, without ...string) {
	t.Helper()
	var dep strings.Builder
files:
	for file, deps := range moduleFiles {
		for _, name := range without {
			if strings.HasSuffix(file, "/"+name+".ko") {
				continue files
			}
		}
		write(t, dir, file, elfFile(file+"\x00vermagic="+version+" SMP \x00"))
		dep.WriteString(file + ": " + deps + "\n")
	}
	write(t, dir, "modules.dep", []byte(dep.String()))
	write(t, dir, "modules.builtin", []byte("kernel/fs/ext4/ext4.ko\n"))
}

// makeTree lays out a root with merged /usr, its modules and perhaps cloud-init.
func makeTree(t *testing.T, modulesFor string, cloudInit bool) string {
	t.Helper()
	tree := t.TempDir()
	if modulesFor != "" {
		writeModules(t, filepath.Join(tree, "usr/lib/modules", modulesFor), modulesFor)
	}
	if cloudInit {
		write(t, tree, "usr/bin/cloud-init", []byte("#!/usr/bin/python3\n"))
	}
	write(t, tree, "usr/lib/os-release", []byte("ID=test\n"))
	if err := os.Symlink("usr/lib", filepath.Join(tree, "lib")); err != nil {
		t.Fatal(err)
	}
	return tree
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

func makeExt4(t *testing.T, tree string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.ext4")
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path, "16M")
	return path
}

func makeSquashfs(t *testing.T, tree string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "root.squashfs")
	command(t, "mksquashfs", tree, path, "-quiet", "-no-progress")
	return path
}

func newInspector(t *testing.T) *Inspector {
	t.Helper()
	return New(Config{ModulesDir: filepath.Join(t.TempDir(), "modules")})
}

// inspect inspects the operator's own files.
func inspect(t *testing.T, r image.Registration) (image.Facts, error) {
	t.Helper()
	r.Trusted = true
	return newInspector(t).Inspect(t.Context(), r)
}

func readModules(t *testing.T, dir string) modules {
	t.Helper()
	mods, err := openModules(anywhere{}, dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(mods.close)
	return mods
}
