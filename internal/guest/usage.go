package guest

import (
	"context"
	"errors"
	"time"

	"github.com/hatchvm/hatch/internal/guest/wire"
	"github.com/hatchvm/hatch/internal/vm"
)

// Usage implements [vm.Guest].
func (s *session) Usage(ctx context.Context) (vm.GuestUsage, error) {
	client, _ := s.current()
	if client == nil {
		return vm.GuestUsage{}, unavailable("no agent answers in the guest")
	}
	u, err := client.Usage(ctx)
	if err != nil {
		return vm.GuestUsage{}, failure(err, func(answer *wire.RemoteError) error {
			return unavailable("the agent in the guest could not tell what it uses").WithCause(answer)
		})
	}
	if err := plausible(u); err != nil {
		return vm.GuestUsage{}, unavailable("the agent in the guest tells what cannot be").WithCause(err)
	}
	return vm.GuestUsage{
		Uptime:   time.Duration(u.UptimeMillis) * time.Millisecond,
		CPUBusy:  time.Duration(u.CPUBusyMillis) * time.Millisecond,
		Load:     u.Load,
		MemTotal: u.MemTotal, MemUsed: u.MemTotal - u.MemAvailable,
		DiskTotal: u.DiskTotal, DiskUsed: u.DiskTotal - u.DiskFree,
	}, nil
}

// Bounds of what a guest may say of itself.
const (
	maxMillis = int64(100 * 365 * 24 * time.Hour / time.Millisecond)
	maxBytes  = int64(1) << 60
	maxLoad   = 1e6
)

// plausible refuses numbers that no guest of ours can have. What is in range
// may be a lie all the same; it is the guest's own owner who reads it.
func plausible(u wire.Usage) error {
	switch {
	case u.UptimeMillis < 0 || u.UptimeMillis > maxMillis, u.CPUBusyMillis < 0 || u.CPUBusyMillis > maxMillis:
		return errors.New("a time is out of range")
	case u.MemTotal < 0 || u.MemTotal > maxBytes, u.MemAvailable < 0 || u.MemAvailable > u.MemTotal:
		return errors.New("its memory is out of range")
	case u.DiskTotal < 0 || u.DiskTotal > maxBytes, u.DiskFree < 0 || u.DiskFree > u.DiskTotal:
		return errors.New("its disk is out of range")
	}
	for _, l := range u.Load {
		if l < 0 || l > maxLoad {
			return errors.New("its load is out of range")
		}
	}
	return nil
}
