package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hatchvm/hatch/internal/image/unpack"
)

// minPayload is less than any compressed kernel; sizeField holds the size of the
// decompressed kernel, which the build appends to the compressed one.
const (
	minPayload = 16
	sizeField  = 4
)

// Vmlinux returns the bare kernel: an ELF program, decompressed when the file
// is a bzImage. It has up to [MaxVmlinux] bytes.
func (k *Kernel) Vmlinux() ([]byte, error) {
	if k.Format == ELF {
		return unpack.ReadAll(io.NewSectionReader(k.file, 0, k.size), MaxVmlinux)
	}
	return k.unpack(MaxVmlinux)
}

// unpack decompresses the payload of a bzImage to at most limit bytes.
func (k *Kernel) unpack(limit int64) ([]byte, error) {
	var magic [unpack.MagicSize]byte
	if _, err := k.file.ReadAt(magic[:], k.payload.offset); err != nil {
		return nil, fmt.Errorf("cannot read the kernel: %w", err)
	}
	format, length := unpack.Detect(magic[:]), k.payload.length
	if format != unpack.Gzip { // whose trailer contains the size already
		length -= sizeField
	}
	vmlinux, err := unpack.First(io.NewSectionReader(k.file, k.payload.offset, length), format, limit)
	switch {
	case format == "":
		return nil, fmt.Errorf("the kernel is compressed in an unknown way (it begins with %x); %w", magic, unpack.ErrUnsupported)
	case errors.Is(err, unpack.ErrUnsupported):
		return nil, fmt.Errorf("the kernel is compressed with %w", err)
	case err != nil:
		return nil, fmt.Errorf("cannot decompress the kernel (%s): %w", format, err)
	}
	return vmlinux, k.checkUnpacked(vmlinux)
}

// checkUnpacked compares the result with the size that the file names.
func (k *Kernel) checkUnpacked(vmlinux []byte) error {
	var field [sizeField]byte
	if _, err := k.file.ReadAt(field[:], k.payload.offset+k.payload.length-sizeField); err != nil {
		return fmt.Errorf("cannot read the kernel: %w", err)
	}
	if want := binary.LittleEndian.Uint32(field[:]); int64(want) != int64(len(vmlinux)) {
		return fmt.Errorf("the kernel is damaged: it decompresses to %d bytes instead of %d", len(vmlinux), want)
	}
	if !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
		return errors.New("the kernel is damaged: the decompressed content is not a program")
	}
	return nil
}
