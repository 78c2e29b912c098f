package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
)

// Check reads back that both tables have exactly the chains, rules and elements for s.
func (r *Rules) Check(s State) error {
	const attempts = 3 // a list that changes while the kernel sends it may be wrong
	for _, t := range r.tables(s) {
		if t.family == nftables.TableFamilyBridge {
			for _, g := range s.Guests {
				for _, l := range r.limits(g) {
					t.chains = append(t.chains, l.chain())
				}
			}
		}
		var err error
		for range attempts {
			if err = t.check(); err == nil {
				break
			}
		}
		if err != nil {
			return fmt.Errorf("the packet rules in table %s are not as they must be: %w", t, err)
		}
	}
	owner, _, err := r.owner()
	if err != nil {
		return err
	}
	if owner != r.cfg.Network.Bridge {
		return fmt.Errorf("the packet rules are for bridge %q instead of %q", owner, r.cfg.Network.Bridge)
	}
	return nil
}

func (t table) check() error {
	conn, err := dial()
	if err != nil {
		return err
	}
	chains, err := conn.ListChainsOfTableFamily(t.family)
	if err != nil {
		return fmt.Errorf("cannot list chains: %w", err)
	}
	byName := map[string]*nftables.Chain{}
	for _, c := range chains {
		if c.Table.Name == t.name {
			byName[c.Name] = c
		}
	}
	for name := range byName {
		if !t.has(name) {
			return fmt.Errorf("the chain %s is not ours", name)
		}
	}
	for _, c := range t.chains {
		if err := c.check(conn, t.table(), byName[c.name]); err != nil {
			return fmt.Errorf("chain %s: %w", c.name, err)
		}
	}
	for _, s := range t.sets {
		if err := s.check(conn); err != nil {
			return fmt.Errorf("set %s: %w", s.set.Name, err)
		}
	}
	return nil
}

func (t table) has(name string) bool {
	return slices.ContainsFunc(t.chains, func(c chain) bool { return c.name == name })
}

func (c chain) check(conn *nftables.Conn, t *nftables.Table, got *nftables.Chain) error {
	if got == nil {
		return errors.New("is missing")
	}
	want := c.kernel(t)
	if !equal(got.Hooknum, want.Hooknum) || !equal(got.Priority, want.Priority) || got.Type != want.Type {
		return errors.New("has another hook")
	}
	if want.Policy != nil && !equal(got.Policy, want.Policy) {
		return errors.New("has another policy")
	}
	rules, err := conn.GetRules(t, want)
	if err != nil {
		return fmt.Errorf("cannot list rules: %w", err)
	}
	if len(rules) != len(c.rules) {
		return fmt.Errorf("%d rules instead of %d", len(rules), len(c.rules))
	}
	for i, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if comment != c.rules[i].comment || !sameExprs(t.Family, r.Exprs, c.rules[i].exprs) {
			return fmt.Errorf("rule %d is not %q", i+1, c.rules[i].comment)
		}
	}
	return nil
}

// sameExprs compares the expressions of two rules.
func sameExprs(family nftables.TableFamily, got, want []expr.Any) bool {
	return slices.EqualFunc(got, want, func(a, b expr.Any) bool {
		one, errOne := expr.Marshal(byte(family), withoutSetID(a))
		other, errOther := expr.Marshal(byte(family), withoutSetID(b))
		return errOne == nil && errOther == nil && bytes.Equal(one, other)
	})
}

// withoutSetID returns e without the number of its set, which holds during a
// transaction only.
func withoutSetID(e expr.Any) expr.Any {
	switch e := e.(type) {
	case *expr.Lookup:
		named := *e
		named.SetID = 0
		return &named
	case *expr.Dynset:
		named := *e
		named.SetID = 0
		return &named
	}
	return e
}

// check reads back that the set has exactly its elements.
func (s set) check(conn *nftables.Conn) error {
	got, err := conn.GetSetElements(s.set)
	if err != nil {
		return fmt.Errorf("cannot read: %w", err)
	}
	if s.elements == nil && s.late == nil {
		return nil // packets fill it
	}
	missing := map[string]bool{}
	for _, want := range slices.Concat(s.elements, s.late) {
		missing[elementName(want)] = true
	}
	if len(got) != len(missing) {
		return fmt.Errorf("%d elements instead of %d", len(got), len(missing))
	}
	for _, e := range got {
		delete(missing, elementName(e))
	}
	for name := range missing {
		return fmt.Errorf("element %s is missing", name)
	}
	return nil
}

// elementName tells elements of one set apart.
func elementName(e nftables.SetElement) string {
	name := fmt.Sprintf("%x", e.Key)
	if e.IntervalEnd {
		name += " (end)"
	}
	return name
}

func equal[T comparable](a, b *T) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

// owner returns the bridge that the tables in the kernel are for, "" when it is
// unknown, and whether there is a table of this name.
func (r *Rules) owner() (bridge string, exists bool, err error) {
	conn, err := dial()
	if err != nil {
		return "", false, err
	}
	tables, err := conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return "", false, fmt.Errorf("cannot list nftables tables: %w", err)
	}
	named := func(t *nftables.Table) bool { return t.Name == r.cfg.Table }
	if !slices.ContainsFunc(tables, named) {
		return "", false, nil
	}
	sets, err := conn.GetSets(r.inetTable())
	if err != nil {
		return "", true, fmt.Errorf("cannot list nftables sets: %w", err)
	}
	if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == setBridge }) {
		return "", true, nil
	}
	es, err := conn.GetSetElements(r.bridgeSet())
	if err != nil || len(es) == 0 {
		return "", true, err
	}
	return strings.TrimRight(string(es[0].Key), "\x00"), true, nil
}

// verify reads back g's elements only.
func (r *Rules) verify(g Guest) error {
	if err := r.session.has(r.senders(), senderKey(g)); err != nil {
		return fmt.Errorf("the packet rules do not know TAP %s: %w", g.TAP, err)
	}
	if err := r.session.has(r.stations(), stationKey(g)); err != nil {
		return fmt.Errorf("the packet rules do not know TAP %s: %w", g.TAP, err)
	}
	for _, l := range r.limits(g) {
		if err := r.session.has(l.chains, ifname(l.tap)); err != nil {
			return fmt.Errorf("the packet rules do not limit TAP %s: %w", g.TAP, err)
		}
	}
	return nil
}

// dial returns a connection for reading lists.
func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(setBuffers))
	if err != nil {
		return nil, fmt.Errorf("cannot reach nftables: %w", err)
	}
	return conn, nil
}
