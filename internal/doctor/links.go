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

// createLinks makes a bridge and a TAP in a network namespace, which ends with its
// thread.
func createLinks() error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread must not be reused
		done <- createLinksHere()
	}()
	return <-done
}

func createLinksHere() error {
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

// filterChains lists the base chains for IPv4 packets that are forwarded or come to
// the host.
func filterChains() ([]Chain, error) {
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
		if !ok || c.Hooknum == nil || (*c.Hooknum != *nftables.ChainHookForward && *c.Hooknum != *nftables.ChainHookInput) {
			continue
		}
		rules := reachable(conn, c)
		chains = append(chains, Chain{
			Family: family, Table: c.Table.Name, Name: c.Name,
			Input:  *c.Hooknum == *nftables.ChainHookInput,
			Drops:  c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop || endsInDrop(rules[c.Name]),
			Admits: interfacesIn(conn, rules),
		})
	}
	return chains, nil
}

// reachable returns the rules of a chain and of those that it jumps to, by chain.
func reachable(conn *nftables.Conn, base *nftables.Chain) map[string][]*nftables.Rule {
	found := map[string][]*nftables.Rule{}
	next := []string{base.Name}
	for len(next) > 0 {
		name := next[0]
		next = next[1:]
		if _, seen := found[name]; seen {
			continue
		}
		rules, err := conn.GetRules(base.Table, &nftables.Chain{Name: name, Table: base.Table})
		if err != nil {
			rules = nil // as if it had none: its interfaces are unknown
		}
		found[name] = rules
		for _, r := range rules {
			for _, x := range r.Exprs {
				if v, ok := x.(*expr.Verdict); ok && v.Chain != "" {
					next = append(next, v.Chain)
				}
			}
		}
	}
	return found
}

// endsInDrop reports whether the last rule drops or rejects every packet.
func endsInDrop(rules []*nftables.Rule) bool {
	if len(rules) == 0 {
		return false
	}
	drops := false
	for _, x := range rules[len(rules)-1].Exprs {
		switch x := x.(type) {
		case *expr.Counter, *expr.Log:
		case *expr.Reject:
			drops = true
		case *expr.Target:
			drops = x.Name == "REJECT"
		case *expr.Verdict:
			drops = x.Kind == expr.VerdictDrop
		default:
			return false
		}
	}
	return drops
}

// interfacesIn returns the strings that rules compare with, or look up in sets; names
// of interfaces are among them.
func interfacesIn(conn *nftables.Conn, chains map[string][]*nftables.Rule) []string {
	var names []string
	for _, rules := range chains {
		for _, r := range rules {
			for _, x := range r.Exprs {
				switch x := x.(type) {
				case *expr.Cmp:
					if x.Op == expr.CmpOpEq {
						names = append(names, text(x.Data))
					}
				case *expr.Lookup:
					if !x.Invert {
						names = append(names, keysOf(conn, r.Table, x.SetName)...)
					}
				}
			}
		}
	}
	return names
}

// keysOf returns the keys of a set, or none if it cannot be read. Those of a map that
// leads to a drop are among them.
func keysOf(conn *nftables.Conn, table *nftables.Table, set string) []string {
	s, err := conn.GetSetByName(table, set)
	if err != nil {
		return nil
	}
	elements, err := conn.GetSetElements(s)
	if err != nil {
		return nil
	}
	keys := make([]string, len(elements))
	for i, e := range elements {
		keys[i] = text(e.Key)
	}
	return keys
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }
