package store

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/jmoiron/sqlx"

	"github.com/hatchvm/hatch/internal/event"
)

// PruneOldEvents implements [event.Pruner].
func (s *eventStore) PruneOldEvents(ctx context.Context, before time.Time, batch int) (int, error) {
	return s.prune(ctx, "SELECT seq FROM events WHERE happened_at < ? ORDER BY happened_at, seq LIMIT ?", micros(before), batch)
}

// PruneEventsOver implements [event.Pruner].
func (s *eventStore) PruneEventsOver(ctx context.Context, most, batch int) (int, error) {
	return s.prune(ctx, `SELECT seq FROM events
		WHERE seq <= (SELECT seq FROM events ORDER BY seq DESC LIMIT 1 OFFSET ?) ORDER BY seq LIMIT ?`, most, batch)
}

// PruneVMEvents implements [event.Pruner].
func (s *eventStore) PruneVMEvents(ctx context.Context, vmID string, most, batch int) (int, error) {
	return s.prune(ctx, `SELECT seq FROM events
		WHERE vm_id = ? AND seq <= (SELECT seq FROM events WHERE vm_id = ? ORDER BY seq DESC LIMIT 1 OFFSET ?) ORDER BY seq LIMIT ?`,
		vmID, vmID, most, batch)
}

// PruneGuestEvents implements [event.Pruner].
func (s *eventStore) PruneGuestEvents(ctx context.Context, vmID string, most, batch int) (int, error) {
	const atWill = "vm_id = ? AND (type = ? OR actor_kind = ?)"
	args := []any{vmID, string(event.VMConditionChanged), string(event.Guest)}
	return s.prune(ctx, "SELECT seq FROM events WHERE "+atWill+" AND seq <= (SELECT seq FROM events WHERE "+atWill+
		" ORDER BY seq DESC LIMIT 1 OFFSET ?) ORDER BY seq LIMIT ?", slices.Concat(args, args, []any{most, batch})...)
}

// prune removes the events whose numbers the query returns. The query runs outside
// of a transaction, because mostly it finds none.
func (s *eventStore) prune(ctx context.Context, query string, args ...any) (removed int, err error) {
	var seqs []int64
	if err := selectAll(ctx, s.reads, &seqs, query, args...); err != nil {
		return 0, fmt.Errorf("cannot look for old events: %w", err)
	}
	if len(seqs) == 0 {
		return 0, nil
	}
	remove, args, err := sqlx.In("DELETE FROM events WHERE seq IN (?)", seqs)
	if err != nil {
		return 0, fmt.Errorf("cannot remove old events: %w", err)
	}
	err = s.write(ctx, func(tx *tx) error {
		_, err := tx.exec(ctx, remove, args...)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("cannot remove old events: %w", err)
	}
	return len(seqs), nil
}

// VMsWithEvents implements [event.Pruner].
func (s *eventStore) VMsWithEvents(ctx context.Context, after int64) (vmIDs []string, through int64, err error) {
	if through, err = s.LastEvent(ctx); err != nil {
		return nil, 0, err
	}
	err = selectAll(ctx, s.reads, &vmIDs, "SELECT DISTINCT vm_id FROM events WHERE seq > ? AND seq <= ? AND vm_id <> ''", after, through)
	if err != nil {
		return nil, 0, fmt.Errorf("cannot list VMs with events: %w", err)
	}
	return vmIDs, through, nil
}
