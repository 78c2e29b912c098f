package bridge

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

const procNet = "/proc/sys/net"

// sysctl is a kernel setting below /proc/sys/net and the value it must have.
type sysctl struct {
	name  string // such as ipv4/ip_forward
	value string
}

// sysctls are the settings that the network depends on.
func (b *Bridge) sysctls() []sysctl {
	conf := "ipv4/conf/" + b.net.Bridge + "/"
	settings := []sysctl{
		b.forwarding(),
		// Guests learn the gateway's hardware address and no other of the host's.
		{conf + "arp_ignore", "1"},
		{conf + "proxy_arp", "0"},
		{conf + "route_localnet", "0"},
		{conf + "rp_filter", "1"},
		{conf + "accept_redirects", "0"},
		{conf + "send_redirects", "0"},
	}
	return append(settings, noIPv6(b.net.Bridge)...)
}

// forwarding is the setting by which the host passes packets on, for all interfaces.
func (b *Bridge) forwarding() sysctl { return sysctl{"ipv4/ip_forward", "1"} }

// noIPv6 turns IPv6 off on an interface. A kernel without IPv6 needs nothing.
func noIPv6(iface string) []sysctl {
	if _, err := os.Stat(filepath.Join(procNet, "ipv6")); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return []sysctl{{"ipv6/conf/" + iface + "/disable_ipv6", "1"}}
}

// apply sets the value unless it is set, and reads it back.
func (s sysctl) apply() error {
	if s.check() == nil {
		return nil
	}
	if err := os.WriteFile(s.path(), []byte(s.value), 0); err != nil {
		return fmt.Errorf("cannot set %s to %s: %w", s, s.value, err)
	}
	return s.check()
}

func (s sysctl) check() error {
	got, err := os.ReadFile(s.path())
	if err != nil {
		return fmt.Errorf("cannot read %s: %w", s, err)
	}
	if v := strings.TrimSpace(string(got)); v != s.value {
		return fmt.Errorf("%s is %s and must be %s", s, v, s.value)
	}
	return nil
}

func (s sysctl) path() string { return filepath.Join(procNet, s.name) }

// String names the setting with slashes, which sysctl(8) accepts too; the name of
// an interface may contain dots.
func (s sysctl) String() string { return "net/" + s.name }
