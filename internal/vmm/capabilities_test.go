package vmm

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/errs"
)

func TestLimitsThatADriverCannotEnforceAreRefused(t *testing.T) {
	disk, network := Capabilities{DiskLimits: true}, Capabilities{NetworkLimits: true}
	for _, c := range []struct {
		can   Capabilities
		l     RateLimits
		field string // "" when it can
	}{
		{Capabilities{}, RateLimits{}, ""},
		{disk, RateLimits{Disk: DiskLimit{OpsPerSecond: 100}}, ""},
		{network, RateLimits{NetworkIn: NetworkLimit{1 << 20}, NetworkOut: NetworkLimit{1 << 20}}, ""},
		{network, RateLimits{Disk: DiskLimit{OpsPerSecond: 100}}, "rate_limits.disk"},
		{disk, RateLimits{NetworkIn: NetworkLimit{1 << 20}}, "rate_limits.network_in"},
		{disk, RateLimits{NetworkOut: NetworkLimit{1 << 20}}, "rate_limits.network_out"},
	} {
		t.Run(c.field, func(t *testing.T) {
			err := c.can.Limits("qemu", c.l)
			var e *errs.Error
			if c.field == "" && err != nil ||
				c.field != "" && (!errors.As(err, &e) || e.Kind != errs.Unsupported || e.Field != c.field || e.Hint == "" || !strings.Contains(e.Message, "qemu")) {
				t.Errorf("%+v of %+v: %v", c.l, c.can, err)
			}
		})
	}
}

func TestUnsupportedNumbersOfCPUsAreRefused(t *testing.T) {
	pairs := Capabilities{MaxVCPUs: 32, EvenVCPUs: true}
	for _, c := range []struct {
		can Capabilities
		n   int
		ok  bool
	}{
		{Capabilities{}, 1, true},
		{Capabilities{}, 999, true},
		{Capabilities{MaxVCPUs: 8}, 7, true},
		{Capabilities{MaxVCPUs: 8}, 9, false},
		{pairs, 1, true},
		{pairs, 2, true},
		{pairs, 3, false},
		{pairs, 32, true},
		{pairs, 34, false},
	} {
		t.Run(fmt.Sprintf("%+v", c), func(t *testing.T) {
			err := c.can.VCPUs("firecracker", c.n)
			var e *errs.Error
			if c.ok && err != nil || !c.ok && (!errors.As(err, &e) || e.Kind != errs.Unsupported || e.Field != "vcpu_count" || e.Hint == "") {
				t.Errorf("%d of %+v: %v", c.n, c.can, err)
			}
		})
	}
	if err := pairs.VCPUs("firecracker", 3); !strings.Contains(err.Error(), "firecracker runs 1 CPU or an even number of up to 32, not 3") {
		t.Error(err)
	}
}
