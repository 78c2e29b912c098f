package clone

import (
	"context"

	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

// reservation holds the rows and locks of the VMs that one request will create,
// and pins the memory that they will map. Until it is used or abandoned no other
// operation runs on them.
type reservation struct {
	vms    []vm.VM
	unlock map[string]func() // by id
	unpin  func()
}

// reserve stores the VMs to be cloned from a snapshot, all or none, if there is
// capacity for them and for the memory that they will map. What a crash leaves of
// them the next hatchd removes.
func (s *Service) reserve(ctx context.Context, snap snapshot.Snapshot, memory int64, req vm.CloneRequest) (r reservation, err error) {
	drafts, err := s.drafts(snap, req)
	if err != nil {
		return reservation{}, err
	}
	r.unlock, r.unpin = map[string]func(){}, s.SnapshotFiles.PinMemory(snap.ID, memory)
	for _, v := range drafts { // before the rows can be seen, as in a create
		unlock, err := s.Runner.Lock(ctx, v.ID)
		if err != nil {
			r.free()
			return reservation{}, err
		}
		r.unlock[v.ID] = unlock
	}
	err = s.Capacity.Reserve(ctx, snap.OwnerID, func(limit vm.Capacity) error {
		r.vms, err = s.Store.CreateVMs(ctx, drafts, s.Pools, limit)
		return err
	})
	switch {
	case errs.HasCode(err, errs.DatabaseUnavailable):
		s.Power.ForgetUnstored(idsOf(drafts), r.free)
		return reservation{}, err
	case err != nil:
		r.free()
		return reservation{}, err
	}
	return r, nil
}

func idsOf(vms []vm.VM) []string {
	ids := make([]string, len(vms))
	for i, v := range vms {
		ids[i] = v.ID
	}
	return ids
}

// free gives back locks and memory.
func (r reservation) free() {
	for _, unlock := range r.unlock {
		unlock()
	}
	if r.unpin != nil {
		r.unpin()
	}
}

// abandon deletes VMs that were reserved and not begun.
func (s *Service) abandon(ctx context.Context, r reservation) {
	for _, v := range r.vms {
		s.forget(ctx, v.ID)
	}
	r.free()
}

// drafts returns the rows of the VMs to be created, checked as any new VM's.
func (s *Service) drafts(snap snapshot.Snapshot, req vm.CloneRequest) ([]vm.VM, error) {
	now := vm.Now()
	drafts := make([]vm.VM, req.Count)
	for i := range drafts {
		v := vm.CloneOf(snap, req)
		v.ID, v.Name, v.CreatedAt, v.UpdatedAt = id.New(vm.IDPrefix), name(req, i), now, now
		v.Expiry = v.Expiry.Begun(now)
		if err := s.Check(v, vm.CreateRequest{}); err != nil {
			return nil, err
		}
		drafts[i] = v
	}
	return drafts, nil
}
