//go:build linux

package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// pageSize is what is left out when it is all zeros.
const pageSize = 4096

// copiers is how many chunks are copied at a time: reading, adding up and
// writing keep a processor busy.
const copiers = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// transfer copies what src holds to dst, which is all hole and as large, and
// returns the checksums of the chunks. check, unless nil, may refuse one.
func transfer(ctx context.Context, dst, src *os.File, size int64, check func(chunk int, sum int64) error) ([]int64, error) {
	sums := make([]int64, chunks(size))
	for i := range sums {
		sums[i] = zeros
	}
	filled, err := withData(src, size)
	if err != nil {
		return nil, err
	}
	buffers := sync.Pool{New: func() any { b := make([]byte, chunkSize); return &b }}
	each, within := errgroup.WithContext(ctx)
	each.SetLimit(min(copiers, runtime.NumCPU()))
	for _, i := range filled {
		if within.Err() != nil {
			break
		}
		each.Go(func() error {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			at := int64(i) * chunkSize
			sum, err := copyChunk(dst, src, at, (*buf)[:min(chunkSize, size-at)])
			sums[i] = sum
			return err
		})
	}
	if err := each.Wait(); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return sums, verify(sums, check)
}

func verify(sums []int64, check func(chunk int, sum int64) error) error {
	if check == nil {
		return nil
	}
	for i, sum := range sums {
		if err := check(i, sum); err != nil {
			return err
		}
	}
	return nil
}

// withData lists the chunks in which the file is not all hole.
func withData(f *os.File, size int64) (filled []int, err error) {
	for at := int64(0); at < size; {
		begin, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break // only a hole is left
		}
		if err != nil {
			return nil, fmt.Errorf("cannot find what memory holds: %w", err)
		}
		end, err := unix.Seek(int(f.Fd()), begin, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("cannot find what memory holds: %w", err)
		}
		for i := int(begin / chunkSize); int64(i)*chunkSize < min(end, size); i++ {
			filled = append(filled, i)
		}
		at = int64(chunks(end)) * chunkSize // the rest of this chunk is in the list
	}
	return filled, nil
}

// copyChunk copies a chunk but for pages of zeros, and returns its checksum.
func copyChunk(dst, src *os.File, at int64, data []byte) (sum int64, err error) {
	if _, err := io.ReadFull(io.NewSectionReader(src, at, int64(len(data))), data); err != nil {
		return 0, fmt.Errorf("cannot read memory: %w", err)
	}
	empty := true
	for begin, end := range filledRuns(data) {
		empty = false
		if _, err := dst.WriteAt(data[begin:end], at+int64(begin)); err != nil {
			return 0, fmt.Errorf("cannot write memory: %w", err)
		}
	}
	if empty {
		return zeros, nil
	}
	return int64(crc32.Checksum(data, castagnoli)), nil
}

var zeroPage [pageSize]byte

// filledRuns yields the begin and end of each run of pages that hold something.
func filledRuns(data []byte) func(yield func(begin, end int) bool) {
	return func(yield func(begin, end int) bool) {
		begin := -1
		for at := 0; at < len(data); at += pageSize {
			page := data[at:min(at+pageSize, len(data))]
			switch empty := bytes.Equal(page, zeroPage[:len(page)]); {
			case !empty && begin < 0:
				begin = at
			case empty && begin >= 0:
				if !yield(begin, at) {
					return
				}
				begin = -1
			}
		}
		if begin >= 0 {
			yield(begin, len(data))
		}
	}
}
