//go:build linux && amd64

package firecracker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/vmm"
)

// maxMetrics bounds one line of metrics, in bytes; Firecracker's lines have some
// 10 KiB.
const maxMetrics = 64 << 10

// counters sums Firecracker's metrics. Each line of the metrics pipe has what was
// counted since the line before. The sums are stored in a file too, from which the
// next daemon continues.
type counters struct {
	pipe   *os.File
	path   string
	reader sync.WaitGroup

	earlier uint64 // sum.DiskErrors that earlier daemons have heard of

	mu      sync.Mutex
	sum     counts
	updated chan struct{} // closed and replaced by each line
}

// counts are Firecracker's counters of a machine.
type counts struct {
	vmm.BlockCounters
	MemoryReports  uint64 `json:"MemoryTold"`   // reports of the guest about its memory
	MemoryFailures uint64 `json:"MemoryMissed"` // those of them that Firecracker could not parse
	DiskErrors     uint64 // requests to disks that were answered with an error
}

// newCounters starts to read the metrics of the machine in dir, and continues from the
// sums there.
func newCounters(dir string) (*counters, error) {
	// It is open for writing too: else reading ends before the process has opened it.
	pipe, err := os.OpenFile(filepath.Join(dir, metricsPipe+".pipe"), os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	c := &counters{pipe: pipe, path: filepath.Join(dir, countersFile), updated: make(chan struct{})}
	if text, err := os.ReadFile(c.path); err == nil {
		_ = json.Unmarshal(text, &c.sum) // of a truncated file the sums are 0
	}
	c.earlier = c.sum.DiskErrors
	c.reader.Go(c.read)
	return c, nil
}

// read adds lines until close. A line that is too long counts as one without counters.
func (c *counters) read() {
	lines := bufio.NewReaderSize(c.pipe, maxMetrics)
	for isTooLong := false; ; {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			isTooLong = true
			continue
		}
		if err != nil {
			return
		}
		if isTooLong {
			line = []byte("too long") // add ignores what is not JSON
		}
		isTooLong = false
		if line = bytes.TrimSpace(line); len(line) > 0 {
			c.add(line)
		}
	}
}

// add adds the counters of one line; one that cannot be parsed has none.
func (c *counters) add(line []byte) {
	delta := parseMetrics(line)
	c.mu.Lock()
	c.sum.ReadBytes += delta.ReadBytes
	c.sum.WriteBytes += delta.WriteBytes
	c.sum.ReadOps += delta.ReadOps
	c.sum.WriteOps += delta.WriteOps
	c.sum.MemoryReports += delta.MemoryReports
	c.sum.MemoryFailures += delta.MemoryFailures
	c.sum.DiskErrors += delta.DiskErrors
	text, err := json.Marshal(c.sum)
	close(c.updated)
	c.updated = make(chan struct{})
	c.mu.Unlock()
	if err == nil {
		_ = os.WriteFile(c.path, text, 0o600) // on a full disk the next daemon misses these sums
	}
}

// maxDelta is more than any counter can grow between two lines. parseMetrics ignores a
// line with a greater number.
const maxDelta = 1 << 50

func parseMetrics(line []byte) (delta counts) {
	var metrics struct {
		Block struct {
			ReadBytes  uint64 `json:"read_bytes"`
			WriteBytes uint64 `json:"write_bytes"`
			ReadOps    uint64 `json:"read_count"`
			WriteOps   uint64 `json:"write_count"`
			Errors     uint64 `json:"invalid_reqs_count"`
		} `json:"block"`
		Balloon struct {
			Reports  uint64 `json:"stats_updates_count"`
			Failures uint64 `json:"stats_update_fails"`
		} `json:"balloon"`
	}
	if err := json.Unmarshal(line, &metrics); err != nil {
		return delta
	}
	b, m := metrics.Block, metrics.Balloon
	if max(b.ReadBytes, b.WriteBytes, b.ReadOps, b.WriteOps, b.Errors, m.Reports, m.Failures) > maxDelta {
		return delta
	}
	return counts{
		BlockCounters: vmm.BlockCounters{ReadBytes: b.ReadBytes, WriteBytes: b.WriteBytes, ReadOps: b.ReadOps, WriteOps: b.WriteOps},
		MemoryReports: m.Reports, MemoryFailures: m.Failures, DiskErrors: b.Errors,
	}
}

// diskErrors returns the sum of DiskErrors since this daemon reads. Firecracker writes a line each minute.
func (c *counters) diskErrors() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum.DiskErrors - c.earlier
}

// afterFlush returns the sums with the line that flush makes Firecracker write.
func (c *counters) afterFlush(ctx context.Context, flush func() error) (counts, error) {
	c.mu.Lock()
	updated := c.updated
	c.mu.Unlock()
	if err := flush(); err != nil {
		return counts{}, err
	}
	select {
	case <-updated:
	case <-ctx.Done():
		return counts{}, fmt.Errorf("cannot read the metrics of Firecracker: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum, nil
}

// close stops reading.
func (c *counters) close() {
	_ = c.pipe.Close()
	c.reader.Wait()
}
