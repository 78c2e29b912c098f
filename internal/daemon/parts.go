package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/term"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/access/issuer"
	"github.com/hatchvm/hatch/internal/audit"
	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/file"
	"github.com/hatchvm/hatch/internal/host/capacity"
	"github.com/hatchvm/hatch/internal/host/httpprobe"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/keyfile"
	"github.com/hatchvm/hatch/internal/host/owned"
	"github.com/hatchvm/hatch/internal/host/space"
	"github.com/hatchvm/hatch/internal/idle"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/process"
	"github.com/hatchvm/hatch/internal/quota"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/httpapi"
	"github.com/hatchvm/hatch/internal/server/portgate"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/sshca"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/hostpower"
	"github.com/hatchvm/hatch/internal/vm/lifecycle"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/warm"
	"github.com/hatchvm/hatch/internal/webhook"
	"github.com/hatchvm/hatch/internal/webhook/sender"
)

// tapPrefix starts the name of every TAP that hatchd makes.
const tapPrefix = "htap"

// leaseCoolDown is how long addresses and host ports of deleted VMs stay out of use:
// long enough for clients outside to notice that the VM is gone.
const leaseCoolDown = 5 * time.Minute

// bootTime is how long a guest that boots keeps others from starting at most: one with
// hardware virtualization is up by then.
const bootTime = 15 * time.Second

// parts is everything a running daemon is made of.
type parts struct {
	cfg          config.Config
	log          *slog.Logger
	reserve      *space.Reserve
	vmRoot       string   // run directories of VMs
	info         vmm.Info // of the default driver
	store        *store.Store
	host         *Host
	events       *event.Service
	audit        *audit.Service
	images       *image.Service
	vms          *lifecycle.Service
	snapshots    *snapshot.Service
	warm         *warm.Service
	routes       *route.Service
	keys         *access.Service
	templates    *template.Service
	files        *file.Service
	processes    *process.Service
	doors        *doors
	e2b          *e2bDoor // nil: off
	idle         *idle.Service
	handler      http.Handler
	lines        *admission.Log // of the log, that clients without a key cause
	sshAuthority *sshca.Authority

	streams    context.Context // of requests; done when streams must end
	endStreams context.CancelFunc

	closers []func() error // run in reverse
}

// assemble makes every part. On error it closes the parts made so far.
func assemble(ctx context.Context, cfg config.Config, opt Options, reserve *space.Reserve) (_ *parts, err error) {
	p := &parts{cfg: cfg, log: opt.Log, reserve: reserve, vmRoot: filepath.Join(cfg.DataDir, VMsDir)}
	p.lines = admission.NewLog(p.log)
	p.onClose(func() error { p.lines.Close(); return nil })
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
	p.keys = keys
	if p.routes, err = route.Open(ctx, route.Config{
		Store: p.store, Keys: keys, DNS: net.DefaultResolver, Domain: p.cfg.ProxyDomain, Implicit: p.cfg.ProxyImplicit != "off",
		URL: p.routeURL, Now: time.Now, Log: p.log,
	}); err != nil {
		return nil, err
	}
	if p.audit, err = audit.Open(ctx, p.store, audit.Limits{Keep: p.cfg.AuditKeep, Total: p.cfg.AuditMax}, p.log); err != nil {
		return nil, err
	}
	p.onClose(p.audit.Close)
	p.events = event.New(p.store, event.Limits{Keep: p.cfg.EventsKeep, PerVM: p.cfg.EventsPerVM, Total: p.cfg.EventsMax}, p.log)
	p.onClose(p.events.Close)
	if err := p.openHost(ctx, opt); err != nil {
		return nil, err
	}
	p.images = image.New(p.store, p.host.Inspector, p.host.Initramfs, p.host.Builder, p.log)
	p.onClose(p.images.Close)
	templates := template.New(p.store, p.images)
	p.templates = templates
	p.snapshots = snapshot.New(p.store, p.host.Snapshots, snapshot.Limits{
		PerVM: p.cfg.MaxSnapshotsPerVM, MaxAge: p.cfg.SnapshotMaxAge, DiskMiB: p.cfg.SnapshotDiskMiB,
	}, p.log)
	if err := p.snapshots.Reconcile(ctx); err != nil {
		return nil, err
	}
	p.warm = warm.New(p.snapshots, p.host.Snapshots, p.store, warm.Mode(p.cfg.Warm), p.log)
	if err := p.makeVMs(templates); err != nil {
		return nil, err
	}
	p.idle = idle.New(p.vms, p.vms.Reach(), p.log)
	p.vms.Watch(p.idle)
	webhooks := p.makeWebhooks(opt.Version)
	if err := keys.Resume(ctx, belongings{p, templates, webhooks}); err != nil {
		return nil, err
	}
	p.onClose(keys.EndDeletions) // before what they use
	p.files, p.processes = file.New(fileGuests{p.vms.Reach()}), process.New(processGuests{p.vms.Reach()}, p.store)
	p.handler = httpapi.New(httpapi.Config{
		Idle: p.idle,
		VMs:  p.vms, Snapshots: p.snapshots, Images: p.images, Warm: p.warm, Templates: templates, Keys: keys, Users: keys, Access: keys, Events: p.events, Webhooks: webhooks,
		Files: p.files, Processes: p.processes, Requests: p.store,
		Health: p.health(opt.Version), Counts: p.store, E2B: p.e2bAt, Routes: p.routes, Quotas: p.store, Authority: p.sshAuthority, Audit: p.audit, Version: opt.Version, Log: p.log, Lines: p.lines,
		Origins: p.cfg.CORSOrigins, HSTS: p.cfg.HSTSMaxAge, IdleDefaults: p.idlePolicy(),
		Limits: httpapi.Limits{BodyBytes: p.cfg.HTTPBodyMiB << 20, RequestsPerUser: int64(p.cfg.HTTPMaxConns / 2), Rates: p.rates()},
	})
	return p, nil
}

func (p *parts) onClose(f func() error) { p.closers = append(p.closers, f) }

// close undoes assemble, the newest part first.
func (p *parts) close() error {
	var failures []error
	for _, c := range slices.Backward(p.closers) {
		failures = append(failures, c())
	}
	p.closers = nil
	return errors.Join(failures...)
}

// openStore locks the data directory and opens the database.
func (p *parts) openStore(ctx context.Context) error {
	if err := os.MkdirAll(p.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("cannot make HATCH_DATA_DIR %s: %w", p.cfg.DataDir, err)
	}
	if err := owned.Check(p.cfg.DataDir, p.cfg.TrustDataDirParents); err != nil { // before anything in it is believed
		return fmt.Errorf("cannot use HATCH_DATA_DIR %s: %w", p.cfg.DataDir, err)
	}
	lock, err := store.LockDir(p.cfg.DataDir)
	if err != nil {
		return err
	}
	p.onClose(lock.Close)
	if err := checkRestored(p.cfg.DataDir); err != nil {
		return err
	}
	if err := os.MkdirAll(p.vmRoot, 0o700); err != nil {
		return fmt.Errorf("cannot make HATCH_DATA_DIR %s: %w", p.cfg.DataDir, err)
	}
	if err := removeStaleBackups(p.cfg.DataDir); err != nil {
		p.log.Warn("files of a backup that did not end stay", logkey.Error, err)
	}
	dir, err := p.directory()
	if err != nil {
		return err
	}
	keys := keyfile.File{Path: p.cfg.SecretsKeyFile}
	if err := keys.Clean(); err != nil {
		p.log.Warn("an unfinished key file stays", logkey.File, keys.Path, logkey.Error, err)
	}
	dir.Keys = lastingKeys{keys, p.cfg.DataDir}
	if p.store, err = store.OpenFor(ctx, p.cfg.DatabaseURL, dir); err != nil {
		return err
	}
	p.onClose(p.store.Close)
	p.store.OnFull(p.reserve.Release)
	p.store.LimitUsers(p.quotas())
	if err := p.finishRotation(ctx, keys); err != nil {
		return err
	}
	if err := p.store.Scrub(ctx); err != nil {
		p.log.Warn("old forms of secrets stay in the database until the next start", logkey.Error, err)
	}
	return p.checkDatabase(ctx, len(dir.VMs))
}

// quotas returns the limits of users that have none of their own.
func (p *parts) quotas() quota.Limits {
	limits, q := quota.Limits{}, p.cfg.Quota
	for r, most := range map[quota.Resource]int64{
		quota.VMs: q.VMs, quota.VCPUs: q.VCPUs, quota.Memory: q.MemoryMiB, quota.Disk: q.DiskMiB, quota.Snapshots: q.Snapshots,
		quota.SnapshotMiB: q.SnapshotMiB, quota.ImageMiB: q.ImageMiB, quota.Routes: q.Routes, quota.Webhooks: q.Webhooks,
	} {
		if most > 0 {
			limits[r] = most
		}
	}
	return limits
}

// idlePolicy returns that of new VMs.
func (p *parts) idlePolicy() machine.IdlePolicy {
	return machine.IdlePolicy{
		Timeout: p.cfg.IdleTimeout, Action: machine.Action(p.cfg.IdleAction),
		CPUPercent: p.cfg.IdleCPUPercent, NetworkBytes: p.cfg.IdleNetworkBytes,
	}
}

// rates returns how often a key may call the API.
func (p *parts) rates() map[admission.Class]admission.Rate {
	return map[admission.Class]admission.Rate{
		admission.Reads: admission.Rate(p.cfg.RateRead), admission.Writes: admission.Rate(p.cfg.RateWrite), admission.Creates: admission.Rate(p.cfg.RateCreate),
	}
}

// directory describes the data directory for the database.
func (p *parts) directory() (dir store.Directory, err error) {
	if dir.HostID, err = store.HostID(p.cfg.DataDir); err != nil {
		return dir, err
	}
	if dir.KeyHash, err = access.KeyFileHash(p.cfg.DataDir); err != nil {
		return dir, err
	}
	for name, ids := range map[string]struct {
		prefix string
		into   *[]string
	}{VMsDir: {vm.IDPrefix, &dir.VMs}, SnapshotDir: {snapshot.IDPrefix, &dir.Snapshots}} {
		found, err := filepath.Glob(filepath.Join(p.cfg.DataDir, name, ids.prefix+"*"))
		if err != nil {
			return dir, err
		}
		for _, path := range found {
			*ids.into = append(*ids.into, filepath.Base(path))
		}
	}
	return dir, nil
}

// checkDatabase refuses a database without VMs of this host if the data directory
// has VMs' disks: it is old, and every disk would be treated as an orphan.
func (p *parts) checkDatabase(ctx context.Context, disks int) error {
	vms, err := p.store.AllVMs(ctx)
	if err != nil || len(vms) > 0 || disks == 0 {
		return err
	}
	return fmt.Errorf("cannot use this database: it knows no VMs, but %s holds the files of %d; set HATCH_DATABASE_URL to the one that goes with this directory, or move %s away",
		p.cfg.DataDir, disks, p.vmRoot)
}

// openHost opens the host with the links of live VMs.
func (p *parts) openHost(ctx context.Context, opt Options) error {
	vms, err := p.store.AllVMs(ctx)
	if err != nil {
		return err
	}
	if p.sshAuthority, err = sshca.Open(ctx, p.store); err != nil {
		return err
	}
	var live []network.Link
	for _, v := range vms {
		if v.State.Live() && v.EnableNetwork && v.Lease.Address.IsValid() {
			live = append(live, v.Link())
		}
	}
	p.host, err = opt.Host(ctx, HostEnv{
		Config: p.cfg, Log: p.log, Out: opt.Out, LiveLinks: live, OnClose: p.onClose,
		Ended: p.recordSession, SSHAuthority: p.sshAuthority.PublicKey(),
		WakeOnDemand: func(ctx context.Context, a portgate.Arrival) error {
			ctx = reach.WithPeer(ctx, a.From.String())
			defer p.vms.Reach().Hold(ctx, a.VMID, causeOf(a.Kind))()
			return p.vms.Reach().WakeOnDemand(ctx, a.VMID)
		},
		Dial: func(ctx context.Context, a portgate.Arrival) (vm.PortConn, error) {
			if a.Kind == network.ForwardSSH {
				return p.vms.Reach().DialNetwork(ctx, a.VMID, netip.AddrPortFrom(a.Address, uint16(a.Guest)), reach.SSH)
			}
			return p.vms.Reach().Dial(ctx, access.Everyone, a.VMID, a.Guest, reach.Port)
		},
	})
	return err
}

// recordSession records a connection to a port of a VM.
func (p *parts) recordSession(s portgate.Session) {
	r := audit.Record{
		Operation: audit.PortSession, Noun: "vm", Object: s.VMID, Address: s.From.String(), Outcome: audit.OK, Took: s.Took, Bytes: s.Bytes,
	}
	if s.Kind == network.ForwardSSH {
		r.Operation = audit.SSHSession
	}
	if s.Err != nil {
		r.Outcome, r.Code = audit.Failed, "guest_not_reached"
		if e, ok := errs.As(s.Err); ok {
			r.Code = e.Code
		}
	}
	p.audit.AddBounded(r)
}

// openAccess makes the first key if there is none. It shows it on a terminal only: a
// journal keeps what is printed, for more users than may read the key's file.
func (p *parts) openAccess(ctx context.Context, opt Options) (*access.Service, error) {
	keys := access.New(p.store, p.log)
	p.onClose(keys.Close)
	if trusted := p.cfg.OIDC; trusted.Issuer != "" {
		verifier := issuer.New(issuer.Config{
			Issuer: trusted.Issuer, Audience: trusted.Audience, UserClaim: trusted.UserClaim,
			RoleClaim: trusted.RoleClaim, AdminValues: trusted.AdminValues, Log: p.log,
		})
		p.onClose(verifier.Close)
		keys.Trust(verifier)
	}
	key, created, err := keys.Bootstrap(ctx, p.cfg.DataDir, p.cfg.APIKey)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(p.cfg.DataDir, access.KeyFile)
	switch {
	case !created:
	case isTerminal(opt.Out):
		_, err = fmt.Fprintf(opt.Out, "The admin API key, shown this once and kept in %s:\n\n    %s\n\n", path, key)
	default:
		_, err = fmt.Fprintf(opt.Out, "The admin API key is in %s\n", path)
	}
	return keys, err
}

func isTerminal(out io.Writer) bool {
	f, ok := out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// makeWebhooks starts the delivery of webhooks.
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

// idleVMs puts idle VMs to sleep for others. What knows them needs the VMs, and is made
// after them, before any request.
type idleVMs struct{ *parts }

// Evict implements capacity.Evictor.
func (i idleVMs) Evict(ctx context.Context, scope access.Scope) (evicted bool, err error) {
	return i.idle.Evict(ctx, scope)
}

func (p *parts) makeVMs(templates *template.Service) error {
	h := p.host
	bootID, err := jail.BootID()
	if err != nil {
		return err
	}
	limits, err := capacity.New(p.cfg.DataDir, p.cfg.Cgroup, bootID, capacity.Overcommit{Memory: p.cfg.MemOver, Disk: p.cfg.DiskOver})
	if err != nil {
		return err
	}
	drivers := map[string]vmm.Driver{}
	for _, d := range h.Drivers {
		drivers[d.Info().Name] = d
	}
	p.info = h.Drivers[0].Info()
	p.vms = lifecycle.New(lifecycle.Deps{
		Store: p.store, Images: p.images, Templates: templates,
		Network: h.Network, Forwards: h.Forwards, Files: h.Files, Memories: h.Memories, Guests: h.Guests, Consoles: h.Consoles,
		Snapshots: p.snapshots, SnapshotFiles: h.Snapshots, Warm: p.warm, Idle: idleVMs{p},
		Host: limits, Drivers: drivers, Log: p.log, HasRoom: p.reserve.HasRoom, PageStatus: httpprobe.Status,
	}, lifecycle.Settings{
		DefaultDriver: p.info.Name,
		VCPUs:         p.cfg.DefaultVCPU, MemMiB: p.cfg.DefaultMemMiB, DiskMiB: p.cfg.DefaultDiskMiB,
		BootArgs: p.cfg.DefaultBootArgs, StopTimeout: p.cfg.StopTimeout, WakeTimeout: p.cfg.WakeTimeout, BootTime: bootTime, OwnUser: h.OwnUser,
		Idle: p.idlePolicy(),
		Pools: network.Pools{
			Network: p.cfg.Network, SSHMin: p.cfg.SSHPortMin, SSHMax: p.cfg.SSHPortMax,
			UIDMin: p.cfg.UIDMin, UIDMax: p.cfg.UIDMax,
			PortMin: p.cfg.PortMin, PortMax: p.cfg.PortMax,
			TapPrefix: tapPrefix, CoolDown: leaseCoolDown, PortBusy: h.PortBusy,
		},
		HostPower: hostpower.Settings{
			Policy: hostpower.Policy(p.cfg.HostShutdown), Timeout: p.cfg.HostShutdownTimeout, Autostart: p.cfg.Autostart == "restore",
		},
	})
	return nil
}

// defaultImage makes img_default of the host's files, or else of the operator's.
// Without either the first `hatch image build` makes it.
func (p *parts) defaultImage(ctx context.Context) error {
	if p.host.DefaultImage != nil {
		img, err := p.host.DefaultImage(access.SystemID)
		if err != nil {
			return err
		}
		img.Sharing.Visibility = access.Public
		return p.store.UpsertImage(ctx, img)
	}
	if p.cfg.DefaultKernelPath == "" {
		return nil
	}
	return p.images.SetDefault(ctx, access.SystemID, p.cfg.DefaultKernelPath, p.cfg.DefaultRootfsPath)
}
