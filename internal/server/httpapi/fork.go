package httpapi

import (
	"context"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/vm"
)

const forkText = `Make new VMs that go on from where this one is, each with a hostname, an address and a MAC of its own. ` +
	`Answers once they run as themselves. The VM goes on; its guest stands still while its memory and disk are copied once. ` +
	`When some could not be made the answer says why; when not one could, that is the error. ` +
	`They go on being made when the client leaves.`

type forkInput struct {
	IDPath
	Body *api.ForkVM
}

func (d *door) forkVM(ctx context.Context, in *forkInput) (*created[api.Copies], error) {
	body := api.ForkVM{}
	if in.Body != nil {
		body = *in.Body
	}
	made, err := d.VMs.Fork(ctx, owner(ctx), in.ID, vm.CopyRequest{
		Count: countOf(body.Count), Name: body.Name, Labels: body.Labels,
		UserData: body.UserData, SSHKeys: body.SSHAuthorizedKeys,
	})
	if err != nil {
		return nil, err
	}
	out := api.Copies{VMs: wholeVMs(made.VMs), Failed: d.failures(ctx, made.Failed)}
	return &created[api.Copies]{Location: "/vms/" + made.VMs[0].ID, Body: out}, nil
}

func countOf(given *int) int {
	if given == nil {
		return 1
	}
	return *given
}

// createFrom is createVM from a snapshot.
func (d *door) createFrom(ctx context.Context, in *createVMInput) (*createVMOutput, error) {
	body := *in.Body
	if err := refuseBesideSnapshot(body); err != nil {
		return nil, err
	}
	key, err := idempotency(in.IdempotencyKey, body)
	if err != nil {
		return nil, err
	}
	made, err := d.copiesOf(ctx, in.WaitInput, body.SnapshotID, vm.CopyRequest{
		Count: countOf(body.Count), Name: body.Name, Labels: body.Labels,
		UserData: body.UserData, SSHKeys: body.SSHAuthorizedKeys, Idempotency: key,
	})
	if err != nil {
		return nil, err
	}
	first := made.VMs[0]
	out := &createVMOutput{Location: "/vms/" + first.ID, ServerTiming: serverTiming(first.Took), Body: api.CreatedVM{VM: wholeVM(first)}}
	if body.Count != nil {
		out.Body.VMs, out.Body.Failed = wholeVMs(made.VMs), d.failures(ctx, made.Failed)
	}
	return out, nil
}

// copiesOf makes VMs of a snapshot and waits for them as the caller asked.
func (d *door) copiesOf(ctx context.Context, in WaitInput, snapshotID string, req vm.CopyRequest) (vm.Copies, error) {
	timeout, err := parseWaitTime("wait_timeout", in.WaitTimeout)
	if err != nil {
		return vm.Copies{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	made, err := d.VMs.CreateFrom(bounded, owner(ctx), snapshotID, req)
	if err != nil || in.Wait != "ready" {
		return made, err
	}
	for i, v := range made.VMs {
		ready, err := d.whenReady(bounded, ctx, v)
		switch {
		case err != nil && len(made.VMs) > 1:
			continue // one that is gone again must not hide the others
		case err != nil:
			return vm.Copies{}, err
		}
		ready.Took = v.Took
		made.VMs[i] = ready
	}
	return made, nil
}

// refuseBesideSnapshot refuses what a VM has from the snapshot it is made of.
func refuseBesideSnapshot(body api.CreateVM) error {
	for _, f := range []struct {
		name  string
		given bool
	}{
		{"image_id", body.ImageID != ""},
		{"template_id", body.TemplateID != ""},
		{"vcpu_count", body.VCPUCount != nil},
		{"mem_mib", body.MemMiB != nil},
		{"disk_mib", body.DiskMiB != nil},
		{"boot_args", body.BootArgs != nil},
		{"enable_network", body.EnableNetwork != nil},
		{"guest_ip", body.GuestIP != ""},
		{"guest_mac", body.GuestMAC != ""},
		{"rate_limits", body.RateLimits != nil},
		{"vmm", body.VMM != ""},
	} {
		if f.given {
			return errs.InvalidField(f.name, "it comes with the snapshot").
				WithHint("leave it out, or leave out snapshot_id")
		}
	}
	return nil
}

func wholeVMs(made []vm.VM) []api.VM {
	out := make([]api.VM, len(made))
	for i, v := range made {
		out[i] = wholeVM(v)
	}
	return out
}

// failures returns why some of what was asked for was not made, as the client
// may see it.
func (d *door) failures(ctx context.Context, faults []error) []api.Failure {
	out := make([]api.Failure, len(faults))
	for i, err := range faults {
		p := d.problemOf(ctx, err)
		out[i] = api.Failure{Code: p.Code, Message: p.Problem.Error, Field: p.Field, Hint: p.Hint}
	}
	return out
}
