package agent

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// The kernel trusts the header of struct rand_pool_info.
func TestEntropyCountsAllBits(t *testing.T) {
	seed := []byte("0123456789abcdef0123456789abcdef")
	pool := entropy(seed)
	if bits := binary.NativeEndian.Uint32(pool); bits != 256 {
		t.Errorf("it counts %d bits", bits)
	}
	if size := binary.NativeEndian.Uint32(pool[4:]); int(size) != len(seed) || !bytes.Equal(pool[8:], seed) {
		t.Errorf("it has %d bytes, %q", size, pool[8:])
	}
}

// A guest whose generator was not reseeded must report an error.
func TestReseedReportsErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "urandom")
	if err := reseed(file, []byte("seed")); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without a device: %v", err)
	}
	write(t, file, "")
	if err := reseed(file, []byte("seed")); !errors.Is(err, unix.ENOTTY) {
		t.Errorf("on a regular file: %v", err)
	}
}
