//go:build linux

package memory

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/hatchvm/hatch/internal/vmm"
)

const (
	indexFormat = 1
	chunkSize   = 1 << 20  // bytes with one checksum
	maxIndex    = 64 << 20 // bytes; enough for 4 TiB of memory
)

// index tells what the copy of a guest's memory must hold. It guards against
// disks and mishaps, not against somebody who may write to the data directory.
type index struct {
	Format int   `json:"format"`
	Size   int64 `json:"size"` // of the memory, in bytes
	Chunk  int64 `json:"chunk"`
	// Sums are the CRC-32C of each chunk; zeros for one that is all zeros.
	Sums []int64 `json:"sums"`
}

// zeros stands for the checksum of a chunk that is all zeros.
const zeros = -1

func chunks(size int64) int { return int((size + chunkSize - 1) / chunkSize) }

func (x index) write(path string) error {
	text, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("cannot encode checksums: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// readIndex reads the checksums at path. Errors: errs.Conflict with code
// saved_unusable.
func readIndex(path string) (index, error) {
	f, err := os.Open(path)
	if err != nil {
		return index{}, vmm.Unusable("the checksums of its memory cannot be read").WithCause(err)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return index{}, vmm.Unusable("the checksums of its memory cannot be read").WithCause(err)
	}
	return parseIndex(text)
}

func parseIndex(text []byte) (index, error) {
	var x index
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&x); err != nil || len(text) > maxIndex {
		return index{}, vmm.Unusable("the checksums of its memory are damaged")
	}
	if x.Format != indexFormat || x.Chunk != chunkSize {
		return index{}, vmm.Unusable("its memory is of format %d, and this hatchd reads format %d", x.Format, indexFormat)
	}
	if x.Size < 1 || len(x.Sums) != chunks(x.Size) {
		return index{}, vmm.Unusable("the checksums of its memory are damaged")
	}
	return x, nil
}
