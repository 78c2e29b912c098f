package kernel

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
)

const someVersion = "6.1.0-41-cloud-amd64"

// vmlinux returns an ELF header for x86-64 with content behind it.
func vmlinux(content string) []byte {
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(head[16:], 2)  // ET_EXEC
	binary.LittleEndian.PutUint16(head[18:], 62) // x86-64
	binary.LittleEndian.PutUint32(head[20:], 1)
	binary.LittleEndian.PutUint16(head[52:], 64)
	return append(head, content...)
}

// bzImage packs a payload as the kernel's build does.
func bzImage(payload []byte) []byte {
	const sects = 3
	image := make([]byte, (sects+1)*sectorSize)
	image[atSetupSects] = sects
	copy(image[0x1FE:], "\x55\xaa\xeb\x6aHdrS")
	binary.LittleEndian.PutUint16(image[atProtocol:], 0x020f)
	binary.LittleEndian.PutUint16(image[atVersion:], 0x100)
	binary.LittleEndian.PutUint16(image[atXLoadFlags:], has64BitEntry)
	copy(image[0x100+sectorSize:], someVersion+" (builder@host) #1 SMP\x00")
	binary.LittleEndian.PutUint32(image[atPayloadOffset:], 100)
	binary.LittleEndian.PutUint32(image[atPayloadLength:], uint32(len(payload)))
	image = append(image, make([]byte, 100)...)
	return append(append(image, payload...), "the end of the file"...)
}

func read(t *testing.T, file []byte) *Kernel {
	t.Helper()
	k, err := Read(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func gzipped(content []byte) []byte {
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	_, _ = z.Write(content)
	_ = z.Close()
	return out.Bytes()
}

// xzipped compresses as the kernel's build does, with the filter for x86 code, which
// only the program xz has.
func xzipped(t testing.TB, content []byte) []byte {
	t.Helper()
	cmd := exec.Command("xz", "--check=crc32", "--x86", "--lzma2=dict=1MiB")
	cmd.Stdin = bytes.NewReader(content)
	out, err := cmd.Output()
	if err == nil {
		return out
	}
	if !errors.Is(err, exec.ErrNotFound) {
		t.Fatal(err)
	}
	var plain bytes.Buffer // without the program: without the filter
	z, err := xz.NewWriter(&plain)
	if err == nil {
		_, err = z.Write(content)
	}
	if err := errors.Join(err, z.Close()); err != nil {
		t.Fatal(err)
	}
	return plain.Bytes()
}

func sized(packed, content []byte) []byte {
	return binary.LittleEndian.AppendUint32(packed, uint32(len(content)))
}

func TestEveryCompressionIsDecompressed(t *testing.T) {
	content := vmlinux(strings.Repeat("\xe8\x00\x01\x02\x00code and \x00 more code", 5000))
	for name, payload := range everyCompression(t, content) {
		k := read(t, bzImage(payload))
		if k.Format != BzImage || k.Version != someVersion {
			t.Errorf("%s: recognised as %s %q", name, k.Format, k.Version)
		}
		got, err := k.Vmlinux()
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("%s: got %d bytes, %v; want %d", name, len(got), err, len(content))
		}
	}
}

// everyCompression compresses a program in each format that kernels use.
func everyCompression(t testing.TB, content []byte) map[string][]byte {
	t.Helper()
	var zst, lz bytes.Buffer
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = z.Write(content)
	_ = z.Close()
	l := lz4.NewWriter(&lz)
	if err := l.Apply(lz4.LegacyOption(true)); err != nil {
		t.Fatal(err)
	}
	_, _ = l.Write(content)
	_ = l.Close()
	return map[string][]byte{
		"gzip": gzipped(content),
		"xz":   sized(xzipped(t, content), content),
		"zstd": sized(zst.Bytes(), content),
		"lz4":  sized(lz.Bytes(), content),
	}
}

func TestErrorsOfDecompression(t *testing.T) {
	packed := gzipped(vmlinux("x"))
	wrongSize := sized(gzipped(vmlinux("y"))[:len(packed)-4], []byte("z"))
	for says, payload := range map[string][]byte{
		"bzip2":             append([]byte("BZh9"), make([]byte, 40)...),
		"lzma":              append([]byte("\x5d\x00\x00\x80"), make([]byte, 40)...),
		"lzo":               append([]byte("\x89LZO"), make([]byte, 40)...),
		"unknown way":       make([]byte, 40),
		"cannot decompress": append([]byte("\x1f\x8b\x08"), make([]byte, 40)...),
		"is not a program":  gzipped([]byte("this is no ELF program at all")),
		"checksum":          wrongSize,
	} {
		_, err := read(t, bzImage(payload)).Vmlinux()
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v; want an error that says %q", err, says)
		}
	}
}

func TestDecompressionIsBounded(t *testing.T) {
	k := read(t, bzImage(gzipped(make([]byte, 4<<20))))
	if _, err := k.unpack(1 << 20); err == nil || !strings.Contains(err.Error(), "more than 1 MiB") {
		t.Errorf("got %v", err)
	}
}

func TestOtherFilesAreRefused(t *testing.T) {
	truncated := bzImage(gzipped(vmlinux(strings.Repeat("x", 5000))))
	arm := vmlinux("Linux version 6.1.0 ")
	binary.LittleEndian.PutUint16(arm[18:], 183)
	old := bzImage(gzipped(vmlinux("")))
	binary.LittleEndian.PutUint16(old[atProtocol:], 0x0207)
	for says, file := range map[string][]byte{
		"not a Linux kernel": []byte("#!/bin/sh\n"),
		"AARCH64":            arm,
		"without a Linux":    vmlinux("some other program"),
		"truncated":          truncated[:len(truncated)-40],
		"too old":            old,
	} {
		_, err := Read(bytes.NewReader(file), int64(len(file)))
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v; want an error that says %q", err, says)
		}
	}
	if _, err := Read(bytes.NewReader(nil), 0); !errors.Is(err, ErrNoKernel) {
		t.Errorf("got %v for an empty file", err)
	}
}

// TestELFVersionAcrossWindows puts the banner at the end of a window.
func TestELFVersionAcrossWindows(t *testing.T) {
	for _, at := range []int{100, 1<<20 - 70, 1<<20 - 20, 2 << 20} {
		pad := strings.Repeat("Linux version %s\x00", at/len("Linux version %s\x00"))
		k := read(t, vmlinux(pad+"Linux version "+someVersion+" (x)"))
		if k.Format != ELF || k.Version != someVersion {
			t.Errorf("at %d: got %s %q", at, k.Format, k.Version)
		}
	}
}

func TestConfigInTheKernel(t *testing.T) {
	text := "# comment\nCONFIG_VIRTIO_BLK=y\nCONFIG_OVERLAY_FS=m\n# CONFIG_XFS_FS is not set\nCONFIG_LOCALVERSION=\"-a=b\"\n"
	image := vmlinux("looks for IKCFG_ST and " + configBegin + string(gzipped([]byte(text))) + configEnd)
	c, ok, err := EmbeddedConfig(image)
	if err != nil || !ok || c["VIRTIO_BLK"] != "y" || c["OVERLAY_FS"] != "m" || c["LOCALVERSION"] != `"-a=b"` || len(c) != 3 {
		t.Errorf("got %v, %v, %v", c, ok, err)
	}
	if _, ok, err := EmbeddedConfig(vmlinux("none, only IKCFG_ST")); ok || err != nil {
		t.Errorf("got %v, %v for a kernel without one", ok, err)
	}
	if _, ok, err := EmbeddedConfig(vmlinux(configBegin + "\x1f\x8b")); ok || err == nil {
		t.Errorf("got %v, %v for one without an end", ok, err)
	}
}

func TestConfigIsBounded(t *testing.T) {
	endless := io.MultiReader(strings.NewReader("CONFIG_X=y\n"), strings.NewReader(strings.Repeat("#\n", maxConfig)))
	if _, err := ParseConfig(endless); err == nil {
		t.Error("a configuration without an end was read")
	}
	if _, err := ParseConfig(strings.NewReader("<html>\n")); err == nil {
		t.Error("a page was accepted as a configuration")
	}
}

func TestBuiltinUsesTheBestSource(t *testing.T) {
	blk := Driver{Module: "virtio_blk", Config: "VIRTIO_BLK"}
	names := vmlinux("x\x00virtio_blk\x00devtmpfs\x00virtio-mmio\x00 see overlay\x00 virtio_net and more")
	for _, c := range []struct {
		what    string
		witness Witness
		driver  Driver
		want    Answer
	}{
		{"no source", Witness{}, blk, Unknown},
		{"the configuration", Witness{Config: Config{"VIRTIO_BLK": "y"}, Modules: map[string]bool{}}, blk, Yes},
		{"a module in it", Witness{Config: Config{"VIRTIO_BLK": "m"}, Vmlinux: names}, blk, No},
		{"the list", Witness{Modules: map[string]bool{"virtio_blk": true}}, blk, Yes},
		{"the list, without it", Witness{Modules: map[string]bool{"x": true}, Vmlinux: names}, blk, No},
		{"its name", Witness{Vmlinux: names}, blk, Yes},
		{"its name with a hyphen", Witness{Vmlinux: names}, Driver{Module: "virtio_mmio"}, Yes},
		{"the end of another name", Witness{Vmlinux: names}, Driver{Module: "tmpfs"}, Yes},
		{"a mention in a sentence", Witness{Vmlinux: names}, Driver{Module: "virtio_net"}, No},
		{"a name without its mark", Witness{Vmlinux: names}, Driver{Module: "overlay"}, No},
	} {
		if got := c.witness.Builtin(c.driver); got != c.want {
			t.Errorf("%s: got %v, want %v", c.what, got, c.want)
		}
	}
}

func TestParseBuiltin(t *testing.T) {
	names, err := ParseBuiltin(strings.NewReader("kernel/fs/ext4/ext4.ko\nkernel/drivers/virtio/virtio-pci.ko.xz\nnonsense\nx.kogood\n"))
	if err != nil || len(names) != 2 || !names["ext4"] || !names["virtio_pci"] {
		t.Errorf("got %v, %v", names, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(bzImage(gzipped(vmlinux("Linux version 6.1 " + configBegin + string(gzipped([]byte("CONFIG_A=y\n"))) + configEnd))))
	for _, payload := range everyCompression(f, vmlinux("Linux version 6.1 ")) {
		f.Add(bzImage(payload))
	}
	f.Add(vmlinux("Linux version 5.10.0 "))
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, file []byte) {
		k, err := Read(bytes.NewReader(file), int64(len(file)))
		if err != nil {
			return
		}
		if len(k.Version) > maxVersion || strings.ContainsAny(k.Version, "/\x00 \n") {
			t.Errorf("version %q", k.Version)
		}
		if k.Format == ELF {
			return
		}
		const limit = 1 << 20
		image, err := k.unpack(limit)
		if err != nil {
			return
		}
		if len(image) > limit {
			t.Errorf("unpacked %d bytes", len(image))
		}
		_, _, _ = EmbeddedConfig(image)
		_ = Witness{Vmlinux: image}.Builtin(Driver{Module: "ext4"})
	})
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte("CONFIG_A=y\n"))
	f.Fuzz(func(_ *testing.T, text []byte) {
		_, _ = ParseConfig(bytes.NewReader(text))
		_, _ = ParseBuiltin(bytes.NewReader(text))
		_, _, _ = EmbeddedConfig(append([]byte(configBegin+"\x1f\x8b"), text...))
	})
}
