package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// table is the wanted content of an nftables table.
type table struct {
	family nftables.TableFamily
	name   string
	sets   []set
	// objects are what rules refer to beside sets.
	objects []*nftables.NamedObj
	chains  []chain
}

// set is a set and its elements. Both lists are nil for a set that packets fill.
type set struct {
	set      *nftables.Set
	elements []nftables.SetElement
	late     []nftables.SetElement // added once the chains exist that they lead to
}

// chain is a list of rules. One without a hook is only jumped to, and must precede
// the chains that jump to it.
type chain struct {
	name     string
	kind     nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    []rule
}

// rule is a condition with a verdict. The comment, which nft shows, identifies the
// rule when it is read back: it is unique in its chain.
type rule struct {
	comment string
	exprs   []expr.Any
}

func (r *Rules) tables(s State) []table { return []table{r.inet(s), r.bridge(s)} }

// String names the table as nft does.
func (t table) String() string {
	if t.family == nftables.TableFamilyBridge {
		return "bridge " + t.name
	}
	return "inet " + t.name
}

func (t table) table() *nftables.Table {
	return &nftables.Table{Family: t.family, Name: t.name}
}

// replace adds the replacement of the table to conn's transaction.
func (t table) replace(conn *nftables.Conn) error {
	kernel := t.table()
	conn.AddTable(kernel) // a missing table would fail the deletion
	conn.DelTable(kernel)
	conn.AddTable(kernel)
	ids := map[string]uint32{}
	for _, s := range t.sets {
		if err := conn.AddSet(s.set, nil); err != nil {
			return fmt.Errorf("cannot add set %s: %w", s.set.Name, err)
		}
		if err := addElements(conn, s.set, s.elements); err != nil {
			return err
		}
		ids[s.set.Name] = s.set.ID
	}
	for _, o := range t.objects {
		conn.AddObj(o)
	}
	for _, c := range t.chains {
		c.add(conn, kernel, ids)
	}
	return nil
}

// add adds the chain and its rules. ids are the sets' numbers in this transaction.
func (c chain) add(conn *nftables.Conn, t *nftables.Table, ids map[string]uint32) {
	kernel := conn.AddChain(c.kernel(t))
	for _, r := range c.rules {
		for _, e := range r.exprs {
			switch e := e.(type) {
			case *expr.Lookup:
				e.SetID = ids[e.SetName]
			case *expr.Dynset:
				e.SetID = ids[e.SetName]
			}
		}
		conn.AddRule(&nftables.Rule{
			Table: t, Chain: kernel, Exprs: r.exprs,
			UserData: userdata.AppendString(nil, userdata.TypeComment, r.comment),
		})
	}
}

func (c chain) kernel(t *nftables.Table) *nftables.Chain {
	k := &nftables.Chain{Name: c.name, Table: t}
	if c.hook != nil {
		policy := nftables.ChainPolicyAccept
		k.Type, k.Hooknum, k.Priority, k.Policy = c.kind, c.hook, &c.priority, &policy
	}
	return k
}
