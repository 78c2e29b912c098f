//go:build linux && amd64

package firecracker

import (
	"context"
	"errors"
	"net/http"

	"github.com/hatchvm/hatch/internal/vmm"
)

// balloonStats are figures that a guest reported through the balloon, in bytes. They
// may be incomplete or false.
type balloonStats struct {
	Total     uint64 `json:"total_memory"`
	Available uint64 `json:"available_memory"`
}

// maxMemory is more than any guest has, in bytes.
const maxMemory = 1 << 50

// guestMemory returns the figures that the guest reported last; the zero value if
// they are impossible or incomplete. They are current only if counts.MemoryReports
// has counted a report: Firecracker may still have figures from before the machine
// was saved. It refuses the request for a machine that was saved by an earlier hatchd
// and has no balloon.
//
// Linux 6.12 and newer report a figure that Firecracker before 1.14 does not know.
// From then on that Firecracker parses no report of the guest, and returns the first
// figures forever; counts.MemoryFailures counts those reports.
func (a *api) guestMemory(ctx context.Context) (vmm.GuestMemory, error) {
	var stats balloonStats
	err := a.call(ctx, http.MethodGet, "/balloon/statistics", nil, &stats)
	if _, ok := errors.AsType[*refusal](err); ok {
		return vmm.GuestMemory{}, nil
	}
	if err != nil || stats.Total > maxMemory || stats.Available == 0 || stats.Available > stats.Total {
		return vmm.GuestMemory{}, err
	}
	return vmm.GuestMemory{Total: int64(stats.Total), Available: int64(stats.Available)}, nil
}
