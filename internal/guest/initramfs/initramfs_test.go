package initramfs

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cavaliergopher/cpio"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"

	"github.com/hatchvm/hatch/internal/image/unpack"
)

// module returns a minimal ELF file with the .modinfo section of a module.
func module(info ...string) []byte {
	modinfo := []byte(strings.Join(info, "\x00") + "\x00")
	names := []byte("\x00.modinfo\x00.shstrtab\x00")
	const header, section = 64, 64
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) }
	data := uint64(header)
	put(elf.Header64{
		Ident: [16]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: header,
		Shoff: data + uint64(len(modinfo)+len(names)), Shentsize: section, Shnum: 3, Shstrndx: 2,
	})
	b.Write(modinfo)
	b.Write(names)
	put(elf.Section64{})
	put(elf.Section64{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: data, Size: uint64(len(modinfo)), Addralign: 1})
	put(elf.Section64{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: data + uint64(len(modinfo)), Size: uint64(len(names)), Addralign: 1})
	return b.Bytes()
}

func compressed(t testing.TB, f unpack.Format, content []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	var w io.WriteCloser
	var err error
	switch f {
	case unpack.Gzip:
		w = gzip.NewWriter(&b)
	case unpack.Xz:
		w, err = xz.NewWriter(&b)
	case unpack.Zstd:
		w, err = zstd.NewWriter(&b)
	default:
		return content
	}
	if err == nil {
		_, err = w.Write(content)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// modulesDir creates a directory of modules with all compressions.
func modulesDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string][]byte{
		"kernel/drivers/virtio/virtio.ko":           module("depends=virtio_ring"),
		"kernel/drivers/virtio/virtio_ring.ko.xz":   compressed(t, unpack.Xz, module("depends=")),
		"kernel/drivers/virtio/virtio_mmio.ko.zst":  compressed(t, unpack.Zstd, module("depends=virtio,virtio_ring")),
		"kernel/drivers/block/virtio_blk.ko.gz":     compressed(t, unpack.Gzip, module("depends=virtio,virtio_ring")),
		"kernel/drivers/char/virtio_console.ko":     module("depends=virtio"),
		"kernel/drivers/char/hw/virtio-rng.ko":      module("depends=virtio"),
		"kernel/drivers/net/virtio_net.ko":          module("depends=net_failover,virtio", "softdep=pre: early-one absent post: late_one"),
		"kernel/drivers/net/net_failover.ko":        module("depends=failover"),
		"kernel/net/failover.ko":                    module(),
		"kernel/net/early_one.ko":                   module(),
		"kernel/net/late-one.ko":                    module("depends=virtio_net"),
		"kernel/drivers/gpu/unneeded.ko":            module("depends=virtio"),
		"kernel/fs/overlayfs/overlay.ko":            module(),
		"kernel/fs/ext4/ext4.ko":                    module("depends=jbd2"),
		"kernel/fs/jbd2/jbd2.ko":                    module(),
		"kernel/arch/x86/crypto/crc32c-intel.ko.gz": []byte("never read: generic is built in"),
		"modules.builtin":                           []byte("kernel/crypto/crc32c_generic.ko\nkernel/fs/ext4/mbcache.ko\n\nrubbish\n"),
	}
	for path, content := range files {
		path = filepath.Join(dir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func source(t *testing.T) Source {
	t.Helper()
	agent := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(agent, []byte("the agent"), 0o600); err != nil {
		t.Fatal(err)
	}
	return Source{AgentPath: agent, ModulesDir: modulesDir(t), RootfsFormat: "ext4", Overlay: true}
}

// readArchive returns the files of an archive: content by name.
func readArchive(t *testing.T, archive []byte) map[string]string {
	t.Helper()
	files := map[string]string{}
	r := cpio.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
	}
}

func TestArchiveHasAgentAndModulesInOrder(t *testing.T) {
	s := source(t)
	var first, second bytes.Buffer
	if err := Build(&first, s); err != nil {
		t.Fatal(err)
	}
	if err := Build(&second, s); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same source gives different archives")
	}
	files := readArchive(t, first.Bytes())
	if files["init"] != "the agent" {
		t.Errorf("init is %q", files["init"])
	}
	list := strings.Fields(files[moduleList])
	for _, path := range list {
		if content := files[strings.TrimPrefix(path, "/")]; !strings.HasPrefix(content, "\x7fELF") {
			t.Errorf("%s is not a decompressed module", path)
		}
	}
	before := [][2]string{
		{"virtio_ring", "virtio"},
		{"virtio", "virtio_mmio"},
		{"virtio", "virtio_blk"},
		{"jbd2", "ext4"},
		{"failover", "net_failover"},
		{"net_failover", "virtio_net"},
		{"early_one", "virtio_net"},
		{"virtio_net", "late_one"},
		{"virtio", "virtio_rng"},
		{"overlay", "virtio_net"},
	}
	at := func(name string) int { return slices.Index(list, "/lib/modules/"+name+".ko") }
	for _, pair := range before {
		if at(pair[0]) < 0 || at(pair[0]) >= at(pair[1]) {
			t.Errorf("%s is not before %s in %v", pair[0], pair[1], list)
		}
	}
	if at("unneeded") >= 0 || at("crc32c_intel") >= 0 {
		t.Errorf("the archive has modules that are not needed: %v", list)
	}
}

// Some file systems ask for the checksum as soon as they are loaded.
func TestChecksumsAreLoadedBeforeFileSystems(t *testing.T) {
	for _, format := range []string{"ext4", "erofs", "xfs", "btrfs"} {
		at := func(module string) int {
			return slices.IndexFunc(Required(format, false), func(d Driver) bool { return slices.Contains(d.Modules, module) })
		}
		if crc := at("crc32c_generic"); crc < 0 || crc > at(format) {
			t.Errorf("%s is driver %d, crc32c %d", format, at(format), crc)
		}
	}
}

func TestArchiveWithoutModules(t *testing.T) {
	s := source(t)
	s.ModulesDir = ""
	var b bytes.Buffer
	if err := Build(&b, s); err != nil {
		t.Fatal(err)
	}
	files := readArchive(t, b.Bytes())
	if _, ok := files[moduleList]; ok || files["init"] == "" {
		t.Errorf("got %v", files)
	}
}

func TestModulesOutsideTheDirectoryAreNotRead(t *testing.T) {
	s := source(t)
	outside := filepath.Join(t.TempDir(), "overlay.ko")
	if err := os.WriteFile(outside, module(), 0o644); err != nil {
		t.Fatal(err)
	}
	inside := filepath.Join(s.ModulesDir, "kernel/fs/overlayfs/overlay.ko")
	if err := os.Remove(inside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, inside); err != nil {
		t.Fatal(err)
	}
	m := open(t, s.ModulesDir)
	if m.Has("overlay") {
		t.Error("a link is indexed as a module")
	}
}

func open(t *testing.T, dir string) *Modules {
	t.Helper()
	m, err := OpenModules(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func TestIndexAcceptsDashesAndUnderscores(t *testing.T) {
	m := open(t, modulesDir(t))
	if !m.Builtin("crc32c-generic") || m.Builtin("overlay") || !m.Has("virtio-rng") {
		t.Error("the index is wrong about crc32c-generic, overlay or virtio-rng")
	}
}

func TestErrorsNameTheBrokenModule(t *testing.T) {
	for name, content := range map[string][]byte{
		"no ELF":          []byte("rubbish"),
		"no description":  bytes.Replace(module(), []byte(".modinfo"), []byte(".modinfi"), 1),
		"cut off":         module("depends=x")[:150],
		"far too large":   append(module(), make([]byte, maxModule)...),
		"a bomb":          compressed(t, unpack.Zstd, make([]byte, maxModule+1)),
		"a broken offset": bytes.Replace(module("depends=x"), []byte{64, 0, 0, 0, 0, 0, 0, 0, 10}, []byte{255, 255, 255, 255, 255, 255, 255, 127, 10}, 1),
	} {
		s := source(t)
		if err := os.WriteFile(filepath.Join(s.ModulesDir, "kernel/fs/overlayfs/overlay.ko"), content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := Build(io.Discard, s); err == nil || !strings.Contains(err.Error(), "overlay") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzDependencies(f *testing.F) {
	f.Add(module("depends=a,b-c", "softdep=pre: x post: y z"))
	f.Add(module())
	f.Fuzz(func(t *testing.T, raw []byte) {
		before, after, err := dependencies(raw)
		if err != nil && before != nil {
			t.Error("names beside an error")
		}
		for _, name := range append(before, after...) {
			if name == "" || strings.Contains(name, "-") {
				t.Errorf("name %q", name)
			}
		}
	})
}
