package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/host/capacity"
	"github.com/hatchvm/hatch/internal/host/page"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/server/httpapi"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/warm"
	"github.com/hatchvm/hatch/internal/webhook"
	"github.com/hatchvm/hatch/internal/webhook/sender"
)

// tapPrefix starts the name of every TAP of ours.
const tapPrefix = "htap"

// idempotencyReach is how long an Idempotency-Key is remembered.
const idempotencyReach = 24 * time.Hour

// parts is everything a running daemon is made of.
type parts struct {
	cfg     config.Config
	log     *slog.Logger
	out     io.Writer
	vmRoot  string   // run directories of VMs
	info    vmm.Info // of the driver that auto chose
	store   *store.Store
	events  *event.Service
	images  *image.Service
	vms     *vm.Service
	kept    *snapshot.Service
	warm    *warm.Service
	shut    func() // closes the VMs' SSH ports: nobody wakes a VM any more
	handler http.Handler

	streams    context.Context // of requests; done when streams must end
	endStreams context.CancelFunc

	closers []func() error // run in reverse
}

// assemble makes every part. On error what was made is closed again.
func assemble(ctx context.Context, cfg config.Config, opt Options) (_ *parts, err error) {
	p := &parts{cfg: cfg, log: opt.Log, out: opt.Out, vmRoot: filepath.Join(cfg.DataDir, "vms"), shut: func() {}}
	p.streams, p.endStreams = context.WithCancel(context.WithoutCancel(ctx))
	p.onClose(func() error { p.endStreams(); return nil })
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if err := p.openStore(ctx); err != nil {
		return nil, err
	}
	keys, err := p.openAccess(ctx, opt)
	if err != nil {
		return nil, err
	}
	p.events = event.New(p.store, event.Limits{Keep: p.cfg.EventsKeep, PerVM: p.cfg.EventsPerVM, Total: p.cfg.EventsMax}, p.log)
	p.onClose(p.events.Close)
	host, err := p.chooseHost(ctx)
	if err != nil {
		return nil, err
	}
	p.images = image.New(p.store, host.inspector, host.initramfs, host.builder, p.log)
	p.onClose(p.images.Close)
	templates := template.New(p.store, p.images)
	p.kept = snapshot.New(p.store, host.snapshots, snapshot.Limits{
		PerVM: p.cfg.MaxSnapshotsPerVM, MaxAge: p.cfg.SnapshotMaxAge, DiskMiB: p.cfg.SnapshotDiskMiB,
	}, p.log)
	if err := p.kept.Reconcile(ctx); err != nil {
		return nil, err
	}
	p.warm = warm.New(p.kept, host.snapshots, p.store, warm.Mode(p.cfg.Warm), p.log)
	if err := p.makeVMs(host, templates); err != nil {
		return nil, err
	}
	p.handler = httpapi.New(httpapi.Config{
		VMs: p.vms, Snapshots: p.kept, Images: p.images, Warm: p.warm, Templates: templates, Keys: keys, Access: keys, Events: p.events, Webhooks: p.makeWebhooks(opt.Version),
		Files: file.New(guests{p.vms}), Processes: process.New(guests{p.vms}),
		Health: p.health(host, opt.Version), Version: opt.Version, Log: p.log,
	})
	return p, nil
}

func (p *parts) onClose(f func() error) { p.closers = append(p.closers, f) }

// close undoes assemble, the newest first.
func (p *parts) close() error {
	var faults []error
	for i := len(p.closers) - 1; i >= 0; i-- {
		faults = append(faults, p.closers[i]())
	}
	p.closers = nil
	return errors.Join(faults...)
}

// openStore takes the data directory for this process and opens the database.
func (p *parts) openStore(ctx context.Context) error {
	if err := os.MkdirAll(p.vmRoot, 0o700); err != nil {
		return fmt.Errorf("cannot make HATCH_DATA_DIR %s: %w", p.cfg.DataDir, err)
	}
	lock, err := store.LockDir(p.cfg.DataDir)
	if err != nil {
		return err
	}
	p.onClose(lock.Close)
	if p.store, err = store.Open(ctx, p.cfg.DatabaseURL); err != nil {
		return err
	}
	p.onClose(p.store.Close)
	return p.checkDatabase(ctx)
}

// checkDatabase refuses a database that knows no VM beside a data directory
// with VMs' disks: it is another one's, or new, and all those VMs would be
// taken for strangers.
func (p *parts) checkDatabase(ctx context.Context) error {
	vms, err := p.store.AllVMs(ctx)
	if err != nil || len(vms) > 0 {
		return err
	}
	disks, err := filepath.Glob(filepath.Join(p.vmRoot, vm.IDPrefix+"*"))
	if err != nil || len(disks) == 0 {
		return err
	}
	return fmt.Errorf("cannot use this database: it knows no VMs, but %s holds the files of %d; set HATCH_DATABASE_URL to the one that goes with this directory, or move %s away",
		p.cfg.DataDir, len(disks), p.vmRoot)
}

// openAccess makes sure that there is a key, and shows a new one once.
func (p *parts) openAccess(ctx context.Context, opt Options) (*access.Service, error) {
	keys := access.New(p.store, p.log)
	p.onClose(keys.Close)
	key, created, err := keys.Bootstrap(ctx, p.cfg.DataDir, p.cfg.APIKey)
	if err != nil {
		return nil, err
	}
	if created {
		_, err = fmt.Fprintf(opt.Out, "The admin API key, shown this once and kept in %s:\n\n    %s\n\n",
			filepath.Join(p.cfg.DataDir, access.KeyFile), key)
	}
	return keys, err
}

// makeWebhooks starts to deliver what waits for it.
func (p *parts) makeWebhooks(version string) *webhook.Service {
	posts := sender.New(sender.Config{AllowPrivate: p.cfg.WebhookAllowPrivate, Version: version})
	p.onClose(posts.Close)
	hooks := webhook.New(webhook.Config{
		Store: p.store, Sender: posts, Encode: httpapi.EncodeEvent,
		AllowPrivate: p.cfg.WebhookAllowPrivate, Keep: p.cfg.EventsKeep, Log: p.log,
	})
	p.onClose(hooks.Close)
	return hooks
}

func (p *parts) makeVMs(h *hostParts, templates *template.Service) error {
	limits, err := capacity.New(p.cfg.DataDir, capacity.Overcommit{Memory: p.cfg.MemOver, Disk: p.cfg.DiskOver})
	if err != nil {
		return err
	}
	drivers := map[string]vmm.Driver{}
	for _, d := range h.drivers {
		drivers[d.Info().Name] = d
	}
	p.info = h.drivers[0].Info()
	p.vms = vm.New(vm.Deps{
		Store: p.store, Images: p.images, Templates: templates,
		Network: h.network, Forwards: h.forwards, Files: h.files, Memories: h.memories, Guests: h.guests, Consoles: h.consoles,
		Snapshots: p.kept, SnapshotFiles: h.snapshots, Warm: p.warm,
		Host: limits, Drivers: drivers, Log: p.log, PageStatus: page.Status,
	}, vm.Settings{
		DefaultDriver: p.info.Name,
		VCPUs:         p.cfg.DefaultVCPU, MemMiB: p.cfg.DefaultMemMiB, DiskMiB: p.cfg.DefaultDiskMiB,
		BootArgs: p.cfg.DefaultBootArgs, StopTimeout: p.cfg.StopTimeout, OwnUser: p.info.Name != "fake",
		Pools: vm.Pools{
			Network: p.cfg.Network, SSHMin: p.cfg.SSHPortMin, SSHMax: p.cfg.SSHPortMax,
			UIDMin: p.cfg.UIDMin, UIDMax: p.cfg.UIDMax,
			TapPrefix: tapPrefix, IdempotencyReach: idempotencyReach, SSHBusy: h.portBusy,
		},
	})
	return nil
}

// defaultImage makes the operator's own files img_default, if there are any.
// Without them the first `hatch image build` makes it.
func (p *parts) defaultImage(ctx context.Context) error {
	if p.cfg.VMM == "fake" {
		img, err := fakeImage(access.AdminID, filepath.Join(p.cfg.DataDir, "fake"))
		if err != nil {
			return err
		}
		return p.store.UpsertImage(ctx, img)
	}
	if p.cfg.DefaultKernelPath == "" {
		return nil
	}
	return p.images.SetDefault(ctx, access.AdminID, p.cfg.DefaultKernelPath, p.cfg.DefaultRootfsPath)
}
