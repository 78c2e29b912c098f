package httpapi

import (
	"cmp"
	"context"
	"net/netip"
	"strings"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/vm"
)

const createSnapshotText = `Keep a VM's memory, devices and disk of this moment. Answers once they are safe on disk. ` +
	`The guest stands still while they are copied, and goes on; with stop the VM sleeps afterwards. One that sleeps or is paused stays so; with stop a paused one is refused.`

const restoreText = `Put a VM back to a snapshot of it, whatever it does now. What is in its memory and on its disk now is lost. ` +
	`Answers once it goes on from there, or with wait=ready once its guest is up.`

// Snapshots is what can be done with those that were taken. [snapshot.Service]
// is one.
type Snapshots interface {
	Get(ctx context.Context, owner, idOrName string) (snapshot.Snapshot, error)
	List(ctx context.Context, owner string, f snapshot.Filter) ([]snapshot.Snapshot, error)
	Delete(ctx context.Context, owner, idOrName string) error
}

// SnapshotPath is the input of routes about one snapshot. It is exported for
// huma, which looks into no other embedded struct.
type SnapshotPath struct {
	ID string `path:"id" doc:"The snapshot's ID or name."`
}

type createSnapshotInput struct {
	IDPath
	Body *api.CreateSnapshot
}

func (d *door) createSnapshot(ctx context.Context, in *createSnapshotInput) (*created[api.Snapshot], error) {
	var req vm.SnapshotRequest
	if b := in.Body; b != nil {
		req = vm.SnapshotRequest{Name: b.Name, Stop: b.Stop, Automatic: b.Automatic}
	}
	one, err := d.VMs.Snapshot(ctx, owner(ctx), in.ID, req)
	if err != nil {
		return nil, err
	}
	return &created[api.Snapshot]{Location: "/snapshots/" + one.ID, Body: d.shownSnapshot(one)}, nil
}

type listSnapshotsInput struct {
	VMID string `query:"vm_id" maxLength:"64" doc:"Only snapshots of the VM of this ID, which may be gone."`
}

type listSnapshotsOutput struct {
	Body []api.Snapshot `nullable:"false"`
}

func (d *door) listSnapshots(ctx context.Context, in *listSnapshotsInput) (*listSnapshotsOutput, error) {
	list, err := d.Snapshots.List(ctx, owner(ctx), snapshot.Filter{VMID: in.VMID})
	if err != nil {
		return nil, err
	}
	out := &listSnapshotsOutput{Body: make([]api.Snapshot, len(list))}
	for i, one := range list {
		out.Body[i] = d.shownSnapshot(one)
	}
	return out, nil
}

func (d *door) listVMSnapshots(ctx context.Context, in *IDPath) (*listSnapshotsOutput, error) {
	out, err := d.listSnapshots(ctx, &listSnapshotsInput{VMID: in.ID})
	if err == nil && len(out.Body) == 0 {
		_, err = d.VMs.Get(ctx, owner(ctx), in.ID)
	}
	return out, err
}

func (d *door) getSnapshot(ctx context.Context, in *SnapshotPath) (*answer[api.Snapshot], error) {
	one, err := d.Snapshots.Get(ctx, owner(ctx), in.ID)
	if err != nil {
		return nil, err
	}
	return &answer[api.Snapshot]{Body: d.shownSnapshot(one)}, nil
}

func (d *door) deleteSnapshot(ctx context.Context, in *SnapshotPath) (*answer[api.Deleted], error) {
	if err := d.Snapshots.Delete(ctx, owner(ctx), in.ID); err != nil {
		return nil, err
	}
	return deleted(), nil
}

type restoreInput struct {
	IDPath
	WaitInput
	Body *api.RestoreVM
}

func (d *door) restoreVM(ctx context.Context, in *restoreInput) (*answer[api.VM], error) {
	to := ""
	if in.Body != nil {
		to = in.Body.SnapshotID
	}
	return shown(d.untilWaited(ctx, in.WaitInput, func(ctx context.Context) (vm.VM, error) {
		v, err := d.VMs.Restore(ctx, owner(ctx), in.ID, to)
		v.ID = cmp.Or(v.ID, in.ID)
		return v, err
	}))
}

func (d *door) shownSnapshot(one snapshot.Snapshot) api.Snapshot {
	out := api.Snapshot{
		ID: one.ID, VMID: one.VMID, Name: one.Name, Kind: string(one.Kind), ParentID: one.ParentID,
		Durable: one.Durable, SizeBytes: one.Bytes,
		Checksums: api.SnapshotChecksums{Devices: one.Sums.Devices, Memory: one.Sums.Memory, Disk: one.Sums.Disk},
		Compatibility: api.SnapshotCompatibility{
			VMM: one.Machine.Driver, VMMVersion: one.Machine.Version, Acceleration: one.Machine.Accel, CPU: one.Machine.CPU,
		},
		VMConfig:  shownOrigin(one.VM),
		CreatedAt: utc(one.CreatedAt),
	}
	out.Compatibility.Usable, out.Compatibility.Reason = d.usable(one)
	return out
}

// usable reports whether VMs can go on from the snapshot here, or why not.
func (d *door) usable(one snapshot.Snapshot) (yes bool, why string) {
	if !one.Durable {
		return false, "it is still being taken"
	}
	if err := d.VMs.Fits(one); err != nil {
		return false, readable(err).Message
	}
	return true, ""
}

// shownOrigin leaves out what may hold secrets.
func shownOrigin(o snapshot.Origin) api.SnapshotVMConfig {
	return api.SnapshotVMConfig{
		Hostname: o.Hostname, ImageID: o.ImageID, TemplateID: o.TemplateID,
		VCPUCount: o.VCPUs, MemMiB: o.MemMiB, DiskMiB: o.DiskMiB, BootArgs: o.BootArgs,
		EnableNetwork: o.Network, GuestIP: addressText(o.Address), GuestMAC: strings.ToUpper(o.MAC.String()),
		RateLimits: shownRateLimits(o.RateLimits),
	}
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}
