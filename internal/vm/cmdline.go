package vm

import (
	"fmt"
	"net/netip"
	"strings"
)

// Cmdline returns the guest's kernel command line: the VM's boot arguments and
// what the agent in the initramfs needs to know.
func (v VM) Cmdline(gateway netip.Addr, prefixBits int) string {
	args := []string{
		v.BootArgs,
		"hatch.mode=" + string(v.Boot.DiskMode),
		"hatch.rootfs=" + v.Boot.RootfsFormat,
		"hatch.hostname=" + v.Hostname(),
	}
	if v.EnableNetwork {
		args = append(args,
			fmt.Sprintf("hatch.ip=%s/%d", v.Lease.Address, prefixBits),
			"hatch.gw="+gateway.String(),
			"hatch.dns="+gateway.String(),
			"hatch.mac="+v.Lease.MAC.String(),
		)
	}
	return strings.TrimSpace(strings.Join(args, " "))
}
