package daemon

import (
	"context"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/logkey"
)

// healthTimeout bounds one check of all parts.
const healthTimeout = 5 * time.Second

// health returns what GET /healthz answers with.
func (p *parts) health(version string) func(context.Context) api.Health {
	return func(ctx context.Context) api.Health {
		ctx, cancel := context.WithTimeout(ctx, healthTimeout)
		defer cancel()
		h := api.Health{Status: "ok", Version: version, VMM: p.info.Name}
		add := func(name string, err error, hint string) {
			part := api.HealthPart{Name: name, Status: "ok"}
			if err != nil {
				p.log.Warn("a part is degraded", "part", name, logkey.Error, err)
				part.Status, part.Message, h.Status = "degraded", hint, "degraded"
			}
			h.Parts = append(h.Parts, part)
		}
		add("database", p.store.Ping(ctx), "the database does not answer; hatchd's log says why")
		add("disk", p.reserve.Check(), "the disk of the data directory is full, so that VMs that write to it stand still; delete snapshots, VMs or images, or give it more room")
		add("vmm", p.host.CheckVMM(), "a program that runs VMs is gone; install qemu-system-x86, or Firecracker and its jailer")
		add("network", p.host.CheckNetwork(), "the bridge, its packet rules, DHCP or DNS are not as they must be; hatchd's log says what; it tries to restore them every few seconds")
		_, err := p.images.Image(ctx, access.Owner(access.AdminID), image.DefaultID)
		add("image", err, "there is no usable default image; build one with: hatch image build")
		return h
	}
}
