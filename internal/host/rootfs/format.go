package rootfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/image/unpack"
)

// format is a format of root file systems.
type format struct {
	name     string
	writable bool // the kernel can write to it
	size     func(head []byte) uint64
}

// headSize covers the superblock of every format; that of btrfs is the last.
const headSize = 68 << 10

var formats = []struct {
	format
	at    int
	magic string
}{
	{format{"ext4", true, sizeExt4}, 0x438, "\x53\xef"},
	{format{"squashfs", false, sizeSquashfs}, 0, "hsqs"},
	{format{"erofs", false, sizeErofs}, 1024, "\xe2\xe1\xf5\xe0"},
	{format{"xfs", true, sizeXFS}, 0, "XFSB"},
	{format{"btrfs", true, sizeBtrfs}, 0x10040, "_BHRfS_M"},
}

func sizeExt4(head []byte) uint64 {
	blocks := uint64(binary.LittleEndian.Uint32(head[0x404:]))
	if incompat := binary.LittleEndian.Uint32(head[0x460:]); incompat&0x80 != 0 { // 64bit
		blocks |= uint64(binary.LittleEndian.Uint32(head[0x550:])) << 32
	}
	return blocks << (10 + min(binary.LittleEndian.Uint32(head[0x418:]), 6))
}

func sizeSquashfs(head []byte) uint64 { return binary.LittleEndian.Uint64(head[40:]) }

func sizeErofs(head []byte) uint64 {
	return uint64(binary.LittleEndian.Uint32(head[1024+36:])) << min(head[1024+12], 16)
}

func sizeXFS(head []byte) uint64 {
	return uint64(binary.BigEndian.Uint32(head[4:])) * binary.BigEndian.Uint64(head[8:])
}

func sizeBtrfs(head []byte) uint64 { return binary.LittleEndian.Uint64(head[0x10070:]) }

// readFormat recognises a root file system and refuses everything else.
func readFormat(f *os.File) (format, error) {
	head := make([]byte, headSize) // zeros follow a shorter file
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return format{}, cannotRead("rootfs_path", f.Name(), err)
	}
	st, err := f.Stat()
	if err != nil {
		return format{}, cannotRead("rootfs_path", f.Name(), err)
	}
	form, ok := formatOf(head)
	if !ok {
		what, hint := otherFormatOf(head)
		return format{}, errs.InvalidField("rootfs_path", "%s is %s; a file system is needed: ext4, squashfs, erofs, xfs or btrfs", f.Name(), what).
			WithHint("%s", hint)
	}
	if want := form.size(head); want > uint64(st.Size()) {
		return format{}, errs.InvalidField("rootfs_path", "%s is truncated: its %s file system has %d bytes, the file %d", f.Name(), form.name, want, st.Size()).
			WithHint("copy the file again from its source")
	}
	return form, nil
}

func formatOf(head []byte) (format, bool) {
	for _, f := range formats {
		if has(head, f.at, f.magic) {
			return f.format, true
		}
	}
	return format{}, false
}

func has(head []byte, at int, magic string) bool {
	return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
}

const (
	hintPartition = "extract the partition with the root file system: `fdisk -l FILE` shows its START and COUNT of sectors, then " +
		"`dd if=FILE of=rootfs.img bs=512 skip=START count=COUNT`"
	hintTree = "unpack it into a directory as root and make a file system of the directory: `mke2fs -t ext4 -d DIRECTORY rootfs.ext4 2G`"
)

// otherFormats are files that users mistake for root file systems.
var otherFormats = []struct {
	at                int
	magic, what, hint string
}{
	{0, "QFI\xfb", "a qcow2 disk image", convert("qcow2")},
	{0, "KDMV", "a VMDK disk image", convert("vmdk")},
	{0, "# Disk DescriptorFile", "a VMDK disk image", convert("vmdk")},
	{0, "vhdxfile", "a VHDX disk image", convert("vhdx")},
	{0, "conectix", "a VHD disk image", convert("vpc")},
	{0x40, "\x7f\x10\xda\xbe", "a VDI disk image", convert("vdi")},
	{512, "EFI PART", "a disk image with a partition table (GPT)", hintPartition},
	{4096, "EFI PART", "a disk image with a partition table (GPT)", hintPartition},
	{257, "ustar", "a tar archive", hintTree},
	{0, "070701", "a cpio archive", hintTree},
	{0, "PK\x03\x04", "a zip archive", decompressWith("unzip")},
	{0, "\x3a\xff\x26\xed", "an Android sparse image", "convert it with simg2img, and give the result"},
	{0x8001, "CD001", "an ISO 9660 image", "an installation medium cannot be a root file system; give the file system of an installed system"},
	{0, "LUKS\xba\xbe", "encrypted (LUKS)", "give a file system that is not encrypted"},
	{512, "LABELONE", "an LVM volume", "give the file system in it, copied to a file"},
	{0x400, "\x10\x20\xf5\xf2", "an f2fs file system", "copy its files to an ext4 file system"},
	{0, "\x7fELF", "an ELF program", "give the file system here, and the kernel as kernel_path"},
	{0x202, "HdrS", "a Linux kernel", "give the file system here, and the kernel as kernel_path"},
}

func convert(from string) string {
	return fmt.Sprintf("convert it: `qemu-img convert -f %s -O raw FILE disk.img`; when that has partitions, %s", from, hintPartition)
}

var decompressors = map[unpack.Format]string{
	unpack.Gzip: "gunzip", unpack.Xz: "unxz", unpack.Zstd: "unzstd", unpack.Lz4: "unlz4",
	unpack.Bzip2: "bunzip2", unpack.Lzma: "unlzma", unpack.Lzo: "lzop -d",
}

func decompressWith(program string) string {
	return fmt.Sprintf("decompress it with %s, and give the result if it is a file system", program)
}

func otherFormatOf(head []byte) (what, hint string) {
	for _, s := range otherFormats {
		if has(head, s.at, s.magic) {
			return s.what, s.hint
		}
	}
	if f := unpack.Detect(head); f != "" {
		return "compressed with " + string(f), decompressWith(decompressors[f])
	}
	if has(head, 510, "\x55\xaa") {
		if has(head, 54, "FAT") || has(head, 82, "FAT") {
			return "a FAT file system", "Linux cannot have its root on FAT; give the partition with the system itself"
		}
		return "a disk image with a partition table (MBR)", hintPartition
	}
	return "no known file system", "`file -s FILE` may tell what it is; mke2fs -t ext4 -d DIRECTORY makes a file system of a directory"
}
