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

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
)

// Service is what can be done with snapshots.
type Service struct {
	store  Store
	files  Files
	limits Limits
	log    *slog.Logger

	mu   sync.Mutex
	held map[string]int // by id: how many use it now

	turn chan struct{} // capacity 1; full while somebody counts snapshots and makes room for one
}

// New makes a service. Call Reconcile once before any is taken.
func New(store Store, files Files, limits Limits, log *slog.Logger) *Service {
	return &Service{store: store, files: files, limits: limits, log: log, held: map[string]int{}, turn: make(chan struct{}, 1)}
}

// Get returns the snapshot with this id or, failing that, this name.
// Errors: errs.NotFound with code snapshot_not_found.
func (s *Service) Get(ctx context.Context, owner, idOrName string) (Snapshot, error) {
	return s.store.Snapshot(ctx, owner, idOrName)
}

// List returns the owner's snapshots, newest first.
func (s *Service) List(ctx context.Context, owner string, f Filter) ([]Snapshot, error) {
	return s.store.Snapshots(ctx, owner, f)
}

// Latest returns the newest durable snapshot of a VM.
// Errors: errs.Conflict with code no_snapshot.
func (s *Service) Latest(ctx context.Context, owner, vmID string) (Snapshot, error) {
	all, err := s.store.Snapshots(ctx, owner, Filter{VMID: vmID})
	if err != nil {
		return Snapshot{}, err
	}
	for _, one := range all {
		if one.Durable {
			return one, nil
		}
	}
	return Snapshot{}, errs.New(errs.Conflict, "no_snapshot", "there is no snapshot of VM %s", vmID).
		WithHint("POST /vms/%s/snapshot takes one", vmID)
}

// Delete removes a snapshot. VMs that were made from it do not need it.
// Errors: errs.NotFound; errs.Conflict with code snapshot_in_use while it is
// being taken, restored or made into VMs.
func (s *Service) Delete(ctx context.Context, owner, idOrName string) error {
	one, err := s.store.Snapshot(ctx, owner, idOrName)
	if err != nil {
		return err
	}
	release, ok := s.seize(one.ID)
	if !ok {
		return errs.New(errs.Conflict, "snapshot_in_use", "cannot delete snapshot %s: it is in use", one.ID).
			WithHint("try again when the operation on it has ended")
	}
	defer release()
	return s.remove(ctx, one.ID)
}

// remove deletes the row first: files without one are removed at the next
// start, but a row without files would be a promise that is not kept.
func (s *Service) remove(ctx context.Context, id string) error {
	if err := s.store.DeleteSnapshot(ctx, id); err != nil {
		return err
	}
	if err := s.files.Remove(id); err != nil {
		return fmt.Errorf("cannot remove the files of snapshot %s: %w", id, err)
	}
	return nil
}

// Hold keeps a snapshot from being removed until release is called.
func (s *Service) Hold(id string) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.held[id]++
	return func() { s.letGo(id) }
}

// seize is Hold by somebody who wants to be the only one.
func (s *Service) seize(id string) (release func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[id] > 0 {
		return nil, false
	}
	s.held[id]++
	return func() { s.letGo(id) }, true
}

func (s *Service) letGo(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.held[id]--; s.held[id] == 0 {
		delete(s.held, id)
	}
}

// Begin makes room for a snapshot of about so many bytes, and a place for its
// files. Finish or Abandon ends what it began. Errors: errs.Invalid with field
// name; errs.Conflict with code name_taken or snapshot_limit; errs.Exhausted
// with code snapshot_disk_limit or disk_full.
func (s *Service) Begin(ctx context.Context, draft Snapshot, bytes int64) (Snapshot, error) {
	draft.ID, draft.Durable = id.New(IDPrefix), false
	draft.CreatedAt = time.Now().UTC().Truncate(time.Microsecond)
	if draft.Kind == Passing {
		return draft, s.prepare(ctx, draft, bytes)
	}
	if err := checkName(draft.Name); err != nil {
		return Snapshot{}, err
	}
	select {
	case s.turn <- struct{}{}:
		defer func() { <-s.turn }()
	case <-ctx.Done():
		return Snapshot{}, ctx.Err()
	}
	draft.Bytes = bytes // as good as any guess, until it is known
	s.Hold(draft.ID)    // until it is finished or abandoned
	// A name that is taken must not cost another snapshot its place.
	err := s.store.InsertSnapshot(ctx, draft)
	if err == nil {
		err = s.makeRoom(ctx, draft)
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

// prepare makes the place for the files. What hatchd keeps to save time gives way
// on a disk that is full, one after the other.
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

// Finish makes a snapshot durable whose files have been captured.
func (s *Service) Finish(ctx context.Context, one Snapshot) (Snapshot, error) {
	var err error
	if one.Sums, one.Bytes, err = s.files.Seal(ctx, one.ID); err != nil {
		return Snapshot{}, err
	}
	one.Durable = true
	if err := s.store.SealSnapshot(ctx, one); err != nil {
		return Snapshot{}, err
	}
	s.letGo(one.ID)
	return one, nil
}

// Abandon leaves nothing of a snapshot that was begun, also when ctx has ended.
// While the store cannot say that it is gone its files stay: it may have been
// stored that the snapshot counts.
func (s *Service) Abandon(ctx context.Context, one Snapshot) {
	var err error
	if one.Kind == Passing {
		err = s.files.Remove(one.ID)
	} else {
		err = s.remove(context.WithoutCancel(ctx), one.ID)
		s.letGo(one.ID)
	}
	if err != nil {
		s.log.Error("cannot remove a snapshot that was not finished", "snapshot", one.ID, "err", err)
	}
}

// Reconcile removes what an earlier daemon has left half done, and automatic
// snapshots that are too old.
func (s *Service) Reconcile(ctx context.Context) error {
	all, err := s.store.Snapshots(ctx, "", Filter{})
	if err != nil {
		return err
	}
	var faults []error
	known := map[string]bool{}
	for _, one := range all {
		known[one.ID] = true
		if !one.Durable {
			s.log.Warn("removing a snapshot that was not finished", "snapshot", one.ID)
			faults = append(faults, s.remove(ctx, one.ID))
		}
	}
	ids, err := s.files.List()
	faults = append(faults, err)
	for _, id := range ids {
		if !known[id] {
			s.log.Warn("removing files that belong to no snapshot", "snapshot", id)
			faults = append(faults, s.files.Remove(id))
		}
	}
	return errors.Join(append(faults, s.Prune(ctx))...)
}

// nameForm keeps names apart from ids and usable in a path.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func checkName(name string) error {
	switch {
	case name == "":
		return nil
	case !nameForm.MatchString(name):
		return errs.InvalidField("name", "%q is not a name; up to 63 letters, digits, '.', '_' and '-' can be given, a letter or digit first", name)
	case strings.HasPrefix(name, IDPrefix):
		return errs.InvalidField("name", "%q looks like an id; give a name that does not begin with %s", name, IDPrefix)
	}
	return nil
}

// oldestFirst returns the snapshots that nobody uses and nobody has asked to be
// kept, the oldest first.
func (s *Service) oldestFirst(all []Snapshot) []Snapshot {
	s.mu.Lock()
	defer s.mu.Unlock()
	var free []Snapshot
	for _, one := range slices.Backward(all) {
		if one.Kind != Manual && one.Durable && s.held[one.ID] == 0 {
			free = append(free, one)
		}
	}
	return free
}
