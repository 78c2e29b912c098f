package doctor

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// createLinks tries a bridge and a TAP in a network namespace of its own. The
// namespace ends with the thread that is in it.
func createLinks() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be reused
		done <- tryLinks()
	}()
	return <-done
}

func tryLinks() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("cannot make a network namespace: %w", err)
	}
	bridge := netlink.NewLinkAttrs()
	bridge.Name = "probe-br"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: bridge}); err != nil {
		return fmt.Errorf("cannot create a bridge: %w", err)
	}
	tap := netlink.NewLinkAttrs()
	tap.Name = "probe-tap"
	if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: tap, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
		return fmt.Errorf("cannot create a TAP interface: %w", err)
	}
	return nil
}

var families = map[nftables.TableFamily]string{
	nftables.TableFamilyINet: "inet", nftables.TableFamilyIPv4: "ip",
}

// forwardChains lists the chains that see forwarded IPv4 packets.
func forwardChains() ([]Chain, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, err
	}
	listed, err := conn.ListChains()
	if err != nil {
		return nil, err
	}
	var chains []Chain
	for _, c := range listed {
		family, ok := families[c.Table.Family]
		if !ok || c.Hooknum == nil || *c.Hooknum != *nftables.ChainHookForward {
			continue
		}
		chains = append(chains, Chain{
			Family: family, Table: c.Table.Name, Name: c.Name,
			Drops:  c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop,
			Admits: interfacesIn(conn, c),
		})
	}
	return chains, nil
}

// interfacesIn collects the strings that a chain's rules compare with; an
// interface's name is one of them.
func interfacesIn(conn *nftables.Conn, c *nftables.Chain) []string {
	rules, err := conn.GetRules(c.Table, c)
	if err != nil {
		return nil
	}
	var names []string
	for _, r := range rules {
		for _, x := range r.Exprs {
			if cmp, ok := x.(*expr.Cmp); ok && cmp.Op == expr.CmpOpEq {
				names = append(names, strings.TrimRight(string(cmp.Data), "\x00"))
			}
		}
	}
	return names
}
