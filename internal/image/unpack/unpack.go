// Package unpack decompresses kernels and kernel modules: gzip, xz, zstd and lz4,
// recognised by their magic numbers.
//
// The input is hostile: the memory for a decompressor's history and the size of
// the output are bounded. It reads no archives and compresses nothing. Start at
// [Detect] and [All].
package unpack

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/therootcompany/xz"
)

// maxWindow bounds the memory for a decompressor's history, in bytes. The build
// of the kernel uses up to 128 MiB.
const maxWindow = 128 << 20

// Format is a way to compress a file.
type Format string

// The formats. Those of the second row are recognised only.
const (
	Gzip, Xz, Zstd, Lz4 Format = "gzip", "xz", "zstd", "lz4"
	Bzip2, Lzma, Lzo    Format = "bzip2", "lzma", "lzo"
)

var magics = []struct {
	magic  string
	format Format
}{
	{"\x1f\x8b", Gzip},
	{"\xfd7zXZ\x00", Xz},
	{"\x28\xb5\x2f\xfd", Zstd},
	{"\x02\x21\x4c\x18", Lz4}, // of lz4 -l, which the kernel's build uses
	{"\x04\x22\x4d\x18", Lz4},
	{"BZh", Bzip2},
	{"\x5d\x00\x00", Lzma},
	{"\x89LZO", Lzo},
}

// MagicSize is how many bytes [Detect] needs at most.
const MagicSize = 6

// Detect returns the format of a file by its first bytes; "" for none of them.
func Detect(head []byte) Format {
	for _, m := range magics {
		if bytes.HasPrefix(head, []byte(m.magic)) {
			return m.format
		}
	}
	return ""
}

// ErrUnsupported is wrapped by the error for a format that cannot be decompressed.
var ErrUnsupported = errors.New("gzip, xz, zstd and lz4 can be decompressed")

// All decompresses r to its end, to at most limit bytes.
func All(r io.Reader, f Format, limit int64) ([]byte, error) { return unpack(r, f, limit, true) }

// First decompresses the first of the streams that r contains, to at most limit
// bytes, and ignores what follows it.
func First(r io.Reader, f Format, limit int64) ([]byte, error) { return unpack(r, f, limit, false) }

func unpack(r io.Reader, f Format, limit int64, every bool) ([]byte, error) {
	z, err := open(r, f, every)
	if err != nil {
		return nil, err
	}
	defer func() { _ = z.Close() }()
	return ReadAll(z, limit)
}

func open(r io.Reader, f Format, every bool) (io.ReadCloser, error) {
	switch f {
	case Gzip:
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		z.Multistream(every)
		return z, nil
	case Xz:
		z, err := xz.NewReader(r, maxWindow)
		if err != nil {
			return nil, err
		}
		z.Multistream(every)
		return io.NopCloser(z), nil
	case Zstd:
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	case Lz4:
		return io.NopCloser(lz4.NewReader(r)), nil
	}
	return nil, fmt.Errorf("%q: %w", f, ErrUnsupported)
}

// ReadAll reads r to its end, which must come within limit bytes.
func ReadAll(r io.Reader, limit int64) ([]byte, error) {
	all, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(all)) > limit {
		return nil, fmt.Errorf("it has more than %d MiB", limit>>20)
	}
	return all, err
}
