// Package nft keeps the packet rules of a network: what guests reach, what
// reaches guests, and that only a guest's own MAC and address leave its TAP.
//
// The rules live in two tables of ours alone, one of family inet and one of
// family bridge. [Rules.Setup] replaces both in one transaction; guests are
// elements of their sets, so that adding one costs the same however many there
// are. What was written is read back.
//
// It makes no interfaces (internal/host/bridge). All calls act on the network
// namespace of the calling thread. Start at [Rules]; inet.go and bridge.go show
// the rules themselves.
package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

// DefaultTable is the name of both tables.
const DefaultTable = "hatch"

// Config says what the rules are about.
type Config struct {
	Network network.Network
	// AllowPrivate are private ranges that guests may reach all the same. The
	// host itself and other guests stay out of reach.
	AllowPrivate []netip.Prefix
	Table        string // name of both tables; "" means DefaultTable
}

// Guest is what may pass one TAP.
type Guest struct {
	TAP     string
	MAC     net.HardwareAddr
	Address netip.Addr
	Limits  Limits
}

// Rules are one network's packet rules. It holds no state but a connection:
// the kernel does. Add and Delete may be called from several goroutines at
// once; Setup, SetLocal and Remove one at a time.
type Rules struct {
	cfg     Config
	session session
}

// New returns the rules for cfg, whether they are in force or not.
func New(cfg Config) *Rules {
	if cfg.Table == "" {
		cfg.Table = DefaultTable
	}
	return &Rules{cfg: cfg}
}

// Setup puts the rules in force with exactly these guests, in place of what
// the tables held before. local are the networks that the host is on.
//
// Errors: errs.Conflict with code nft_table_taken when the tables guard
// another bridge that exists.
func (r *Rules) Setup(guests []Guest, local []netip.Prefix) error {
	if err := r.refuseForeign(); err != nil {
		return err
	}
	err := r.session.transact(func(conn *nftables.Conn) error { return r.replace(conn, guests, local) })
	if err != nil {
		return fmt.Errorf("cannot put the packet rules in force: %w", err)
	}
	if err := r.Check(); err != nil {
		return err
	}
	for _, g := range guests {
		if err := r.verify(g); err != nil {
			return err
		}
	}
	return nil
}

func (r *Rules) replace(conn *nftables.Conn, guests []Guest, local []netip.Prefix) error {
	for _, t := range r.tables() {
		if err := t.replace(conn); err != nil {
			return fmt.Errorf("table %s: %w", t, err)
		}
	}
	return errors.Join(
		r.addGuests(conn, guests...),
		addElements(conn, r.localSet(), intervals(local)),
	)
}

func (r *Rules) addGuests(conn *nftables.Conn, guests ...Guest) error {
	faults := []error{
		addElements(conn, r.senders(), keys(guests, senderKey)),
		addElements(conn, r.stations(), keys(guests, stationKey)),
	}
	for _, g := range guests {
		faults = append(faults, addLimits(conn, r.limits(g)))
	}
	return errors.Join(faults...)
}

// Add lets g's own MAC and address out of its TAP, and holds it to its limits.
// Adding again is no error.
func (r *Rules) Add(g Guest) error {
	err := r.session.transact(func(conn *nftables.Conn) error { return r.addGuests(conn, g) })
	if err != nil {
		return fmt.Errorf("cannot add the packet rules of TAP %s: %w", g.TAP, err)
	}
	return r.verify(g)
}

// Delete takes back what Add has let out. Nothing there is no error.
func (r *Rules) Delete(g Guest) error {
	parts := r.partsOf(g)
	err := r.delete(g, parts...)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// The transaction has failed as a whole because a part is not there; others
	// may be.
	for _, part := range parts {
		if err := r.delete(g, part); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// part adds the removal of a part of a guest's rules to a transaction.
type part func(*nftables.Conn) error

// partsOf lists them in the order in which they can go.
func (r *Rules) partsOf(g Guest) []part {
	parts := []part{
		deletion(r.senders(), senderKey(g)),
		deletion(r.stations(), stationKey(g)),
	}
	for _, l := range r.limits(g) {
		parts = append(parts, deletion(l.places, ifname(l.tap)), func(conn *nftables.Conn) error {
			conn.DelChain(l.chain())
			return nil
		})
	}
	return parts
}

func deletion(s *nftables.Set, key []byte) part {
	return func(conn *nftables.Conn) error {
		return conn.SetDeleteElements(s, []nftables.SetElement{{Key: key}})
	}
}

// SetLocal replaces the networks that the host is on, in one transaction.
func (r *Rules) SetLocal(local []netip.Prefix) error {
	err := r.session.transact(func(conn *nftables.Conn) error {
		conn.FlushSet(r.localSet())
		return addElements(conn, r.localSet(), intervals(local))
	})
	if err != nil {
		return fmt.Errorf("cannot replace the host's networks in the packet rules: %w", err)
	}
	return nil
}

// Remove takes both tables away. Nothing there is no error.
func (r *Rules) Remove() error {
	if err := r.refuseForeign(); err != nil {
		return err
	}
	err := r.session.transact(func(conn *nftables.Conn) error {
		for _, t := range r.tables() {
			conn.AddTable(t.table()) // so that the deletion finds one
			conn.DelTable(t.table())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot take the packet rules away: %w", err)
	}
	return nil
}

// Close closes the connection. The rules stay, and a later call connects again.
func (r *Rules) Close() error { return r.session.close() }

// delete removes parts of a guest's rules in one transaction.
func (r *Rules) delete(g Guest, parts ...part) error {
	err := r.session.transact(func(conn *nftables.Conn) error {
		for _, remove := range parts {
			if err := remove(conn); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot delete the packet rules of TAP %s: %w", g.TAP, err)
	}
	return nil
}

// refuseForeign returns an error when tables of this name guard the bridge of
// somebody else.
func (r *Rules) refuseForeign() error {
	owner, exists, err := r.owner()
	if err != nil || !exists || owner == r.cfg.Network.Bridge {
		return err
	}
	if _, err := net.InterfaceByName(owner); owner != "" && err != nil {
		return nil // left over from a bridge that is gone
	}
	return errs.New(errs.Conflict, "nft_table_taken", "the nftables table %s guards another bridge (%q); it seems that another hatchd runs on this host", r.cfg.Table, owner).
		WithHint("stop the other hatchd, or, if there is none: nft delete table inet %s; nft delete table bridge %s", r.cfg.Table, r.cfg.Table)
}
