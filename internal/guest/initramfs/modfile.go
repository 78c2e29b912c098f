package initramfs

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/image/unpack"
)

// Limits of one module, in bytes.
const (
	maxModule  = 32 << 20
	maxModinfo = 64 << 10
)

// read returns the decompressed content of a module.
func (m *Modules) read(file string) ([]byte, error) {
	f, err := m.root.Open(file)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content, err := unpack.ReadAll(f, maxModule)
	if err != nil {
		return nil, fmt.Errorf("cannot read: %w", err)
	}
	format := unpack.Detect(content)
	if format == "" {
		return content, nil
	}
	if content, err = unpack.All(bytes.NewReader(content), format, maxModule); err != nil {
		return nil, fmt.Errorf("cannot decompress (%s): %w", format, err)
	}
	return content, nil
}

// dependencies returns the modules that must be loaded before a module and after it, from
// its .modinfo section. Names are canonical.
func dependencies(module []byte) (before, after []string, err error) {
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		return nil, nil, fmt.Errorf("not a module: %w", err)
	}
	section := f.Section(".modinfo")
	if section == nil || section.Size > maxModinfo || section.Type == elf.SHT_NOBITS || section.Flags&elf.SHF_COMPRESSED != 0 {
		return nil, nil, errors.New("not a module: it has no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, nil, fmt.Errorf("not a module: %w", err)
	}
	before, after = parseModinfo(string(info))
	return before, after, nil
}

// parseModinfo parses KEY=VALUE strings that end with a zero byte.
func parseModinfo(info string) (before, after []string) {
	for entry := range strings.SplitSeq(info, "\x00") {
		key, value, _ := strings.Cut(entry, "=")
		switch key {
		case "depends":
			for name := range strings.SplitSeq(value, ",") {
				if name = strings.TrimSpace(name); name != "" {
					before = append(before, canonical(name))
				}
			}
		case "softdep":
			pre, post := parseSoftdep(value)
			before, after = append(before, pre...), append(after, post...)
		}
	}
	return before, after
}

// parseSoftdep parses "pre: A B post: C".
func parseSoftdep(value string) (pre, post []string) {
	list := &pre
	for word := range strings.FieldsSeq(value) {
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
