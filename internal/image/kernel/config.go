package kernel

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/hatchvm/hatch/internal/image/unpack"
)

// Config is a kernel's build configuration: the set options, without CONFIG_, and
// their values (y, m, a number or a text).
type Config map[string]string

// Bounds of a configuration. Distributions' have 300 KiB and lines of a hundred
// bytes.
const (
	maxConfig     = 4 << 20
	maxConfigLine = 64 << 10
)

// ParseConfig reads a configuration such as /boot/config-VERSION.
func ParseConfig(r io.Reader) (Config, error) {
	limited := &io.LimitedReader{R: r, N: maxConfig + 1}
	c := Config{}
	lines := bufio.NewScanner(limited)
	lines.Buffer(make([]byte, 0, 4096), maxConfigLine)
	for lines.Scan() {
		option, ok := strings.CutPrefix(lines.Text(), "CONFIG_")
		name, value, set := strings.Cut(option, "=")
		if ok && set && name != "" {
			c[name] = value
		}
	}
	switch {
	case lines.Err() != nil:
		return nil, fmt.Errorf("cannot read the kernel's configuration: %w", lines.Err())
	case limited.N == 0:
		return nil, fmt.Errorf("cannot read the kernel's configuration: it has more than %d MiB", maxConfig>>20)
	case len(c) == 0:
		return nil, errors.New("cannot read the kernel's configuration: it sets no option")
	}
	return c, nil
}

// Marks around the configuration that CONFIG_IKCONFIG puts into the kernel.
const (
	configBegin = "IKCFG_ST"
	configEnd   = "IKCFG_ED"
)

// EmbeddedConfig returns the configuration inside a bare kernel; ok is false
// when there is none.
func EmbeddedConfig(vmlinux []byte) (c Config, ok bool, err error) {
	for rest := vmlinux; ; {
		_, after, found := bytes.Cut(rest, []byte(configBegin))
		if !found {
			return nil, false, nil
		}
		// The mark also occurs in code that searches for it.
		if unpack.Detect(after) == unpack.Gzip {
			c, err := unpackConfig(after)
			return c, err == nil, err
		}
		rest = after
	}
}

func unpackConfig(after []byte) (Config, error) {
	packed, _, found := bytes.Cut(after, []byte(configEnd))
	if !found {
		return nil, errors.New("cannot read the configuration in the kernel: it has no end")
	}
	text, err := unpack.All(bytes.NewReader(packed), unpack.Gzip, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration in the kernel: %w", err)
	}
	return ParseConfig(bytes.NewReader(text))
}
