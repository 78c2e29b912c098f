package cp

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// formats are the compressed forms of an archive, by the bytes that they begin with.
var formats = []struct {
	name, magic string
	open        func(io.Reader) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b", func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) }},
	{"bzip2", "BZh", func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil }},
	{"xz", "\xfd7zXZ\x00", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) }},
	{"zstd", "\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) {
		return zstd.NewReader(r, zstd.WithDecoderConcurrency(1)) // starts no goroutines, so it need not be closed
	}},
}

// decompressed returns the archive in r, which may be compressed. An archive itself
// begins with the name of a file, which may be any bytes.
func decompressed(r io.Reader) (io.Reader, error) {
	buffered := bufio.NewReader(r)
	head, _ := buffered.Peek(6) // less is no archive, as its reader says
	for _, f := range formats {
		if !bytes.HasPrefix(head, []byte(f.magic)) || isArchive(buffered) {
			continue
		}
		archive, err := f.open(buffered)
		if err != nil {
			return nil, fmt.Errorf("cannot decompress stdin, which begins like %s: %w", f.name, err)
		}
		return archive, nil
	}
	return buffered, nil
}

// isArchive reports whether r begins with an uncompressed archive, of a file with an odd
// name.
func isArchive(r *bufio.Reader) bool {
	const at, magic = 257, "ustar"
	head, err := r.Peek(at + len(magic))
	return err == nil && string(head[at:]) == magic
}
