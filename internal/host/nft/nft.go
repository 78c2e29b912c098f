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
	"github.com/mdlayher/netlink"
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

// Guest is what may leave one TAP.
type Guest struct {
	TAP     string
	MAC     net.HardwareAddr
	Address netip.Addr
}

// Rules are one network's packet rules. It holds no state: the kernel does.
// Add and Delete may be called from several goroutines at once; Setup,
// SetLocal and Remove one at a time.
type Rules struct {
	cfg Config
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
	conn, err := dial()
	if err != nil {
		return err
	}
	for _, t := range r.tables() {
		if err := t.replace(conn); err != nil {
			return fmt.Errorf("cannot build table %s: %w", t, err)
		}
	}
	if err := addElements(conn, r.senders(), keys(guests, senderKey)); err != nil {
		return err
	}
	if err := addElements(conn, r.stations(), keys(guests, stationKey)); err != nil {
		return err
	}
	if err := addElements(conn, r.localSet(), intervals(local)); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
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

// Add lets g's own MAC and address out of its TAP. Adding again is no error.
func (r *Rules) Add(g Guest) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	if err := addElements(conn, r.senders(), keys([]Guest{g}, senderKey)); err != nil {
		return err
	}
	if err := addElements(conn, r.stations(), keys([]Guest{g}, stationKey)); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cannot add the packet rules of TAP %s: %w", g.TAP, err)
	}
	return r.verify(g)
}

// Delete takes back what Add has let out. Nothing there is no error.
func (r *Rules) Delete(g Guest) error {
	return errors.Join(
		r.deleteElement(r.senders(), senderKey(g)),
		r.deleteElement(r.stations(), stationKey(g)),
	)
}

// SetLocal replaces the networks that the host is on, in one transaction.
func (r *Rules) SetLocal(local []netip.Prefix) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	conn.FlushSet(r.localSet())
	if err := addElements(conn, r.localSet(), intervals(local)); err != nil {
		return err
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cannot replace the host's networks in the packet rules: %w", err)
	}
	return nil
}

// Remove takes both tables away. Nothing there is no error.
func (r *Rules) Remove() error {
	if err := r.refuseForeign(); err != nil {
		return err
	}
	conn, err := dial()
	if err != nil {
		return err
	}
	for _, t := range r.tables() {
		conn.AddTable(t.table()) // so that the deletion finds one
		conn.DelTable(t.table())
	}
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("cannot take the packet rules away: %w", err)
	}
	return nil
}

func (r *Rules) deleteElement(set *nftables.Set, key []byte) error {
	conn, err := dial()
	if err != nil {
		return err
	}
	if err := conn.SetDeleteElements(set, []nftables.SetElement{{Key: key}}); err != nil {
		return err
	}
	err = conn.Flush()
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("cannot delete from set %s: %w", set.Name, err)
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

// dial returns a connection that collects one transaction.
func dial() (*nftables.Conn, error) {
	conn, err := nftables.New(nftables.WithSockOptions(roomForSets))
	if err != nil {
		return nil, fmt.Errorf("cannot reach nftables: %w", err)
	}
	return conn, nil
}

// roomForSets lets the sets of thousands of guests pass in one transaction.
func roomForSets(conn *netlink.Conn) error {
	const bytes = 8 << 20
	if err := conn.SetWriteBuffer(bytes); err != nil {
		return err
	}
	return conn.SetReadBuffer(bytes)
}
