package boot

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"github.com/hatchvm/hatch/internal/agent/drives"
	"github.com/hatchvm/hatch/internal/agent/nic"
)

// mode is how the root is assembled.
type mode string

const (
	overlay  mode = "overlay" // a shared read-only base below the VM's own disk
	ownCopy  mode = "copy"    // the VM's own disk holds a whole root
	noFormat      = ""        // the known formats are tried
)

// params are the agent's parameters on the kernel command line.
type params struct {
	mode     mode
	format   string   // of the root file system
	hostname string   // "" means that of the image
	init     string   // "" means the first of inits
	nic      *network // nil means no network

	entrypoint *entrypoint // nil means the image's init

	// disks are the disks' serials in their order, if the VMM cannot set serials.
	disks []string
}

// network is the configuration of the network.
type network struct {
	nic.Config
	dns []netip.Addr // name servers for resolv.conf
}

// parseParams parses a kernel command line. It ignores the parameters of others. If a
// parameter is given twice, the last one counts.
func parseParams(cmdline string) (params, error) {
	given := map[string]string{}
	for word := range strings.FieldsSeq(cmdline) {
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

func parseNIC(given map[string]string) (*network, error) {
	mac, err := net.ParseMAC(given["mac"])
	if err != nil {
		return nil, fmt.Errorf("hatch.mac: %w", err)
	}
	address, err := netip.ParsePrefix(given["ip"])
	if err != nil {
		return nil, fmt.Errorf("hatch.ip: %w", err)
	}
	n := &network{Config: nic.Config{MAC: mac, Address: address}}
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
