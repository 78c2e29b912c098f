//go:build linux

package sparse

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// ChunkSize is the size of the piece that a checksum is of, in bytes.
const ChunkSize = 1 << 20

const (
	format   = 1
	maxIndex = 64 << 20 // bytes; enough for 4 TiB
)

// Index is the checksums of a file.
type Index struct {
	Format int   `json:"format"`
	Size   int64 `json:"size"` // of the file, in bytes
	Chunk  int64 `json:"chunk"`
	// Sums are the CRC-32C of each chunk; -1 for a chunk of zeros.
	Sums []int64 `json:"sums"`
}

// zeros is the checksum of a chunk of zeros.
const zeros = -1

// newIndex returns the index of a file of zeros.
func newIndex(size int64) Index {
	x := Index{Format: format, Size: size, Chunk: ChunkSize, Sums: make([]int64, chunks(size))}
	for i := range x.Sums {
		x.Sums[i] = zeros
	}
	return x
}

func chunks(size int64) int { return int((size + ChunkSize - 1) / ChunkSize) }

// Write writes the index to a file, which the caller syncs.
func (x Index) Write(path string) error {
	text, err := json.Marshal(x)
	if err != nil {
		return fmt.Errorf("cannot encode checksums: %w", err)
	}
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return fmt.Errorf("cannot write checksums: %w", err)
	}
	return nil
}

// ReadIndex reads an index that Index.Write wrote. Errors: Unusable.
func (p Part) ReadIndex(path string) (Index, error) {
	f, err := os.Open(path)
	if err != nil {
		return Index{}, unusable(err, "the checksums of its %s cannot be read", p)
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxIndex+1))
	if err != nil {
		return Index{}, unusable(err, "the checksums of its %s cannot be read", p)
	}
	return p.ParseIndex(text)
}

// ParseIndex reads the text of an index file. Errors: Unusable.
func (p Part) ParseIndex(text []byte) (Index, error) {
	var x Index
	strict := json.NewDecoder(bytes.NewReader(text))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&x); err != nil {
		return Index{}, unusable(err, "the checksums of its %s are damaged", p)
	}
	if _, err := strict.Token(); !errors.Is(err, io.EOF) || len(text) > maxIndex {
		return Index{}, unusable(err, "the checksums of its %s are damaged", p)
	}
	if x.Format != format || x.Chunk != ChunkSize {
		return Index{}, unusable(nil, "its %s is of format %d, and this hatchd reads format %d", p, x.Format, format)
	}
	if x.Size < 1 || len(x.Sums) != chunks(x.Size) {
		return Index{}, unusable(nil, "the checksums of its %s are damaged", p)
	}
	return x, nil
}
