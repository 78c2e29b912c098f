// Package kernel reads Linux kernel files for x86-64: their format, version and
// built-in drivers.
//
// It reads bytes only: no paths, no programs, nothing of the host. The bytes are
// hostile; every size is bounded, and errors are for the user. It does not know
// what a guest needs: its caller does. Start at [Read].
package kernel

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Format is the format of a kernel file.
type Format string

// The formats that a VMM can start.
const (
	BzImage Format = "bzImage" // boot code and a compressed kernel
	ELF     Format = "elf"     // a bare vmlinux
)

// MaxFile bounds a kernel file, MaxVmlinux a decompressed kernel, in bytes.
const (
	MaxFile    = 1 << 30
	MaxVmlinux = 512 << 20
)

// ErrNoKernel is wrapped by the error for a file that is not a known kernel.
var ErrNoKernel = errors.New("not a Linux kernel for x86-64 (a bzImage or an ELF vmlinux)")

// Kernel is a recognised kernel file.
type Kernel struct {
	Format  Format
	Version string // as uname -r; "" when unknown

	file    io.ReaderAt
	size    int64
	payload section // of a bzImage
}

// section is a part of the file.
type section struct{ offset, length int64 }

// Read recognises a kernel file of size bytes. It reads a few KiB of a bzImage,
// and an ELF file up to its version. The kernel keeps r.
func Read(r io.ReaderAt, size int64) (*Kernel, error) {
	if size > MaxFile {
		return nil, fmt.Errorf("a kernel file of %d MiB is too large; up to %d MiB can be used", size>>20, MaxFile>>20)
	}
	k := &Kernel{file: r, size: size}
	var head [setupHeaderEnd]byte
	n, err := r.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read the kernel: %w", err)
	}
	switch {
	case bytes.HasPrefix(head[:n], []byte(elf.ELFMAG)):
		k.Format = ELF
		return k, k.readELF()
	case n == len(head) && string(head[0x202:0x206]) == "HdrS" && binary.LittleEndian.Uint16(head[0x1FE:]) == 0xAA55:
		k.Format = BzImage
		return k, k.readSetup(head[:])
	}
	return nil, ErrNoKernel
}

// setupHeaderEnd is after the last used field of the setup header.
const setupHeaderEnd = 0x250

// Offsets in the setup header, and its first versions with the payload's offset and
// with the flags, from the kernel's documentation of the x86 boot protocol.
const (
	atSetupSects    = 0x1F1
	atProtocol      = 0x206
	atVersion       = 0x20E
	atXLoadFlags    = 0x236
	atPayloadOffset = 0x248
	atPayloadLength = 0x24C
	payloadProtocol = 0x0208
	flagsProtocol   = 0x020C
	has64BitEntry   = 1 << 0
	sectorSize      = 512
)

// readSetup reads the version and the payload's offset from the setup header.
func (k *Kernel) readSetup(head []byte) error {
	if v := binary.LittleEndian.Uint16(head[atProtocol:]); v < payloadProtocol {
		return fmt.Errorf("the bzImage is too old: its boot protocol is %d.%02d, 2.08 (Linux 2.6.26) or later is needed", v>>8, v&0xFF)
	}
	if v := binary.LittleEndian.Uint16(head[atProtocol:]); v >= flagsProtocol && binary.LittleEndian.Uint16(head[atXLoadFlags:])&has64BitEntry == 0 {
		return fmt.Errorf("%w: a bzImage with a 32-bit kernel", ErrNoKernel)
	}
	sects := int64(head[atSetupSects])
	if sects == 0 {
		sects = 4 // which zero means in the boot protocol
	}
	k.payload = section{
		offset: (sects+1)*sectorSize + int64(binary.LittleEndian.Uint32(head[atPayloadOffset:])),
		length: int64(binary.LittleEndian.Uint32(head[atPayloadLength:])),
	}
	if k.payload.length < minPayload || k.payload.offset+k.payload.length > k.size {
		return errors.New("the bzImage is truncated: its compressed kernel is outside the file")
	}
	if at := int64(binary.LittleEndian.Uint16(head[atVersion:])); at != 0 {
		k.Version = k.textAt(at + sectorSize)
	}
	return nil
}

// maxVersion bounds a version; the kernel itself allows 64 bytes.
const maxVersion = 64

// textAt returns the first word of the text at an offset of the file.
func (k *Kernel) textAt(offset int64) string {
	text := make([]byte, maxVersion+1)
	n, _ := k.file.ReadAt(text, offset) // may be short
	return versionIn(text[:n])
}

// versionIn returns the version at the start of text, or "".
func versionIn(text []byte) string {
	end := bytes.IndexFunc(text, func(c rune) bool { return !strings.ContainsRune(versionChars, c) })
	if end <= 0 || end > maxVersion || text[0] < '0' || text[0] > '9' {
		return ""
	}
	return string(text[:end])
}

const versionChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_+~"

// readELF checks that the file is an x86-64 program and finds its version.
func (k *Kernel) readELF() error {
	f, err := elf.NewFile(io.NewSectionReader(k.file, 0, k.size))
	if err != nil {
		return fmt.Errorf("%w: it looks like ELF, but: %w", ErrNoKernel, err)
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return fmt.Errorf("%w: an ELF file of type %s for %s", ErrNoKernel, f.Type, f.Machine)
	}
	k.Version, err = findVersion(io.NewSectionReader(k.file, 0, min(k.size, MaxVmlinux)))
	if err != nil {
		return err
	}
	if k.Version == "" {
		return fmt.Errorf("%w: an ELF program without a Linux banner", ErrNoKernel)
	}
	return nil
}

// banner precedes the version in every Linux image.
const banner = "Linux version "

// findVersion searches r for the first banner with a version.
func findVersion(r io.Reader) (string, error) {
	const window = 1 << 20
	buf := make([]byte, 0, window)
	for {
		n, err := io.ReadFull(r, buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		for rest := buf; ; {
			_, after, found := bytes.Cut(rest, []byte(banner))
			if !found {
				break
			}
			if v := versionIn(after); v != "" {
				return v, nil
			}
			rest = after
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return "", nil
		}
		if err != nil {
			return "", fmt.Errorf("cannot read the kernel: %w", err)
		}
		keep := len(banner) + maxVersion + 1 // a banner may be in two windows
		buf = buf[:copy(buf, buf[len(buf)-keep:])]
	}
}
