package vm

import (
	"context"
	"fmt"
	"time"

	"github.com/hatchvm/hatch/internal/id"
	"github.com/hatchvm/hatch/internal/snapshot"
)

// reservation are the VMs to be of one request, each with its place on the host.
// Until it is made or abandoned nobody operates on one.
type reservation struct {
	vms     []VM
	unlock  map[string]func() // by id
	release func()            // lets go of the memory that they share
	earlier string            // the VM that the same request has made before; then there are no others
}

// reserve stores the VMs that are to be made of a snapshot, all or none, where
// there is room for them and for so many bytes of memory that they will share.
// What a daemon that dies leaves of them is removed by the next one.
func (s *Service) reserve(ctx context.Context, one snapshot.Snapshot, memory int64, req CopyRequest) (r reservation, err error) {
	drafts, err := s.drafts(one, req)
	if err != nil {
		return reservation{}, err
	}
	r.unlock, r.release = map[string]func(){}, s.deps.SnapshotFiles.HoldMemory(one.ID, memory)
	for _, v := range drafts { // as in Create
		unlock, err := s.locks.lock(ctx, v.ID)
		if err != nil {
			r.free()
			return reservation{}, err
		}
		r.unlock[v.ID] = unlock
	}
	var created bool
	err = s.withRoom(ctx, one.OwnerID, func() error {
		limit, err := s.capacity()
		if err == nil {
			r.vms, created, err = s.deps.Store.CreateVMs(ctx, drafts, s.settings.Pools, limit, req.Idempotency)
		}
		return err
	})
	switch {
	case err != nil:
		r.free()
		return reservation{}, err
	case !created:
		r.free()
		return reservation{earlier: r.vms[0].ID}, nil
	}
	return r, nil
}

// free lets everybody operate on the VMs, and lets go of what they would have
// shared.
func (r reservation) free() {
	for _, unlock := range r.unlock {
		unlock()
	}
	if r.release != nil {
		r.release()
	}
}

// abandon leaves nothing of VMs that were reserved and not begun.
func (s *Service) abandon(ctx context.Context, r reservation) {
	for _, v := range r.vms {
		s.forget(ctx, v.ID)
	}
	r.free()
}

// forget removes the row of a VM that has not become one.
func (s *Service) forget(ctx context.Context, id string) {
	if err := s.deps.Store.DeleteVM(ctx, id); err != nil {
		s.deps.Log.Error("cannot remove the row of a copy that failed", "vm", id, "err", err)
	}
	s.changes.announce(id)
}

// setup is what of the request is for cloud-init to do.
func (r CopyRequest) setup() Setup {
	switch {
	case r.UserData != nil:
		return SetupAnew
	case len(r.SSHKeys) > 0:
		return SetupKeys
	default:
		return SetupNone
	}
}

// drafts are the records of the VMs to be, checked as for any new VM.
func (s *Service) drafts(one snapshot.Snapshot, req CopyRequest) ([]VM, error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	labels := req.Labels
	if labels == nil {
		labels = one.VM.Labels
	}
	goesOnFrom := one.ID
	if one.Kind == snapshot.Passing { // gone with the fork
		goesOnFrom = one.ParentID
	}
	drafts := make([]VM, req.Count)
	for i := range drafts {
		v := VM{
			ID: id.New(IDPrefix), OwnerID: one.OwnerID, Name: req.Name, Labels: labels,
			ImageID: one.VM.ImageID, TemplateID: one.VM.TemplateID, Boot: one.VM.Boot,
			Intent: WantRunning, State: Starting,
			VCPUs: one.VM.VCPUs, MemMiB: one.VM.MemMiB, DiskMiB: one.VM.DiskMiB,
			BootArgs: one.VM.BootArgs, EnableNetwork: one.VM.Network,
			UserData: first(one.VM.UserData, req.UserData), SSHKeys: firstList(req.SSHKeys, one.VM.SSHKeys), RateLimits: one.VM.RateLimits,
			Driver: one.Machine.Driver, SnapshotID: goesOnFrom, Copying: OfSnapshot, CreatedAt: now, UpdatedAt: now,
		}
		if req.setup() != SetupAnew {
			v.Instance = one.VM.InstanceID
		}
		if req.Count > 1 && v.Name != "" {
			v.Name = fmt.Sprintf("%s-%d", v.Name, i+1)
		}
		if err := s.check(v, CreateRequest{Idempotency: req.Idempotency}); err != nil {
			return nil, err
		}
		drafts[i] = v
	}
	return drafts, nil
}
