//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"net/http"

	"github.com/hatchvm/hatch/internal/vmm"
)

// balloonStats is what a guest has told through the balloon, in bytes. A guest
// tells what it knows, and what it likes.
type balloonStats struct {
	Total     uint64 `json:"total_memory"`
	Available uint64 `json:"available_memory"`
}

// maxMemory is more than any guest has.
const maxMemory = 1 << 50

// memory returns what was told, unless it makes no sense or is not whole.
func (b balloonStats) memory() vmm.GuestMemory {
	if b.Total > maxMemory || b.Available == 0 || b.Available > b.Total {
		return vmm.GuestMemory{}
	}
	return vmm.GuestMemory{Total: int64(b.Total), Available: int64(b.Available)}
}

// guestMemory asks what the guest told last; only what counts.MemoryTold counts
// is of this machine, and current: there may be older figures, from before the
// machine was saved. A machine without a balloon, one that was saved before there
// were any, refuses to say it.
//
// A Firecracker of before 1.14 understands nothing further once a guest's kernel
// (Linux 6.12 and newer) has told something that it does not know, and goes on to
// say the first figures for ever: that is MemoryMissed.
func (a *api) guestMemory(ctx context.Context) (vmm.GuestMemory, error) {
	var told balloonStats
	err := a.call(ctx, http.MethodGet, "/balloon/statistics", nil, &told)
	var no *refusal
	if errors.As(err, &no) {
		return vmm.GuestMemory{}, nil
	}
	return told.memory(), err
}
