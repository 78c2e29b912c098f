package vmm

import (
	"errors"
	"fmt"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestLimitsOutOfRangeAreRefused(t *testing.T) {
	for field, l := range map[string]RateLimits{
		"rate_limits.disk.bytes_per_second":        {Disk: DiskLimit{BytesPerSecond: 1}},
		"rate_limits.disk.ops_per_second":          {Disk: DiskLimit{BytesPerSecond: 1 << 20, OpsPerSecond: maxOpsPerSecond + 1}},
		"rate_limits.network_in.bytes_per_second":  {NetworkIn: NetworkLimit{maxBytesPerSecond + 1}},
		"rate_limits.network_out.bytes_per_second": {NetworkOut: NetworkLimit{-1}},
	} {
		t.Run(field, func(t *testing.T) {
			var e *errs.Error
			if err := l.Check(); !errors.As(err, &e) || e.Kind != errs.Invalid || e.Field != field || e.Code != "invalid_rate_limits" {
				t.Errorf("%+v: %v", l, err)
			}
		})
	}
	for _, l := range []RateLimits{
		{},
		{Disk: DiskLimit{minBytesPerSecond, minOpsPerSecond}, NetworkIn: NetworkLimit{minBytesPerSecond}, NetworkOut: NetworkLimit{maxBytesPerSecond}},
	} {
		t.Run(fmt.Sprintf("%+v", l), func(t *testing.T) {
			if err := l.Check(); err != nil {
				t.Errorf("%+v: %v", l, err)
			}
		})
	}
}
