package event

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/internal/access"
)

// Filter selects events. Zero fields select everything, except for Scope, whose
// zero value selects nothing.
type Filter struct {
	Scope access.Scope
	VMID  string
	Types []Pattern // an event matches any of them
	After int64     // only events with a higher Seq
	Since time.Time // only events of that time or later
	Limit int       // 1 to MaxPage
}

// MaxPage is the most events that one call reads.
const MaxPage = 1000

// Store stores the log. Events are appended by the transaction that makes a change.
type Store interface {
	// Events returns the first events that match f, in the log's order, and the
	// Seq up to which the log has been read for them: no event up to and
	// including through is missing, now or later.
	Events(ctx context.Context, f Filter) (page []Event, through int64, err error)

	// LastEvent returns the Seq of the newest event, 0 if there is none.
	LastEvent(ctx context.Context) (int64, error)

	// OldestEvent returns the Seq and the time of the oldest event that is kept. If
	// there is none, they are those that the next event will have.
	OldestEvent(ctx context.Context) (seq int64, at time.Time, err error)

	// EventAdded returns a channel that is closed when an event is added after
	// this call. Call it before reading, so that no event is missed in between.
	EventAdded() <-chan struct{}

	Pruner
}

// Pruner removes old events, in transactions of at most batch events each.
type Pruner interface {
	// PruneOldEvents removes events that are older than before, oldest first.
	PruneOldEvents(ctx context.Context, before time.Time, batch int) (removed int, err error)

	// PruneEventsOver removes the oldest events beyond the newest most.
	PruneEventsOver(ctx context.Context, most, batch int) (removed int, err error)

	// VMsWithEvents lists the VMs that have events after a Seq, and the Seq up to
	// which the log has been read for them.
	VMsWithEvents(ctx context.Context, after int64) (vmIDs []string, through int64, err error)

	// PruneVMEvents removes the oldest events of one VM beyond its newest most.
	PruneVMEvents(ctx context.Context, vmID string, most, batch int) (removed int, err error)

	// PruneGuestEvents does so among the events that the guest can cause at will:
	// those with the guest as actor, and changes of conditions.
	PruneGuestEvents(ctx context.Context, vmID string, most, batch int) (removed int, err error)
}
