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

// maxMetrics bounds one line of metrics, in bytes; Firecracker's have some 10 KiB.
const maxMetrics = 64 << 10

// counters adds up what Firecracker tells through its metrics pipe: each line
// holds what has been counted since the line before. The sums are kept in a
// file, so that they go on under the next daemon.
type counters struct {
	pipe   *os.File
	path   string
	reader sync.WaitGroup

	mu   sync.Mutex
	sum  counts
	told chan struct{} // closed and made anew with each line
}

// counts are what Firecracker counts of a machine.
type counts struct {
	vmm.BlockCounters
	MemoryTold   uint64 // how often its guest has told of its memory
	MemoryMissed uint64 // how much of that was not understood
}

// countBlocks begins to listen, from the sums in dir on.
func countBlocks(dir string) (*counters, error) {
	// Open both ways, it does not end before the process has opened it.
	pipe, err := os.OpenFile(filepath.Join(dir, metricsPipe+".pipe"), os.O_RDWR|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	c := &counters{pipe: pipe, path: filepath.Join(dir, countersFile), told: make(chan struct{})}
	if text, err := os.ReadFile(c.path); err == nil {
		_ = json.Unmarshal(text, &c.sum) // half a file: counting begins anew
	}
	c.reader.Go(c.listen)
	return c, nil
}

// listen takes in lines until close. Of one that is too long nothing is kept, and
// what follows it is heard.
func (c *counters) listen() {
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
			line = []byte("too long")
		}
		isTooLong = false
		if line = bytes.TrimSpace(line); len(line) > 0 {
			c.add(line)
		}
	}
}

// add takes in one line. One that cannot be read counts as one that tells nothing.
func (c *counters) add(line []byte) {
	delta := parseMetrics(line)
	c.mu.Lock()
	c.sum.ReadBytes += delta.ReadBytes
	c.sum.WriteBytes += delta.WriteBytes
	c.sum.ReadOps += delta.ReadOps
	c.sum.WriteOps += delta.WriteOps
	c.sum.MemoryTold += delta.MemoryTold
	c.sum.MemoryMissed += delta.MemoryMissed
	text, err := json.Marshal(c.sum)
	close(c.told)
	c.told = make(chan struct{})
	c.mu.Unlock()
	if err == nil {
		_ = os.WriteFile(c.path, text, 0o600) // a full disk costs the sums at the next daemon, not the machine
	}
}

// maxDelta is more than a disk can do between two lines; a process that tells
// more tells nothing.
const maxDelta = 1 << 50

func parseMetrics(line []byte) (delta counts) {
	var told struct {
		Block struct {
			ReadBytes  uint64 `json:"read_bytes"`
			WriteBytes uint64 `json:"write_bytes"`
			ReadOps    uint64 `json:"read_count"`
			WriteOps   uint64 `json:"write_count"`
		} `json:"block"`
		Balloon struct {
			Told   uint64 `json:"stats_updates_count"`
			Missed uint64 `json:"stats_update_fails"`
		} `json:"balloon"`
	}
	if err := json.Unmarshal(line, &told); err != nil {
		return delta
	}
	b, m := told.Block, told.Balloon
	if max(b.ReadBytes, b.WriteBytes, b.ReadOps, b.WriteOps, m.Told, m.Missed) > maxDelta {
		return delta
	}
	return counts{
		BlockCounters: vmm.BlockCounters{ReadBytes: b.ReadBytes, WriteBytes: b.WriteBytes, ReadOps: b.ReadOps, WriteOps: b.WriteOps},
		MemoryTold:    m.Told, MemoryMissed: m.Missed,
	}
}

// after returns the sums once a line has come that ask makes Firecracker write.
func (c *counters) after(ctx context.Context, ask func() error) (counts, error) {
	c.mu.Lock()
	told := c.told
	c.mu.Unlock()
	if err := ask(); err != nil {
		return counts{}, err
	}
	select {
	case <-told:
	case <-ctx.Done():
		return counts{}, fmt.Errorf("no metrics come: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum, nil
}

// close stops listening.
func (c *counters) close() {
	_ = c.pipe.Close()
	c.reader.Wait()
}
