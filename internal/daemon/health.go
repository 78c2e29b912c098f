package daemon

import (
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/admission"
)

const (
	healthTimeout = 5 * time.Second // bounds one check of all parts
	healthAge     = time.Second     // of an answer, at most: a check is work, and needs no key
)

// health returns what GET /healthz answers with. One check at a time is made, for all
// that ask meanwhile.
func (p *parts) health(version string) func(context.Context) api.Health {
	var (
		checking = make(chan struct{}, 1) // guards the two below
		last     api.Health
		at       time.Time
	)
	return func(ctx context.Context) api.Health {
		checking <- struct{}{} // a check ends within healthTimeout
		defer func() { <-checking }()
		if time.Since(at) > healthAge {
			last, at = p.checkAll(ctx, last), time.Now()
			last.Version = version
		}
		return last
	}
}

// checkDescriptors opens a file, as any request may have to.
func checkDescriptors() error {
	file, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }() // nothing was written
	if !admission.LeavesDescriptors(file) {
		return errors.New("too few file descriptors are left")
	}
	return nil
}

// checkAll checks all parts, for all that ask, also if the first one leaves. It logs
// what is no longer as it was before.
func (p *parts) checkAll(ctx context.Context, before api.Health) api.Health {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healthTimeout)
	defer cancel()
	h := api.Health{Status: "ok", VMM: p.info.Name}
	add := func(name string, err error, hint string) {
		part := api.HealthPart{Name: name, Status: "ok"}
		if err != nil {
			part.Status, part.Message, h.Status = "degraded", hint, "degraded"
		}
		if err != nil && !slices.Contains(before.Parts, part) {
			p.log.Warn("a part is degraded", "part", name, logkey.Error, err)
		}
		h.Parts = append(h.Parts, part)
	}
	add("database", p.store.Ping(ctx), "the database does not answer; hatchd's log says why")
	add("audit", p.audit.Check(), "audit records cannot be stored, and wait in memory; hatchd's log says why")
	add("disk", p.reserve.Check(), "the disk of the data directory is full, so that VMs that write to it stand still; delete snapshots, VMs or images, or give it more room")
	add("descriptors", checkDescriptors(), "hatchd has too few file descriptors left, so that it refuses connections; raise LimitNOFILE of its unit")
	add("memory", p.host.CheckMemory(), "the host's RAM for guests' memory is full, so that VMs are ended whose guests use more; stop or delete a VM")
	add("processes", p.host.CheckTasks(), "the cgroup of VMs takes no more processes, so that none starts; raise its pids.max (TasksMax of hatch-vms.service), or stop a VM")
	add("vmm", p.host.CheckVMM(), "a program that runs VMs is gone; install qemu-system-x86, or Firecracker and its jailer")
	add("network", p.host.CheckNetwork(), "the bridge, its packet rules, DHCP or DNS are not as they must be; hatchd's log says what; it tries to restore them every few seconds")
	_, err := p.images.Image(ctx, access.Everyone, image.DefaultID)
	add("image", err, "there is no usable default image; build one with: hatch image build")
	return h
}
