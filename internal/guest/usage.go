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
	client, _ := s.agent.current()
	if client == nil {
		return vm.GuestUsage{}, noAgent()
	}
	u, err := client.Usage(ctx)
	if err != nil {
		return vm.GuestUsage{}, requestError(err, func(answer *wire.RemoteError) error {
			return unavailable("the agent in the guest cannot read its usage").WithCause(answer)
		})
	}
	if err := checkUsage(u); err != nil {
		return vm.GuestUsage{}, unavailable("the agent in the guest sent an invalid usage").WithCause(err)
	}
	return vm.GuestUsage{
		Uptime:   time.Duration(u.UptimeMillis) * time.Millisecond,
		CPUBusy:  time.Duration(u.CPUBusyMillis) * time.Millisecond,
		Load:     u.Load,
		MemTotal: u.MemTotal, MemUsed: u.MemTotal - u.MemAvailable,
		DiskTotal: u.DiskTotal, DiskUsed: u.DiskTotal - u.DiskFree,
	}, nil
}

// Limits of a guest's usage.
const (
	maxMillis = int64(100 * 365 * 24 * time.Hour / time.Millisecond)
	maxBytes  = int64(1) << 60
	maxLoad   = 1e6
)

// checkUsage refuses values that no guest can have. Others may be false, too: only the
// VM's owner reads them.
func checkUsage(u wire.Usage) error {
	switch {
	case u.UptimeMillis < 0 || u.UptimeMillis > maxMillis, u.CPUBusyMillis < 0 || u.CPUBusyMillis > maxMillis:
		return errors.New("a time is out of range")
	case u.MemTotal < 0 || u.MemTotal > maxBytes, u.MemAvailable < 0 || u.MemAvailable > u.MemTotal:
		return errors.New("the memory is out of range")
	case u.DiskTotal < 0 || u.DiskTotal > maxBytes, u.DiskFree < 0 || u.DiskFree > u.DiskTotal:
		return errors.New("the disk is out of range")
	}
	for _, l := range u.Load {
		if l < 0 || l > maxLoad {
			return errors.New("the load is out of range")
		}
	}
	return nil
}
