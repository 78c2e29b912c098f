package snapshot

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/quota"
)

// Service lists, bounds and deletes snapshots.
type Service struct {
	store  Store
	files  Files
	limits Limits
	log    *slog.Logger

	mu     sync.Mutex
	pinned map[string]int // number of users by id

	evicting chan struct{} // capacity 1; full while snapshots are counted and evicted for a new one
}

// New makes a service. Call Reconcile once before any is taken.
func New(store Store, files Files, limits Limits, log *slog.Logger) *Service {
	return &Service{store: store, files: files, limits: limits, log: log, pinned: map[string]int{}, evicting: make(chan struct{}, 1)}
}

// Get returns the snapshot with this id or, failing that, this name.
// Errors: errs.NotFound with code snapshot_not_found.
func (s *Service) Get(ctx context.Context, scope access.Scope, idOrName string) (Snapshot, error) {
	return s.store.Snapshot(ctx, scope, idOrName)
}

// List returns the snapshots in scope, newest first.
func (s *Service) List(ctx context.Context, scope access.Scope, f Filter) ([]Snapshot, error) {
	return s.store.Snapshots(ctx, scope, f)
}

// Latest returns the newest durable snapshot of a VM.
// Errors: errs.Conflict with code no_snapshot.
func (s *Service) Latest(ctx context.Context, scope access.Scope, vmID string) (Snapshot, error) {
	all, err := s.store.Snapshots(ctx, scope, Filter{VMID: vmID})
	if err != nil {
		return Snapshot{}, err
	}
	for _, snap := range all {
		if snap.Durable {
			return s.store.Snapshot(ctx, scope, snap.ID) // with its user data, which lists lack
		}
	}
	return Snapshot{}, errs.New(errs.Conflict, "no_snapshot", "there is no snapshot of VM %s", vmID).
		WithHint("POST /vms/%s/snapshot takes one", vmID)
}

// Delete deletes a snapshot. VMs that were cloned from it do not need it.
// Errors: errs.NotFound; errs.Conflict with code snapshot_in_use while it is
// being taken, restored or cloned from.
func (s *Service) Delete(ctx context.Context, scope access.Scope, idOrName string) error {
	snap, err := s.store.Snapshot(ctx, scope, idOrName)
	if err != nil {
		return err
	}
	release, ok := s.pinAlone(snap.ID)
	if !ok {
		return errs.New(errs.Conflict, "snapshot_in_use", "cannot delete snapshot %s: it is in use", snap.ID).
			WithHint("try again when the operation on it has ended")
	}
	defer release()
	return s.remove(ctx, snap.ID)
}

// remove disowns the files and deletes the row first: such files without a row are
// removed at the next start, but a row without files would promise a snapshot that
// cannot be used.
func (s *Service) remove(ctx context.Context, id string) error {
	if err := s.files.Disown(id); err != nil {
		return err
	}
	if err := s.store.DeleteSnapshot(ctx, id); err != nil {
		return err
	}
	if err := s.files.Remove(id); err != nil {
		return fmt.Errorf("cannot remove the files of snapshot %s: %w", id, err)
	}
	return nil
}

// Pin keeps a snapshot from being deleted until release is called.
func (s *Service) Pin(id string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pinned[id]++
	return func() { s.unpin(id) }
}

// PinNamed returns the snapshot with this id or, failing that, this name, pinned
// until release is called. Errors: Get's.
func (s *Service) PinNamed(ctx context.Context, scope access.Scope, idOrName string) (_ Snapshot, release func(), err error) {
	snap, err := s.Get(ctx, scope, idOrName)
	if err != nil {
		return Snapshot{}, nil, err
	}
	release = s.Pin(snap.ID)
	if snap, err = s.Get(ctx, scope, snap.ID); err != nil { // deleted before it was pinned
		release()
		return Snapshot{}, nil, err
	}
	return snap, release, nil
}

// pinAlone is Pin for a caller that must be the only one.
func (s *Service) pinAlone(id string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pinned[id] > 0 {
		return nil, false
	}
	s.pinned[id]++
	return func() { s.unpin(id) }, true
}

func (s *Service) unpin(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pinned[id]--; s.pinned[id] == 0 {
		delete(s.pinned, id)
	}
}

// Begin evicts snapshots until one of about that many bytes fits, and makes a
// directory for its files. Finish or Abandon must follow. Errors: errs.Invalid
// with field name; errs.Conflict with code name_taken or snapshot_limit;
// errs.Exhausted with code snapshot_disk_limit or disk_full.
func (s *Service) Begin(ctx context.Context, draft Snapshot, bytes int64) (Snapshot, error) {
	draft.ID, draft.Durable = id.New(IDPrefix), false
	draft.CreatedAt = time.Now().UTC().Truncate(time.Microsecond)
	if draft.Kind == Ephemeral {
		return draft, s.prepare(ctx, draft, bytes)
	}
	if err := checkName(draft.Name); err != nil {
		return Snapshot{}, err
	}
	select {
	case s.evicting <- struct{}{}:
		defer func() { <-s.evicting }()
	case <-ctx.Done():
		return Snapshot{}, ctx.Err()
	}
	draft.Bytes = bytes // an estimate, until Seal counts
	s.Pin(draft.ID)     // until Finish or Abandon
	// Inserted first: a taken name must not evict another snapshot.
	stored, err := s.store.InsertSnapshot(ctx, draft)
	if errs.HasCode(err, quota.Code) {
		stored, err = s.insertInPlace(ctx, draft, err)
	}
	if err == nil {
		draft = stored
		err = s.evictFor(ctx, draft)
	}
	if err == nil {
		err = s.prepare(ctx, draft, bytes)
	}
	if err != nil {
		s.Abandon(ctx, draft)
		return Snapshot{}, err
	}
	return draft, nil
}

// prepare makes the directory. While the disk is full it evicts warm snapshots,
// one after the other.
func (s *Service) prepare(ctx context.Context, draft Snapshot, bytes int64) error {
	for {
		err := s.files.Prepare(draft.ID, bytes)
		if !errs.HasCode(err, "disk_full") || draft.Kind == Warm {
			return err
		}
		if yielded, yieldErr := s.Yield(ctx, errs.Missing(err)); !yielded {
			return errors.Join(err, yieldErr)
		}
	}
}

// Finish makes a captured snapshot durable.
func (s *Service) Finish(ctx context.Context, snap Snapshot) (Snapshot, error) {
	var err error
	if snap.Sums, snap.Bytes, err = s.files.Seal(ctx, snap); err != nil {
		return Snapshot{}, err
	}
	snap.Durable = true
	if err := s.store.SealSnapshot(ctx, snap); err != nil {
		return Snapshot{}, err
	}
	s.unpin(snap.ID)
	return snap, nil
}

// Abandon removes a snapshot that was begun, even when ctx has ended. When the
// store does not confirm that the row is deleted, the files stay: the row may say
// that the snapshot is durable.
func (s *Service) Abandon(ctx context.Context, snap Snapshot) {
	var err error
	if snap.Kind == Ephemeral {
		err = s.files.Remove(snap.ID)
	} else {
		err = s.remove(context.WithoutCancel(ctx), snap.ID)
		s.unpin(snap.ID)
	}
	if err != nil {
		s.log.Error("cannot remove an unfinished snapshot", logkey.Snapshot, snap.ID, logkey.Error, err)
	}
}

// Reconcile removes unfinished snapshots of an earlier hatchd, and automatic
// snapshots that are too old. It writes missing manifests: hatchd did not always.
// Sealed files without a row are set aside: the database may be an old copy.
func (s *Service) Reconcile(ctx context.Context) error {
	all, err := s.store.HostSnapshots(ctx)
	if err != nil {
		return err
	}
	var failures []error
	known := map[string]bool{}
	for _, snap := range all {
		known[snap.ID] = snap.Durable
		if snap.Durable {
			if err := s.files.Describe(snap); err != nil {
				s.log.Warn("cannot write the manifest of a snapshot", logkey.Snapshot, snap.ID, logkey.Error, err)
			}
			continue
		}
		s.log.Warn("removing an unfinished snapshot", logkey.Snapshot, snap.ID)
		if err := s.setAside(snap.ID); err != nil {
			failures = append(failures, err)
			continue
		}
		failures = append(failures, s.store.DeleteSnapshot(ctx, snap.ID))
	}
	ids, err := s.files.List()
	failures = append(failures, err)
	for _, id := range ids {
		if !known[id] {
			failures = append(failures, s.setAside(id))
		}
	}
	return errors.Join(append(failures, s.Prune(ctx))...)
}

// setAside sets files without a durable row aside, or removes them if they are
// incomplete.
func (s *Service) setAside(id string) error {
	kept, err := s.files.SetAside(id)
	switch {
	case err != nil:
		return fmt.Errorf("cannot set the files of snapshot %s aside: %w", id, err)
	case kept:
		s.log.Warn("set the files of a snapshot aside that the database does not have", logkey.Snapshot, id)
	}
	return nil
}

// nameForm keeps names apart from ids and usable in a path.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func checkName(name string) error {
	switch {
	case name == "":
		return nil
	case !nameForm.MatchString(name):
		return errs.InvalidField("name", "%q is not a valid name: want up to 63 letters, digits, '.', '_' and '-', a letter or digit first", name)
	case strings.HasPrefix(name, IDPrefix):
		return errs.InvalidField("name", "%q looks like an id: want a name that does not begin with %s", name, IDPrefix)
	}
	return nil
}

// evictable returns the snapshots that are durable, not in use and not manual, the
// oldest first.
func (s *Service) evictable(all []Snapshot) []Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	var free []Snapshot
	for _, snap := range slices.Backward(all) {
		if snap.Kind != Manual && snap.Durable && s.pinned[snap.ID] == 0 {
			free = append(free, snap)
		}
	}
	return free
}
