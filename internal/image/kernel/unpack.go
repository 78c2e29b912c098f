package kernel

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// minPayload is less than any compressed kernel; sizeField is the length of
// the decompressed kernel, which the build appends to the compressed one.
const (
	minPayload = 16
	sizeField  = 4
)

// maxWindow bounds the memory a decompressor may need for its history, in
// bytes. The kernel's own build uses up to 128 MiB.
const maxWindow = 128 << 20

// compression is one of the ways to pack a kernel. Its open is nil for those
// that we know by sight only.
type compression struct {
	name  string
	magic string
	open  func(io.Reader) (io.Reader, func(), error)
}

// compressions are the ones the kernel's build offers.
var compressions = []compression{
	{"gzip", "\x1f\x8b", openGzip},
	{"xz", "\xfd7zXZ\x00", openXz},
	{"zstd", "\x28\xb5\x2f\xfd", openZstd},
	{"lz4", "\x02\x21\x4c\x18", openLz4},
	{"bzip2", "BZh", nil},
	{"lzma", "\x5d\x00\x00", nil},
	{"lzo", "\x89LZO", nil},
}

func openGzip(r io.Reader) (io.Reader, func(), error) {
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, nil, err
	}
	z.Multistream(false) // the size field follows
	return z, func() {}, nil
}

func openXz(r io.Reader) (io.Reader, func(), error) {
	z, err := xz.NewReader(r, maxWindow)
	if err != nil {
		return nil, nil, err
	}
	z.Multistream(false)
	return z, func() {}, nil
}

func openZstd(r io.Reader) (io.Reader, func(), error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderMaxMemory(MaxVmlinux))
	if err != nil {
		return nil, nil, err
	}
	return z, z.Close, nil
}

func openLz4(r io.Reader) (io.Reader, func(), error) {
	return lz4.NewReader(r), func() {}, nil
}

// Vmlinux returns the bare kernel: an ELF program, decompressed when the file
// is a bzImage. It has up to [MaxVmlinux] bytes.
func (k *Kernel) Vmlinux() ([]byte, error) {
	if k.Format == ELF {
		return readAll(io.NewSectionReader(k.file, 0, k.size), MaxVmlinux)
	}
	return k.unpack(MaxVmlinux)
}

// unpack decompresses the payload of a bzImage to at most limit bytes.
func (k *Kernel) unpack(limit int64) ([]byte, error) {
	var magic [8]byte
	if _, err := k.file.ReadAt(magic[:], k.payload.offset); err != nil {
		return nil, fmt.Errorf("cannot read the kernel: %w", err)
	}
	c, err := compressionOf(magic[:])
	if err != nil {
		return nil, err
	}
	z, closeZ, err := c.open(k.packed(c))
	if err != nil {
		return nil, fmt.Errorf("cannot decompress the kernel (%s): %w", c.name, err)
	}
	defer closeZ()
	vmlinux, err := readAll(z, limit)
	if err != nil {
		return nil, fmt.Errorf("cannot decompress the kernel (%s): %w", c.name, err)
	}
	return vmlinux, k.checkUnpacked(vmlinux)
}

// packed returns the compressed kernel without the size field. gzip's own
// trailer ends with the size, which is not appended a second time.
func (k *Kernel) packed(c compression) io.Reader {
	length := k.payload.length
	if c.name != "gzip" {
		length -= sizeField
	}
	return io.NewSectionReader(k.file, k.payload.offset, length)
}

func compressionOf(magic []byte) (compression, error) {
	for _, c := range compressions {
		if !bytes.HasPrefix(magic, []byte(c.magic)) {
			continue
		}
		if c.open == nil {
			return c, fmt.Errorf("the kernel is compressed with %s, which cannot be looked into; gzip, xz, zstd and lz4 can", c.name)
		}
		return c, nil
	}
	return compression{}, fmt.Errorf("the kernel is compressed in an unknown way (it begins with %x)", magic)
}

// checkUnpacked compares the result with what the file says of it.
func (k *Kernel) checkUnpacked(vmlinux []byte) error {
	var field [sizeField]byte
	if _, err := k.file.ReadAt(field[:], k.payload.offset+k.payload.length-sizeField); err != nil {
		return fmt.Errorf("cannot read the kernel: %w", err)
	}
	if want := binary.LittleEndian.Uint32(field[:]); int64(want) != int64(len(vmlinux)) {
		return fmt.Errorf("the kernel is damaged: it decompresses to %d bytes instead of %d", len(vmlinux), want)
	}
	if !bytes.HasPrefix(vmlinux, []byte(elf.ELFMAG)) {
		return errors.New("the kernel is damaged: what it decompresses to is no program")
	}
	return nil
}

// readAll reads r to its end, which must come within limit bytes.
func readAll(r io.Reader, limit int64) ([]byte, error) {
	all, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(all)) > limit {
		return nil, fmt.Errorf("it has more than %d MiB", limit>>20)
	}
	return all, err
}
