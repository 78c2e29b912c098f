package event

import (
	"context"
	"time"
)

// Filter narrows what is read of the log. Zero fields do not narrow.
type Filter struct {
	OwnerID string // "" stands for every owner: hatchd's own reading
	VMID    string
	Types   []Pattern // any of them
	After   int64     // only events with a higher Seq
	Since   time.Time // only events that are not older
	Limit   int       // 1 to MaxPage
}

// MaxPage is the most events that are read at once.
const MaxPage = 1000

// Store keeps the log. Events are appended by whatever changes something.
type Store interface {
	// Events returns the first events that f lets through, in the log's order,
	// and how far the log has been read for them: nothing up to and including
	// through is missing, now or later.
	Events(ctx context.Context, f Filter) (page []Event, through int64, err error)

	// LastEvent returns the Seq of the newest event, 0 when there was none.
	LastEvent(ctx context.Context) (int64, error)

	// EventAdded returns a channel that is closed once an event was added after
	// this call. Take it before reading, so that no event falls between.
	EventAdded() <-chan struct{}

	Pruner
}

// Pruner removes old events, in transactions of at most batch events each.
type Pruner interface {
	// PruneOldEvents removes events that are older than before, oldest first.
	PruneOldEvents(ctx context.Context, before time.Time, batch int) (removed int, err error)

	// PruneEventsOver removes the oldest of more than most events.
	PruneEventsOver(ctx context.Context, most, batch int) (removed int, err error)

	// VMsWithEvents lists the VMs that events after a Seq are about, and how far
	// the log has been read for them.
	VMsWithEvents(ctx context.Context, after int64) (vmIDs []string, through int64, err error)

	// PruneVMEvents removes the oldest of more than most events of one VM.
	PruneVMEvents(ctx context.Context, vmID string, most, batch int) (removed int, err error)

	// PruneGuestEvents does so among those that the guest can bring about at
	// will: its own doings, and changes of conditions.
	PruneGuestEvents(ctx context.Context, vmID string, most, batch int) (removed int, err error)
}
