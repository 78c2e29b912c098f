// Package nft sets the packet rules of a network: what guests may reach, what may
// reach guests, and that only a guest's own MAC and address leave its TAP.
//
// The rules are in two tables of our own, one of family inet and one of family
// bridge. [Rules.Setup] replaces both in one transaction; guests are elements of
// their sets, so that adding one costs the same for any number of guests. Written
// rules are read back.
//
// It makes no interfaces (internal/host/bridge). All calls act on the network
// namespace of the calling thread. Start at [Rules]; the rules are in inet.go and
// bridge.go.
package nft

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/network"
)

// DefaultTable is the name of both tables.
const DefaultTable = "hatch"

// Config describes the network that the rules are for.
type Config struct {
	Network network.Network
	// AllowPrivate are private ranges that guests may reach. The host itself and
	// other guests stay unreachable.
	AllowPrivate []netip.Prefix
	Table        string // name of both tables; "" means DefaultTable
	// Flows is how many connections each guest may have at a time; 0 means a share of
	// the host's table.
	Flows int
	// APIPort is the TCP port whose connections on loopback are not tracked; 0 means
	// none.
	APIPort uint16
}

// State is what the rules depend on beside their configuration.
type State struct {
	Guests []Guest        // exactly these are let through
	Local  []netip.Prefix // networks that the host is on
	// NoRouting drops IPv4 packets that the host would pass between networks of which
	// none is the guests'.
	NoRouting bool
}

// Guest says what may pass one TAP.
type Guest struct {
	TAP     string
	MAC     net.HardwareAddr
	Address netip.Addr
	Limits  Limits
	// Asleep says that its connections stay once it is deleted, and go on being counted.
	Asleep bool
}

// Rules are the packet rules of one network. The kernel holds all their state. Add
// and Delete may be called from several goroutines at once; Setup, SetLocal and
// Remove one at a time.
type Rules struct {
	cfg        Config
	session    session
	noTimeouts atomic.Bool // the kernel has no timeouts for guests' connections only
}

// New returns the rules for cfg, whether they are in force or not.
func New(cfg Config) *Rules {
	if cfg.Table == "" {
		cfg.Table = DefaultTable
	}
	if cfg.Flows == 0 {
		cfg.Flows = defaultFlows(cfg.Network)
	}
	return &Rules{cfg: cfg}
}

// Setup replaces all rules by those for s.
//
// Errors: errs.Conflict with code nft_table_taken when the tables are for another
// bridge that exists.
func (r *Rules) Setup(s State) error {
	if err := r.refuseForeign(); err != nil {
		return err
	}
	err := r.session.transact(func(conn *nftables.Conn) error { return r.replace(conn, s) })
	if unsupported(err) && !r.noTimeouts.Swap(true) {
		err = r.session.transact(func(conn *nftables.Conn) error { return r.replace(conn, s) })
	}
	if err != nil {
		return fmt.Errorf("cannot set the packet rules: %w", err)
	}
	return r.Check(s)
}

// unsupported reports whether err may mean that the kernel lacks a feature.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// ForgetsEarly reports whether this kernel can forget guests' connections earlier than
// others; it is known after Setup.
func (r *Rules) ForgetsEarly() bool { return !r.noTimeouts.Load() }

func (r *Rules) replace(conn *nftables.Conn, s State) error {
	for _, t := range r.tables(s) {
		if err := t.replace(conn); err != nil {
			return fmt.Errorf("table %s: %w", t, err)
		}
	}
	return r.addLimits(conn, s.Guests)
}

func (r *Rules) addGuests(conn *nftables.Conn, guests ...Guest) error {
	return errors.Join(
		addElements(conn, r.senders(), keys(guests, senderKey)),
		addElements(conn, r.stations(), keys(guests, stationKey)),
		r.addLimits(conn, guests),
	)
}

func (r *Rules) addLimits(conn *nftables.Conn, guests []Guest) error {
	var failed []error
	for _, g := range guests {
		for _, l := range r.limits(g) {
			failed = append(failed, l.add(conn))
		}
	}
	return errors.Join(failed...)
}

// Add lets packets from g's MAC and address through, within its limits. Adding
// again is no error.
func (r *Rules) Add(g Guest) error {
	err := r.session.transact(func(conn *nftables.Conn) error { return r.addGuests(conn, g) })
	if err != nil {
		return fmt.Errorf("cannot add the packet rules of TAP %s: %w", g.TAP, err)
	}
	return r.verify(g)
}

// Delete undoes Add. Nothing to delete is no error.
func (r *Rules) Delete(g Guest) error {
	parts := r.partsOf(g)
	err := r.delete(g, parts...)
	if !errors.Is(err, unix.ENOENT) {
		return err
	}
	// A missing part failed the whole transaction; others may exist.
	for _, part := range parts {
		if err := r.delete(g, part); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return nil
}

// part adds the removal of a part of a guest's rules to a transaction.
type part func(*nftables.Conn) error

// partsOf lists the parts in the order to delete them in.
func (r *Rules) partsOf(g Guest) []part {
	parts := []part{
		deletion(r.senders(), senderKey(g)),
		deletion(r.stations(), stationKey(g)),
		forgetting(r.dhcpRate(), ifname(g.TAP)),
	}
	if !g.Asleep {
		parts = append(parts, forgetting(r.flows(), g.Address.AsSlice()))
	}
	for _, l := range r.limits(g) {
		parts = append(parts, deletion(l.chains, ifname(l.tap)), func(conn *nftables.Conn) error {
			conn.DelChain(l.chain().kernel(l.chains.Table))
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

// forgetting deletes what packets may have added to a set. It adds it first: a missing
// element would fail the deletion.
func forgetting(s *nftables.Set, key []byte) part {
	element := []nftables.SetElement{{Key: key}}
	return func(conn *nftables.Conn) error {
		return errors.Join(conn.SetAddElements(s, element), conn.SetDeleteElements(s, element))
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

// Remove deletes both tables. Nothing to delete is no error.
func (r *Rules) Remove() error {
	if err := r.refuseForeign(); err != nil {
		return err
	}
	err := r.session.transact(func(conn *nftables.Conn) error {
		for _, t := range r.tables(State{}) {
			conn.AddTable(t.table()) // a missing table would fail the deletion
			conn.DelTable(t.table())
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot delete the packet rules: %w", err)
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

// refuseForeign returns an error when tables of this name are for another bridge
// that exists.
func (r *Rules) refuseForeign() error {
	owner, exists, err := r.owner()
	if err != nil || !exists || owner == r.cfg.Network.Bridge {
		return err
	}
	if _, err := net.InterfaceByName(owner); owner != "" && err != nil {
		return nil // of a deleted bridge
	}
	return errs.New(errs.Conflict, "nft_table_taken", "the nftables table %s is for another bridge (%q); it seems that another hatchd runs on this host", r.cfg.Table, owner).
		WithHint("stop the other hatchd, or, if there is none: nft delete table inet %s; nft delete table bridge %s", r.cfg.Table, r.cfg.Table)
}
