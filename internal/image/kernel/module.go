package kernel

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/hatchvm/hatch/internal/image/unpack"
)

// MaxModule bounds a decompressed module, in bytes; few have more than 20 MiB.
const MaxModule = 64 << 20

// vermagic precedes the version of the kernel in each of its modules.
const vermagic = "vermagic="

// ModuleVersion returns the version of the kernel that a module was built for;
// "" when it names none. The content may be compressed.
func ModuleVersion(content []byte) (string, error) {
	if !bytes.HasPrefix(content, []byte("\x7fELF")) {
		format := unpack.Detect(content)
		if format == "" {
			return "", errors.New("it is not a kernel module")
		}
		var err error
		if content, err = unpack.First(bytes.NewReader(content), format, MaxModule); err != nil {
			return "", fmt.Errorf("cannot decompress the module (%s): %w", format, err)
		}
	}
	_, after, found := bytes.Cut(content, []byte(vermagic))
	if !found {
		return "", nil
	}
	return versionIn(after), nil
}
