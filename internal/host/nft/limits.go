package nft

import (
	"fmt"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Names of the bridge table's maps from the TAPs that have a limit to the chains
// that hold it.
const (
	mapSent     = "limits_out" // of what the guest sends
	mapReceived = "limits_in"  // of what the guest receives
)

// Limits bound what passes a TAP, in bytes per second; 0 means no bound. After a
// rest a second's worth passes at once, and what is above is dropped.
type Limits struct{ In, Out int64 } // received and sent by the guest

// frameRoom lets a frame pass that the kernel has not cut into pieces yet,
// however low the rate, in bytes.
const frameRoom = 64 << 10

// limit is one direction of a guest's limits.
type limit struct {
	tap    string
	places *nftables.Set
	rate   int64 // bytes per second
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

// isLimit reports whether a chain is a limit's.
func isLimit(chain string) bool {
	return strings.HasPrefix(chain, mapSent+"-") || strings.HasPrefix(chain, mapReceived+"-")
}

func (l limit) chain() *nftables.Chain {
	return &nftables.Chain{Table: l.places.Table, Name: l.places.Name + "-" + l.tap}
}

func (l limit) element() []nftables.SetElement {
	return []nftables.SetElement{{
		Key: ifname(l.tap), VerdictData: &expr.Verdict{Kind: expr.VerdictJump, Chain: l.chain().Name},
	}}
}

// add puts the limit in force, in place of another one of that TAP.
func (l limit) add(conn *nftables.Conn) error {
	chain := conn.AddChain(l.chain())
	conn.FlushChain(chain)
	conn.AddRule(&nftables.Rule{
		Table: chain.Table, Chain: chain,
		Exprs: join([]expr.Any{&expr.Limit{
			Type: expr.LimitTypePktBytes, Rate: uint64(l.rate), Unit: expr.LimitTimeSecond, Over: true, Burst: frameRoom,
		}}, drop()),
		UserData: userdata.AppendString(nil, userdata.TypeComment, "no more than its limit"),
	})
	if err := conn.SetAddElements(l.places, l.element()); err != nil {
		return fmt.Errorf("cannot fill map %s: %w", l.places.Name, err)
	}
	return nil
}

func addLimits(conn *nftables.Conn, limits []limit) error {
	for _, l := range limits {
		if err := l.add(conn); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rules) sent() *nftables.Set     { return r.limitMap(mapSent) }
func (r *Rules) received() *nftables.Set { return r.limitMap(mapReceived) }

func (r *Rules) limitMap(name string) *nftables.Set {
	return &nftables.Set{
		Table: r.bridgeTable(), Name: name, IsMap: true,
		KeyType: nftables.TypeIFName, DataType: nftables.TypeVerdict,
	}
}
