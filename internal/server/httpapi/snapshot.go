package httpapi

import (
	"cmp"
	"context"
	"net/netip"
	"net/url"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

const createSnapshotText = `Save the memory, devices and disk of a VM. The response comes once they are durable. ` +
	`The guest is paused while they are copied, then resumed; with stop the VM sleeps afterwards. A sleeping or paused VM stays asleep or paused; stop is an error for a paused VM.`

const restoreText = `Restore a VM to a snapshot of it. The VM may be in any state; its current memory and disk are lost. ` +
	`The response comes once the VM runs from the snapshot, or with wait=ready once its guest is ready.`

// Snapshots manages existing snapshots. [snapshot.Service] implements it.
type Snapshots interface {
	Get(ctx context.Context, scope access.Scope, idOrName string) (snapshot.Snapshot, error)
	List(ctx context.Context, scope access.Scope, f snapshot.Filter) ([]snapshot.Snapshot, error)
	Delete(ctx context.Context, scope access.Scope, idOrName string) error
}

type snapshotHandlers struct {
	*door
	snapshots Snapshots
	vms       interface {
		vmGetter
		Copier
	}
}

// SnapshotPath is the input of routes about one snapshot. It is exported for
// huma, which ignores unexported embedded structs.
type SnapshotPath struct {
	ID string `path:"id" doc:"The snapshot's ID or name."`
}

type createSnapshotInput struct {
	IDPath
	Body *api.CreateSnapshot
}

func (h *snapshotHandlers) create(ctx context.Context, in *createSnapshotInput) (*created[api.Snapshot], error) {
	var req vm.SnapshotRequest
	if b := in.Body; b != nil {
		req = vm.SnapshotRequest{Name: b.Name, Stop: b.Stop, Automatic: b.Automatic}
	}
	snap, err := h.vms.Snapshot(ctx, scope(ctx), in.ID, req)
	if err != nil {
		return nil, err
	}
	return &created[api.Snapshot]{Location: "/snapshots/" + snap.ID, Body: h.shown(snap)}, nil
}

// snapshotRetryAfter is when to ask again for a snapshot that is being taken.
const snapshotRetryAfter = 2 * time.Second

// replay answers with the snapshot that an earlier request has taken.
func (h *snapshotHandlers) replay(ctx context.Context, _ *createSnapshotInput, made []string) (*created[api.Snapshot], error) {
	snap, err := h.snapshots.Get(ctx, scope(ctx), made[0])
	if err != nil {
		return nil, err
	}
	if !snap.Durable {
		return nil, idempotency.InProgress(snapshotRetryAfter)
	}
	return &created[api.Snapshot]{Location: "/snapshots/" + snap.ID, Body: h.shown(snap)}, nil
}

type listSnapshotsInput struct {
	VMID string `query:"vm_id" maxLength:"64" doc:"Only snapshots of the VM with this ID, which may be deleted."`
	PageInput
}

func (h *snapshotHandlers) list(ctx context.Context, in *listSnapshotsInput) (*paged[api.Snapshot], error) {
	all, err := h.snapshots.List(ctx, scope(ctx), snapshot.Filter{VMID: in.VMID})
	if err != nil {
		return nil, err
	}
	query := url.Values{}
	if in.VMID != "" {
		query.Set("vm_id", in.VMID)
	}
	return h.listOf(all, "/snapshots", query).page(in.PageInput)
}

func (h *snapshotHandlers) listOfVM(ctx context.Context, in *listOfVMInput) (*paged[api.Snapshot], error) {
	all, err := h.snapshots.List(ctx, scope(ctx), snapshot.Filter{VMID: in.ID})
	if err == nil && len(all) == 0 {
		_, err = h.vms.Get(ctx, scope(ctx), in.ID)
	}
	if err != nil {
		return nil, err
	}
	return h.listOf(all, "/vms/"+url.PathEscape(in.ID)+"/snapshots", nil).page(in.PageInput)
}

func (h *snapshotHandlers) listOf(all []snapshot.Snapshot, path string, query url.Values) list[snapshot.Snapshot, api.Snapshot] {
	return list[snapshot.Snapshot, api.Snapshot]{
		all: all, show: h.shown, path: path, query: query,
		at: func(snap snapshot.Snapshot) position { return position{snap.CreatedAt, snap.ID} },
	}
}

func (h *snapshotHandlers) get(ctx context.Context, in *SnapshotPath) (*answer[api.Snapshot], error) {
	snap, err := h.snapshots.Get(ctx, scope(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Snapshot]{Body: h.shown(snap)}, nil
}

func (h *snapshotHandlers) delete(ctx context.Context, in *SnapshotPath) (*answer[api.Deleted], error) {
	if err := h.snapshots.Delete(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type restoreInput struct {
	IDPath
	WaitInput
	Body *api.RestoreVM
}

// restore wants two rights, of which the table of routes has one: that on the VM, which
// comes first.
func (h *vmHandlers) restore(ctx context.Context, in *restoreInput) (*answer[api.VM], error) {
	if _, err := h.vms.Get(ctx, scope(ctx), in.ID); err != nil {
		return nil, err
	}
	if err := checkRight(ctx, access.Read(access.Snapshots)); err != nil {
		return nil, err
	}
	to := ""
	if in.Body != nil {
		to = in.Body.SnapshotID
	}
	return shown(h.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := h.vms.Restore(ctx, scope(ctx), in.ID, to)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}

func (h *snapshotHandlers) shown(snap snapshot.Snapshot) api.Snapshot {
	out := api.Snapshot{
		ID: snap.ID, VMID: snap.VMID, Name: snap.Name, Kind: string(snap.Kind), ParentID: snap.ParentID,
		Durable: snap.Durable, SizeBytes: snap.Bytes,
		Checksums: api.SnapshotChecksums{Devices: snap.Sums.Devices, Memory: snap.Sums.Memory, Disk: snap.Sums.Disk},
		Compatibility: api.SnapshotCompatibility{
			VMM: snap.Machine.Driver, VMMVersion: snap.Machine.Version, Acceleration: snap.Machine.Accel, CPU: snap.Machine.CPU,
		},
		VMConfig:  shownOrigin(snap.VM),
		CreatedAt: utc(snap.CreatedAt),
	}
	out.Compatibility.Usable, out.Compatibility.Reason = h.usable(snap)
	return out
}

// usable reports whether VMs can be made from the snapshot on this host, or why not.
func (h *snapshotHandlers) usable(snap snapshot.Snapshot) (yes bool, why string) {
	if !snap.Durable {
		return false, "it is not durable yet"
	}
	if err := h.vms.Fits(snap); err != nil {
		return false, readable(err).Message
	}
	return true, ""
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
