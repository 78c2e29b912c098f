package store

import (
	"context"
	"fmt"
	"strings"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/secret"
	"github.com/hatchvm/hatch/internal/snapshot"
)

var _ snapshot.Store = (*snapshotStore)(nil)

// snapshotRow is a snapshot as stored in its table.
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
	UserData  []byte `db:"user_data"` // encrypted
	HostID    string `db:"host_id"`   // only written and compared
}

var snapshotColumns = []string{
	"id", "owner_id", "vm_id", "name", "kind", "parent_id", "image_id",
	"origin", "machine", "durable", "bytes", "sums", "created_at", "user_data",
}

var (
	selectSnapshot = "SELECT " + strings.Join(snapshotColumns, ", ") + " FROM snapshots"
	deleteSnapshot = "DELETE FROM snapshots WHERE id = ? RETURNING " + strings.Join(snapshotColumns, ", ")
	insertSnapshot = "INSERT INTO snapshots (host_id, " + strings.Join(snapshotColumns, ", ") + ") VALUES (:host_id, :" + strings.Join(snapshotColumns, ", :") + ")"
)

// InsertSnapshot implements [snapshot.Store].
func (s *snapshotStore) InsertSnapshot(ctx context.Context, snap snapshot.Snapshot) (snapshot.Snapshot, error) {
	row, err := snapshotRowOf(s.keys, snap)
	if err != nil {
		return snap, err
	}
	snap.SealedUserData = row.UserData
	row.HostID = s.host
	err = s.write(ctx, func(tx *tx) error {
		if err := tx.remember(ctx, snap.OwnerID, snap.ID); err != nil {
			return err
		}
		// What it takes is an estimate until it is sealed; it counts from now on.
		if err := tx.checkQuota(ctx, snap.OwnerID, quota.Amounts{quota.Snapshots: 1, quota.SnapshotMiB: quota.MiB(snap.Bytes)}); err != nil {
			return err
		}
		_, err := tx.NamedExecContext(ctx, insertSnapshot, row)
		return err
	})
	switch {
	case errs.HasCode(err, quota.Code):
		return snap, err
	case violated(err) == "snapshots_owner_id_name":
		return snap, errs.New(errs.Conflict, "name_taken", "name: another snapshot is called %q", snap.Name).
			WithField("name").WithHint("give another name, or delete that snapshot").WithCause(err)
	case referenceFailed(err):
		return snap, errs.New(errs.NotFound, "image_not_found", "image %s does not exist any more", snap.VM.ImageID).WithCause(err)
	case err != nil:
		return snap, fmt.Errorf("cannot store the snapshot: %w", err)
	}
	return snap, nil
}

// SealSnapshot implements [snapshot.Store].
func (s *snapshotStore) SealSnapshot(ctx context.Context, snap snapshot.Snapshot) error {
	sums, err := toJSON(snap.Sums)
	if err != nil {
		return err
	}
	return s.write(ctx, func(tx *tx) error {
		if err := checkSealed(ctx, tx, snap); err != nil {
			return err
		}
		n, err := tx.exec(ctx, "UPDATE snapshots SET durable = TRUE, bytes = ?, sums = ? WHERE id = ?", snap.Bytes, sums, snap.ID)
		if err != nil {
			return fmt.Errorf("cannot store the snapshot: %w", err)
		}
		if n == 0 {
			return noSnapshot(snap.ID)
		}
		return tx.appendSnapshotEvent(ctx, snap, snapshot.CreatedEvent)
	})
}

// checkSealed returns an error if a snapshot has become larger than was estimated, and
// does not fit into its user's quota so.
func checkSealed(ctx context.Context, t *tx, snap snapshot.Snapshot) error {
	var estimate int64
	if _, err := t.get(ctx, &estimate, "SELECT bytes FROM snapshots WHERE id = ?", snap.ID); err != nil {
		return fmt.Errorf("cannot read the snapshot: %w", err)
	}
	return t.checkQuota(ctx, snap.OwnerID, quota.Amounts{quota.SnapshotMiB: quota.MiB(snap.Bytes) - quota.MiB(estimate)})
}

// DeleteSnapshot implements [snapshot.Store].
func (s *snapshotStore) DeleteSnapshot(ctx context.Context, id string) error {
	err := s.write(ctx, func(tx *tx) error { return tx.deleteSnapshot(ctx, id) })
	if err != nil {
		return fmt.Errorf("cannot delete the snapshot: %w", err)
	}
	return nil
}

func (t *tx) deleteSnapshot(ctx context.Context, id string) error {
	var row snapshotRow
	found, err := t.get(ctx, &row, deleteSnapshot, id)
	if err != nil || !found {
		return err
	}
	if !row.Durable { // its creation was not reported either
		return t.forgetKey(ctx, id)
	}
	snap, err := row.snapshot()
	if err != nil {
		return err
	}
	return t.appendSnapshotEvent(ctx, snap, snapshot.DeletedEvent)
}

// appendSnapshotEvent appends an event with the current name of the VM, "" if the VM
// was deleted.
func (t *tx) appendSnapshotEvent(ctx context.Context, snap snapshot.Snapshot, newEvent func(snap snapshot.Snapshot, vmName string) event.Event) error {
	var name string
	if _, err := t.get(ctx, &name, "SELECT name FROM vms WHERE id = ?", snap.VMID); err != nil {
		return fmt.Errorf("cannot read the VM's name: %w", err)
	}
	return t.appendEvents(ctx, []event.Event{newEvent(snap, name)})
}

// Snapshot implements [snapshot.Store]. An id takes precedence over a name.
func (s *snapshotStore) Snapshot(ctx context.Context, scope access.Scope, idOrName string) (snapshot.Snapshot, error) {
	if !storable(idOrName) || idOrName == "" {
		return snapshot.Snapshot{}, noSnapshot(idOrName)
	}
	var row snapshotRow
	owned, args := inScope(scope)
	found, err := get(ctx, s.reads, &row, selectSnapshot+
		" WHERE "+owned+" AND (id = ? OR name = ? AND name <> '') ORDER BY CASE WHEN id = ? THEN 0 ELSE 1 END LIMIT 1",
		append(args, idOrName, idOrName, idOrName)...)
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("cannot read the snapshot: %w", err)
	}
	if !found {
		return snapshot.Snapshot{}, noSnapshot(idOrName)
	}
	snap, err := row.snapshot()
	if err != nil {
		return snap, err
	}
	data, err := s.keys.Open(placeOfSnapshot(row.ID), row.UserData)
	if err != nil {
		return snapshot.Snapshot{}, fmt.Errorf("cannot read snapshot %s: %w", row.ID, err)
	}
	snap.VM.UserData = string(data)
	return snap, nil
}

// Snapshots implements [snapshot.Store].
func (s *snapshotStore) Snapshots(ctx context.Context, scope access.Scope, f snapshot.Filter) ([]snapshot.Snapshot, error) {
	if !storable(f.VMID) {
		return nil, nil
	}
	owned, args := inScope(scope)
	query := selectSnapshot + " WHERE " + owned
	if f.VMID != "" {
		query, args = query+" AND vm_id = ?", append(args, f.VMID)
	}
	return s.list(ctx, query, args...)
}

// HostSnapshots implements [snapshot.Store].
func (s *snapshotStore) HostSnapshots(ctx context.Context) ([]snapshot.Snapshot, error) {
	return s.list(ctx, selectSnapshot+" WHERE host_id = ?", s.host)
}

func (s *snapshotStore) list(ctx context.Context, query string, args ...any) ([]snapshot.Snapshot, error) {
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

// snapshotRowOf stores the user data in a column of its own, encrypted.
func snapshotRowOf(keys *secret.Keyring, s snapshot.Snapshot) (row snapshotRow, err error) {
	row = snapshotRow{
		ID: s.ID, OwnerID: s.OwnerID, VMID: s.VMID, Name: s.Name, Kind: string(s.Kind), ParentID: s.ParentID,
		ImageID: s.VM.ImageID, Durable: s.Durable, Bytes: s.Bytes, CreatedAt: micros(s.CreatedAt), UserData: keys.Seal(placeOfSnapshot(s.ID), []byte(s.VM.UserData)),
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

// snapshot returns the snapshot of a row, whose user data stays encrypted.
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
	s.SealedUserData = r.UserData
	return s, nil
}

func noSnapshot(idOrName string) error {
	return errs.New(errs.NotFound, "snapshot_not_found", "there is no snapshot %q", errs.Brief(idOrName)).
		WithHint("GET /snapshots lists them")
}
