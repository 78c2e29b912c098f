package boot

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/hatchvm/hatch/internal/agent/drives"
	"github.com/hatchvm/hatch/internal/agent/nic"
)

// mode says what the root is made of.
type mode string

const (
	overlay  mode = "overlay" // a shared read-only base below the VM's own disk
	ownCopy  mode = "copy"    // the VM's own disk holds a whole root
	noFormat      = ""        // the file system is found by trying
)

// params is what the kernel command line says to the agent.
type params struct {
	mode     mode
	format   string      // of the root file system
	hostname string      // "" leaves it to the image
	init     string      // "" looks for one
	nic      *attachment // nil: no network

	entrypoint *entrypoint // nil: the image's init runs, or nothing

	// disks are the disks' serials in their order, from a VMM that cannot give a
	// disk a serial.
	disks []string
}

// attachment is what the network interface is configured to.
type attachment struct {
	nic.Place
	dns []netip.Addr // of the resolver
}

// parseParams reads a kernel command line. Words that are not ours are passed
// over; of a word given twice the last one counts.
func parseParams(cmdline string) (params, error) {
	given := map[string]string{}
	for _, word := range strings.Fields(cmdline) {
		if key, value, ok := strings.Cut(word, "="); ok && strings.HasPrefix(key, "hatch.") {
			given[strings.TrimPrefix(key, "hatch.")] = value
		}
	}
	p := params{mode: mode(given["mode"]), format: given["rootfs"], hostname: given["hostname"], init: given["init"], disks: drives.Order(cmdline)}
	if p.mode != overlay && p.mode != ownCopy {
		return params{}, fmt.Errorf("hatch.mode is %q on the kernel command line; it must be overlay or copy", p.mode)
	}
	var err error
	if text := given["entrypoint"]; text != "" {
		if p.entrypoint, err = parseEntrypoint(text); err != nil {
			return params{}, fmt.Errorf("hatch.entrypoint: %w", err)
		}
	}
	if given["mac"] == "" {
		return p, nil
	}
	p.nic, err = parseNIC(given)
	return p, err
}

func parseNIC(given map[string]string) (*attachment, error) {
	mac, err := net.ParseMAC(given["mac"])
	if err != nil {
		return nil, fmt.Errorf("hatch.mac: %w", err)
	}
	address, err := netip.ParsePrefix(given["ip"])
	if err != nil {
		return nil, fmt.Errorf("hatch.ip: %w", err)
	}
	n := &attachment{Place: nic.Place{MAC: mac, Address: address}}
	if gw := given["gw"]; gw != "" {
		if n.Gateway, err = netip.ParseAddr(gw); err != nil {
			return nil, fmt.Errorf("hatch.gw: %w", err)
		}
	}
	for server := range strings.SplitSeq(given["dns"], ",") {
		if server == "" {
			continue
		}
		addr, err := netip.ParseAddr(server)
		if err != nil {
			return nil, fmt.Errorf("hatch.dns: %w", err)
		}
		n.dns = append(n.dns, addr)
	}
	return n, nil
}
