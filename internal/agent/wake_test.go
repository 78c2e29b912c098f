package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel believes what the head says: all bits of the seed count, and no
// byte is left out.
func TestASeedIsWorthAllItsBits(t *testing.T) {
	seed := []byte("0123456789abcdef0123456789abcdef")
	pool := entropy(seed)
	if bits := binary.NativeEndian.Uint32(pool); bits != 256 {
		t.Errorf("it is worth %d bits", bits)
	}
	if size := binary.NativeEndian.Uint32(pool[4:]); int(size) != len(seed) || !bytes.Equal(pool[8:], seed) {
		t.Errorf("it has %d bytes, %q", size, pool[8:])
	}
}

// A guest that could not draw anew must not pass for one that did.
func TestWhatIsNotStirredIsAnError(t *testing.T) {
	file := filepath.Join(t.TempDir(), "urandom")
	if err := stir(file, []byte("seed")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without a device: %v", err)
	}
	write(t, file, "")
	if err := stir(file, []byte("seed")); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("on a file: %v", err)
	}
}
