package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Names of the bridge table's maps from limited TAPs to the chains that limit them.
const (
	mapSent     = "limits_out" // of what the guest sends
	mapReceived = "limits_in"  // of what the guest receives
)

// Limits are rate limits of a TAP, in bytes per second; 0 means none. The burst is
// the traffic of one second. Packets above the limit are dropped.
type Limits struct{ In, Out int64 } // received and sent by the guest

// minBurst is the size of the largest frame, which the kernel may split only
// later, in bytes. It passes at any rate.
const minBurst = 64 << 10

// limit is one direction of a guest's limits.
type limit struct {
	tap    string
	chains *nftables.Set // the map from TAPs to chains
	rate   int64         // bytes per second
}

// limits lists the directions in which g is limited.
func (r *Rules) limits(g Guest) []limit {
	var found []limit
	for _, l := range []limit{{g.TAP, r.received(), g.Limits.In}, {g.TAP, r.sent(), g.Limits.Out}} {
		if l.rate > 0 {
			found = append(found, l)
		}
	}
	return found
}

// chain is what drops the packets above the limit.
func (l limit) chain() chain {
	over := &expr.Limit{Type: expr.LimitTypePktBytes, Rate: uint64(l.rate), Unit: expr.LimitTimeSecond, Over: true, Burst: minBurst}
	return chain{name: l.chains.Name + "-" + l.tap, rules: []rule{{"no more than its limit", join([]expr.Any{over}, drop())}}}
}

// entry leads to the chain.
func (l limit) entry() nftables.SetElement {
	return nftables.SetElement{Key: ifname(l.tap), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: l.chain().name}}
}

// add sets the limit, or replaces an earlier one of the TAP.
func (l limit) add(conn *nftables.Conn) error {
	c := l.chain()
	conn.FlushChain(conn.AddChain(c.kernel(l.chains.Table)))
	c.add(conn, l.chains.Table, nil)
	if err := conn.SetAddElements(l.chains, []nftables.SetElement{l.entry()}); err != nil {
		return fmt.Errorf("cannot fill map %s: %w", l.chains.Name, err)
	}
	return nil
}

// limited lists the entries of one of the maps.
func (r *Rules) limited(guests []Guest, name string) []nftables.SetElement {
	entries := []nftables.SetElement{} // not nil: set.check shall find it empty
	for _, g := range guests {
		for _, l := range r.limits(g) {
			if l.chains.Name == name {
				entries = append(entries, l.entry())
			}
		}
	}
	return entries
}

func (r *Rules) sent() *nftables.Set     { return r.limitMap(mapSent) }
func (r *Rules) received() *nftables.Set { return r.limitMap(mapReceived) }

func (r *Rules) limitMap(name string) *nftables.Set {
	return &nftables.Set{
		Table: r.bridgeTable(), Name: name, IsMap: true,
		KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict,
	}
}
