package initramfs

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Bounds of one module, in bytes.
const (
	maxModule  = 32 << 20
	maxModinfo = 64 << 10
	maxWindow  = 64 << 20 // of a decompressor
)

// format is how a module's file is compressed.
type format int

const (
	unknown format = iota
	plain
	gzipped
	xzipped
	zstandard
)

func formatOf(file string) format {
	return map[string]format{".ko": plain, ".gz": gzipped, ".xz": xzipped, ".zst": zstandard}[path.Ext(file)]
}

// read returns a module's content, decompressed.
func (m *Modules) read(file string) ([]byte, error) {
	f, err := m.root.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	return decompress(f, formatOf(file), maxModule)
}

// decompress takes and gives at most limit bytes.
func decompress(r io.Reader, f format, limit int64) ([]byte, error) {
	r = io.LimitReader(r, limit+1)
	var err error
	switch f {
	case plain:
	case gzipped:
		r, err = gzip.NewReader(r)
	case xzipped:
		r, err = xz.ReaderConfig{DictCap: maxWindow}.NewReader(r)
	case zstandard:
		var d *zstd.Decoder
		d, err = zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxWindow))
		if err == nil {
			defer d.Close()
			r = d
		}
	default:
		err = errors.New("unknown compression")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot decompress: %w", err)
	}
	content, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return nil, fmt.Errorf("cannot decompress: %w", err)
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("larger than %d KiB", limit>>10)
	}
	return content, nil
}

// dependencies reads from a module's own description what must be loaded
// before it, and what it wants after it. Names are canonical.
func dependencies(module []byte) (before, after []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, fmt.Errorf("not a module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil || section.Size > maxModinfo || section.Type == elf.SHT_NOBITS || section.Flags&elf.SHF_COMPRESSED != 0 {
		return nil, nil, errors.New("not a module: it has no description")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("not a module: %w", err)
	}
	before, after = parseModinfo(string(info))
	return before, after, nil
}

// parseModinfo reads KEY=VALUE strings, each ended by a zero byte.
func parseModinfo(info string) (before, after []string) {
	for entry := range strings.SplitSeq(info, "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			before = append(before, canonicals(strings.Split(value, ","))...)
		case "softdep":
			pre, post := parseSoftdep(value)
			before, after = append(before, pre...), append(after, post...)
		}
	}
	return before, after
}

// parseSoftdep reads "pre: A B post: C".
func parseSoftdep(value string) (pre, post []string) {
	list := &pre
	for _, word := range strings.Fields(value) {
		switch word {
		case "pre:":
			list = &pre
		case "post:":
			list = &post
		default:
			*list = append(*list, canonical(word))
		}
	}
	return pre, post
}

func canonicals(names []string) []string {
	var kept []string
	for _, name := range names {
		if name = strings.TrimSpace(name); name != "" {
			kept = append(kept, canonical(name))
		}
	}
	return kept
}
