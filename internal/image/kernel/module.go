package kernel

import (
	"bytes"
	"fmt"
)

// MaxModule bounds an unpacked module, in bytes; few have more than 20 MiB.
const MaxModule = 64 << 20

// vermagic precedes, in every module, the version of the kernel it is for.
const vermagic = "vermagic="

// ModuleVersion returns the version of the kernel that a module is made for,
// by the content of its file, which may be compressed; "" when it does not tell.
func ModuleVersion(content []byte) (string, error) {
	if !bytes.HasPrefix(content, []byte("\x7fELF")) {
		c, err := compressionOf(content[:min(len(content), 8)])
		if err != nil {
			return "", fmt.Errorf("it is no kernel module: %w", err)
		}
		r, closeR, err := c.open(bytes.NewReader(content))
		if err != nil {
			return "", fmt.Errorf("cannot decompress the module (%s): %w", c.name, err)
		}
		defer closeR()
		if content, err = readAll(r, MaxModule); err != nil {
			return "", fmt.Errorf("cannot decompress the module (%s): %w", c.name, err)
		}
	}
	_, after, found := bytes.Cut(content, []byte(vermagic))
	if !found {
		return "", nil
	}
	return versionIn(after), nil
}
