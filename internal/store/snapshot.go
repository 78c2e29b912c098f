package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/snapshot"
)

var _ snapshot.Store = (*Store)(nil)

// snapshotRow is a snapshot as its table has it.
type snapshotRow struct {
	ID        string `db:"id"`
	OwnerID   string `db:"owner_id"`
	VMID      string `db:"vm_id"`
	Name      string `db:"name"`
	Kind      string `db:"kind"`
	ParentID  string `db:"parent_id"`
	ImageID   string `db:"image_id"`
	Origin    string `db:"origin"`
	Machine   string `db:"machine"`
	Durable   bool   `db:"durable"`
	Bytes     int64  `db:"bytes"`
	Sums      string `db:"sums"`
	CreatedAt int64  `db:"created_at"`
	UserData  []byte `db:"user_data"`
}

var snapshotColumns = []string{
	"id", "owner_id", "vm_id", "name", "kind", "parent_id", "image_id",
	"origin", "machine", "durable", "bytes", "sums", "created_at", "user_data",
}

var (
	selectSnapshot = "SELECT " + strings.Join(snapshotColumns, ", ") + " FROM snapshots"
	deleteSnapshot = "DELETE FROM snapshots WHERE id = ? RETURNING " + strings.Join(snapshotColumns, ", ")
	insertSnapshot = "INSERT INTO snapshots (" + strings.Join(snapshotColumns, ", ") + ") VALUES (:" + strings.Join(snapshotColumns, ", :") + ")"
)

// InsertSnapshot implements [snapshot.Store].
func (s *Store) InsertSnapshot(ctx context.Context, one snapshot.Snapshot) error {
	row, err := snapshotRowOf(one)
	if err != nil {
		return err
	}
	err = s.write(ctx, func(tx *tx) error {
		_, err := tx.NamedExecContext(ctx, insertSnapshot, row)
		return err
	})
	switch {
	case violated(err) == "snapshots_owner_id_name":
		return errs.New(errs.Conflict, "name_taken", "name: another snapshot is called %q", one.Name).
			WithField("name").WithHint("give another name, or delete that snapshot").WithCause(err)
	case referenceFailed(err):
		return errs.New(errs.NotFound, "image_not_found", "there is no image %s any more", one.VM.ImageID).WithCause(err)
	case err != nil:
		return fmt.Errorf("cannot store the snapshot: %w", err)
	}
	return nil
}

// SealSnapshot implements [snapshot.Store].
func (s *Store) SealSnapshot(ctx context.Context, one snapshot.Snapshot) error {
	sums, err := toJSON(one.Sums)
	if err != nil {
		return err
	}
	return s.write(ctx, func(tx *tx) error {
		n, err := tx.exec(ctx, "UPDATE snapshots SET durable = TRUE, bytes = ?, sums = ? WHERE id = ?", one.Bytes, sums, one.ID)
		if err != nil {
			return fmt.Errorf("cannot store the snapshot: %w", err)
		}
		if n == 0 {
			return noSnapshot(one.ID)
		}
		return tx.tellOfSnapshot(ctx, one, snapshot.CreatedEvent)
	})
}

// DeleteSnapshot implements [snapshot.Store].
func (s *Store) DeleteSnapshot(ctx context.Context, id string) error {
	err := s.write(ctx, func(tx *tx) error { return tx.deleteSnapshot(ctx, id) })
	if err != nil {
		return fmt.Errorf("cannot delete the snapshot: %w", err)
	}
	return nil
}

func (t *tx) deleteSnapshot(ctx context.Context, id string) error {
	var row snapshotRow
	found, err := t.get(ctx, &row, deleteSnapshot, id)
	if err != nil || !found || !row.Durable {
		return err // nobody was told of it
	}
	one, err := row.snapshot()
	if err != nil {
		return err
	}
	return t.tellOfSnapshot(ctx, one, snapshot.DeletedEvent)
}

// tellOfSnapshot adds an event with the name that the VM has now, if it is there.
func (t *tx) tellOfSnapshot(ctx context.Context, one snapshot.Snapshot, tell func(one snapshot.Snapshot, vmName string) event.Event) error {
	var name string
	if _, err := t.get(ctx, &name, "SELECT name FROM vms WHERE id = ?", one.VMID); err != nil {
		return fmt.Errorf("cannot read the VM's name: %w", err)
	}
	return t.appendEvents(ctx, []event.Event{tell(one, name)})
}

// Snapshot implements [snapshot.Store]. An id wins over a name.
func (s *Store) Snapshot(ctx context.Context, owner, idOrName string) (snapshot.Snapshot, error) {
	if !storable(owner, idOrName) || idOrName == "" {
		return snapshot.Snapshot{}, noSnapshot(idOrName)
	}
	query, args := selectSnapshot+" WHERE (id = ? OR name = ?)", []any{idOrName, idOrName}
	if owner != "" {
		query, args = query+" AND owner_id = ?", append(args, owner)
	}
	var row snapshotRow
	found, err := get(ctx, s.reads, &row, query+" ORDER BY CASE WHEN id = ? THEN 0 ELSE 1 END LIMIT 1", append(args, idOrName)...)
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("cannot read the snapshot: %w", err)
	}
	if !found {
		return snapshot.Snapshot{}, noSnapshot(idOrName)
	}
	return row.snapshot()
}

// Snapshots implements [snapshot.Store].
func (s *Store) Snapshots(ctx context.Context, owner string, f snapshot.Filter) ([]snapshot.Snapshot, error) {
	if !storable(owner, f.VMID) {
		return nil, nil
	}
	query, args := selectSnapshot+" WHERE 1 = 1", []any(nil)
	if owner != "" {
		query, args = query+" AND owner_id = ?", append(args, owner)
	}
	if f.VMID != "" {
		query, args = query+" AND vm_id = ?", append(args, f.VMID)
	}
	var rows []snapshotRow
	if err := selectAll(ctx, s.reads, &rows, query+" ORDER BY created_at DESC, id DESC", args...); err != nil {
		return nil, fmt.Errorf("cannot list snapshots: %w", err)
	}
	all := make([]snapshot.Snapshot, len(rows))
	for i, row := range rows {
		var err error
		if all[i], err = row.snapshot(); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// snapshotRowOf keeps the user data apart: JSON holds no bytes that are not text.
func snapshotRowOf(s snapshot.Snapshot) (row snapshotRow, err error) {
	row = snapshotRow{
		ID: s.ID, OwnerID: s.OwnerID, VMID: s.VMID, Name: s.Name, Kind: string(s.Kind), ParentID: s.ParentID,
		ImageID: s.VM.ImageID, Durable: s.Durable, Bytes: s.Bytes, CreatedAt: micros(s.CreatedAt), UserData: []byte(s.VM.UserData),
	}
	s.VM.UserData = ""
	for _, field := range []struct {
		value any
		into  *string
	}{{s.VM, &row.Origin}, {s.Machine, &row.Machine}, {s.Sums, &row.Sums}} {
		if *field.into, err = toJSON(field.value); err != nil {
			return snapshotRow{}, err
		}
	}
	return row, nil
}

func (r snapshotRow) snapshot() (snapshot.Snapshot, error) {
	s := snapshot.Snapshot{
		ID: r.ID, OwnerID: r.OwnerID, VMID: r.VMID, Name: r.Name, Kind: snapshot.Kind(r.Kind), ParentID: r.ParentID,
		Durable: r.Durable, Bytes: r.Bytes, CreatedAt: fromMicros(r.CreatedAt),
	}
	for _, field := range []struct {
		text string
		into any
	}{{r.Origin, &s.VM}, {r.Machine, &s.Machine}, {r.Sums, &s.Sums}} {
		if err := fromJSON(field.text, field.into); err != nil {
			return snapshot.Snapshot{}, fmt.Errorf("cannot read snapshot %s: %w", r.ID, err)
		}
	}
	s.VM.UserData = string(r.UserData)
	return s, nil
}

func noSnapshot(idOrName string) error {
	return errs.New(errs.NotFound, "snapshot_not_found", "there is no snapshot %q", errs.Brief(idOrName)).
		WithHint("GET /snapshots lists them")
}
