package kernel

import (
	"debug/elf"
	"encoding/binary"
	"io"

	"github.com/hatchvm/hatch/internal/image/unpack"
)

// maxNotes bounds a segment of ELF notes, in bytes.
const maxNotes = 1 << 20

// notePVH is the type, under the name Xen, of the note with the PVH entry point.
const notePVH = 18

// PVH reports whether an ELF kernel has the PVH entry point, without which QEMU
// cannot start it. It is false for a bzImage, which needs none.
func (k *Kernel) PVH() bool {
	if k.Format != ELF {
		return false
	}
	f, err := elf.NewFile(io.NewSectionReader(k.file, 0, k.size))
	if err != nil {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
			continue
		}
		notes, err := unpack.ReadAll(p.Open(), maxNotes)
		if err == nil && hasNote(notes, "Xen\x00", notePVH) {
			return true
		}
	}
	return false
}

// hasNote searches ELF notes: three words, a name and a value, each padded to four
// bytes.
func hasNote(notes []byte, name string, kind uint32) bool {
	for len(notes) >= 12 {
		nameSize := uint64(binary.LittleEndian.Uint32(notes))
		valueSize := uint64(binary.LittleEndian.Uint32(notes[4:]))
		wanted := binary.LittleEndian.Uint32(notes[8:]) == kind
		notes = notes[12:]
		if nameSize > uint64(len(notes)) {
			return false
		}
		if wanted && string(notes[:nameSize]) == name {
			return true
		}
		next := (nameSize+3)&^3 + (valueSize+3)&^3
		if next > uint64(len(notes)) {
			return false
		}
		notes = notes[next:]
	}
	return false
}

// Hint says what a file that is not a kernel seems to be, and what to give instead.
func Hint(r io.ReaderAt) string {
	head := make([]byte, 0x300)
	n, _ := r.ReadAt(head, 0) // may be short
	head = head[:n]
	is := func(at int, magic string) bool {
		return len(head) >= at+len(magic) && string(head[at:at+len(magic)]) == magic
	}
	switch {
	case is(0x38, "ARM\x64"):
		return "this is a kernel for arm64; give one for x86-64"
	case is(0, "MZ") && is(4, "zimg"):
		return "this is a compressed EFI image; give the bzImage or the vmlinux of the same kernel"
	case is(0, "MZ"):
		return "this is an EFI program; if it is a unified kernel image, extract the kernel with objcopy -O binary --only-section=.linux FILE vmlinuz"
	case unpack.Detect(head) != "":
		return "this is a compressed file; decompress it and give the result"
	case is(0, "\x7fELF\x01"):
		return "this is a 32-bit program; give a 64-bit kernel"
	case is(257, "ustar"), is(0, "070701"):
		return "this is an archive; give the kernel in it"
	}
	return "give a file such as /boot/vmlinuz-VERSION, or the vmlinux of a kernel's build"
}
