package store

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/id"
)

var _ event.Store = (*eventStore)(nil)

// eventRow is an event as stored in its table.
type eventRow struct {
	Seq        int64  `db:"seq"`
	ID         string `db:"id"`
	OwnerID    string `db:"owner_id"`
	VMID       string `db:"vm_id"`
	VMName     string `db:"vm_name"`
	Type       string `db:"type"`
	Message    string `db:"message"`
	Data       string `db:"data"`
	ActorKind  string `db:"actor_kind"`
	ActorID    string `db:"actor_id"`
	ActorName  string `db:"actor_name"`
	RequestID  string `db:"request_id"`
	HappenedAt int64  `db:"happened_at"`
}

var eventColumns = []string{
	"seq", "id", "owner_id", "vm_id", "vm_name", "type", "message", "data",
	"actor_kind", "actor_id", "actor_name", "request_id", "happened_at",
}

var (
	selectEvent = "SELECT " + strings.Join(eventColumns, ", ") + " FROM events"
	insertEvent = "INSERT INTO events (" + strings.Join(eventColumns, ", ") + ") VALUES (:" + strings.Join(eventColumns, ", :") + ")"
)

func (r eventRow) event() event.Event {
	return event.Event{
		Seq: r.Seq, ID: r.ID, OwnerID: r.OwnerID, VMID: r.VMID, VMName: r.VMName,
		Type: event.Type(r.Type), Message: r.Message, Data: []byte(r.Data), At: fromMicros(r.HappenedAt),
		Cause: event.Cause{
			Actor:     event.Actor{Kind: event.ActorKind(r.ActorKind), ID: r.ActorID, Name: r.ActorName},
			RequestID: r.RequestID,
		},
	}
}

// AppendEvents implements [vm.Store].
func (s *eventStore) AppendEvents(ctx context.Context, events ...event.Event) error {
	return s.write(ctx, func(tx *tx) error { return tx.appendEvents(ctx, events) })
}

// appendEvents appends to the event log. Call it last in a transaction: until the
// end of the transaction it blocks all others that append.
func (t *tx) appendEvents(ctx context.Context, events []event.Event) error {
	if len(events) == 0 {
		return nil
	}
	var last int64
	if _, err := t.get(ctx, &last, "UPDATE event_log SET last_seq = last_seq + ? WHERE id = 1 RETURNING last_seq", len(events)); err != nil {
		return fmt.Errorf("cannot number events: %w", err)
	}
	now, cause := micros(time.Now()), event.CauseOf(ctx)
	rows := make([]eventRow, len(events))
	for i, e := range events {
		if e.Actor.Kind == "" {
			e.Cause = cause
		}
		rows[i] = eventRow{
			Seq: last - int64(len(events)-1-i), ID: id.New(event.IDPrefix), OwnerID: e.OwnerID, VMID: e.VMID, VMName: e.VMName,
			Type: string(e.Type), Message: printable(e.Message), Data: string(e.Data),
			ActorKind: string(e.Actor.Kind), ActorID: e.Actor.ID, ActorName: e.Actor.Name,
			RequestID: e.RequestID, HappenedAt: now,
		}
	}
	if _, err := t.NamedExecContext(ctx, insertEvent, rows); err != nil {
		return fmt.Errorf("cannot store events: %w", err)
	}
	t.appended = true
	return nil
}

// Events implements [event.Store].
func (s *eventStore) Events(ctx context.Context, f event.Filter) (page []event.Event, through int64, err error) {
	// The last number is read first. Events committed later have higher numbers
	// and are found by the next call; all up to it are committed or will never be.
	last, err := s.LastEvent(ctx)
	if err != nil || last <= f.After {
		return nil, max(last, f.After), err
	}
	query, args := eventQuery(f, last)
	if !storable(f.VMID) {
		return nil, last, nil
	}
	var rows []eventRow
	if err := selectAll(ctx, s.reads, &rows, query, args...); err != nil {
		return nil, 0, fmt.Errorf("cannot read events: %w", err)
	}
	page = make([]event.Event, len(rows))
	for i, r := range rows {
		page[i] = r.event()
	}
	if len(page) == f.Limit {
		return page, page[len(page)-1].Seq, nil
	}
	return page, last, nil
}

func eventQuery(f event.Filter, last int64) (query string, args []any) {
	owned, args := inScope(f.Scope)
	where := []string{owned, "seq > ?", "seq <= ?"}
	args = append(args, f.After, last)
	and := func(condition string, values ...any) {
		where = append(where, condition)
		args = append(args, values...)
	}
	if f.VMID != "" {
		and("vm_id = ?", f.VMID)
	}
	if !f.Since.IsZero() {
		// Times increase with numbers, unless the clock was set back.
		since := micros(f.Since)
		and("seq >= (SELECT seq FROM events WHERE happened_at >= ? ORDER BY happened_at, seq LIMIT 1) AND happened_at >= ?", since, since)
	}
	if len(f.Types) > 0 {
		condition, values := typeCondition(f.Types)
		and(condition, values...)
	}
	query = selectEvent + " WHERE " + strings.Join(where, " AND ") + " ORDER BY seq LIMIT ?"
	return query, append(args, f.Limit)
}

func typeCondition(patterns []event.Pattern) (condition string, args []any) {
	conditions := make([]string, len(patterns))
	for i, p := range patterns {
		conditions[i] = "type = ?"
		if prefix, starred := p.Prefix(); starred {
			conditions[i] = "substr(type, 1, ?) = ?"
			args = append(args, len(prefix), prefix)
			continue
		}
		args = append(args, string(p))
	}
	return "(" + strings.Join(conditions, " OR ") + ")", args
}

// LastEvent implements [event.Store].
func (s *eventStore) LastEvent(ctx context.Context) (last int64, err error) {
	if _, err := get(ctx, s.reads, &last, "SELECT last_seq FROM event_log WHERE id = 1"); err != nil {
		return 0, fmt.Errorf("cannot read the event log: %w", err)
	}
	return last, nil
}

// OldestEvent implements [event.Store].
func (s *eventStore) OldestEvent(ctx context.Context) (seq int64, at time.Time, err error) {
	last, err := s.LastEvent(ctx) // read first: what is added meanwhile is not older
	if err != nil {
		return 0, time.Time{}, err
	}
	var oldest struct {
		Seq        int64 `db:"seq"`
		HappenedAt int64 `db:"happened_at"`
	}
	found, err := get(ctx, s.reads, &oldest, "SELECT seq, happened_at FROM events ORDER BY seq LIMIT 1")
	switch {
	case err != nil:
		return 0, time.Time{}, fmt.Errorf("cannot read the event log: %w", err)
	case !found:
		return last + 1, time.Now(), nil
	}
	return oldest.Seq, fromMicros(oldest.HappenedAt), nil
}

// EventAdded implements [event.Store].
func (s *eventStore) EventAdded() <-chan struct{} { return s.added.next() }

// bell wakes all goroutines that wait for the next event.
type bell struct {
	mu sync.Mutex
	ch chan struct{}
}

func newBell() *bell { return &bell{ch: make(chan struct{})} }

func (b *bell) next() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.ch
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	close(b.ch)
	b.ch = make(chan struct{})
}
