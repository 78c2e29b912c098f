package daemon

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idle"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/route"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/server/e2b"
	"github.com/hatchvm/hatch/internal/server/envd"
	"github.com/hatchvm/hatch/internal/server/proxy"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/lifecycle"
)

// Settings of servers for E2B's clients, which keep connections for long and share one
// between all their sandboxes.
const (
	e2bIdle    = 6 * time.Minute
	e2bStreams = 1000 // of HTTP/2
)

// e2bDoor is the door for E2B's clients, and where it is.
type e2bDoor struct {
	*e2b.Door
	at     api.E2B
	agents *envd.Envd
	ports  *proxy.Proxy // of sandboxes
}

// openE2B serves E2B's clients. tlsPort is that of the door over TLS, 0 if there is none.
func (p *parts) openE2B(ctx context.Context, tlsPort int) error {
	l, err := p.listenRoutes("HATCH_E2B_ADDR", p.cfg.E2BAddr)
	if err != nil {
		return err
	}
	fresh := make([]byte, 32)
	_, _ = rand.Read(fresh) // never fails; see crypto/rand
	secret, err := p.store.LinkSecret(ctx, fresh)
	if err == nil {
		err = publishAddr(e2bAddrFile(p.cfg.DataDir), l.Addr().String())
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	p.onClose(func() error { return os.Remove(e2bAddrFile(p.cfg.DataDir)) })
	p.e2b = &e2bDoor{at: api.E2B{Addr: l.Addr().String(), Domain: withPort(p.cfg.ProxyDomain, l.Addr().(*net.TCPAddr).Port)}}
	if tlsPort != 0 {
		p.e2b.at.Domain, p.e2b.at.URL = withPort(p.cfg.ProxyDomain, tlsPort), "https://"+withPort(p.apiName(), tlsPort)
	}
	p.e2b.ports = proxy.New(proxy.Config{
		Names: sandboxNames{}, Guests: routeGuests{p.vms.Reach()}, WakeTimeout: p.cfg.WakeTimeout, Trusted: p.cfg.ProxyTrusted,
		Open: admission.PlaceLimits{Total: p.cfg.ProxyMaxConns, PerClient: p.cfg.ProxyMaxClientConns},
		Refuse: func(w http.ResponseWriter, r *http.Request, status int, code string) {
			p.e2b.RefusePort(w, r, status, code)
		},
		HSTS: p.cfg.HSTSMaxAge, Log: p.log, Lines: p.lines,
	})
	p.e2b.agents = envd.New(envd.Config{Processes: p.processes, Files: p.files, Machines: agentMachines{p.vms}, Log: p.log})
	p.doors.sandboxes = func() { p.e2b.ports.Close(); p.e2b.agents.Close() }
	p.e2b.Door = e2b.New(e2b.Config{
		VMs: p.vms, Templates: p.templates, Images: p.images, Snapshots: p.snapshots, Access: p.keys, Requests: p.store, Audit: p.audit,
		Agent: p.e2b.serveAgent, Ports: p.e2b.servePort,
		Defaults: machine.Spec{VCPUs: p.cfg.DefaultVCPU, MemMiB: p.cfg.DefaultMemMiB, DiskMiB: p.cfg.DefaultDiskMiB},
		APIHost:  p.apiName(), Domain: p.e2b.at.Domain, Secret: secret,
		RequestsPerUser: int64(p.cfg.HTTPMaxConns / 2), Rates: p.rates(), Log: p.log, Lines: p.lines,
	})
	p.vms.Watch(watchers{p.idle, p.e2b.Door})
	server := proxy.NewServer(p.untilEnd(p.e2b), p.log)
	server.IdleTimeout = e2bIdle
	p.serveRoutes(server, func() error { return server.Serve(l) })
	p.log.Info("E2B's clients are served", "e2b_addr", p.e2b.at.Addr, logkey.Domain, p.e2b.at.Domain)
	return nil
}

func e2bAddrFile(dataDir string) string { return filepath.Join(dataDir, "e2b.addr") }

// withPort returns a host with a port, which is left out if it is that of https.
func withPort(host string, port int) string {
	if port == 443 {
		return host
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// e2bAt tells clients of the API where the door is.
func (p *parts) e2bAt() (api.E2B, bool) {
	if p.e2b == nil {
		return api.E2B{}, false
	}
	return p.e2b.at, true
}

// isForE2B reports whether a request over TLS is for the door for E2B's clients: one for
// the API that this door claims, or for a sandbox at a name that leads nowhere else.
func (p *parts) isForE2B(r *http.Request) bool {
	switch {
	case p.e2b == nil:
		return false
	case p.isAPI(r.Host):
		return e2b.Claims(r)
	case !e2b.IsSandboxHost(r.Host):
		return false
	}
	_, err := p.routes.Resolve(r.Context(), r.Host)
	return errs.Is(err, errs.NotFound)
}

// untilEnd serves requests whose streams end before others when hatchd ends.
func (p *parts) untilEnd(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(p.streams, cancel)()
		next.ServeHTTP(w, r.WithContext(ctx))
	})
}

// serveAgent serves a request for the agent of a sandbox.
func (e *e2bDoor) serveAgent(w http.ResponseWriter, r *http.Request, s e2b.Sandbox) {
	e.agents.ServeHTTP(w, r.WithContext(reach.WithPeer(r.Context(), "E2B client "+r.RemoteAddr)), envd.Sandbox{
		ID: s.ID, Template: s.Template, VMID: s.VMID, Owner: s.Owner, Token: s.Token,
		Env: s.Env, DefaultUser: s.DefaultUser, AutoResume: s.AutoResume,
	})
}

// agentMachines tells agents' door which VMs run.
type agentMachines struct{ vms *lifecycle.Service }

var _ envd.Machines = agentMachines{}

// Ready implements envd.Machines.
func (m agentMachines) Ready(ctx context.Context, scope access.Scope, vmID string, wake bool) error {
	_, err := m.vms.Reach().Machine(ctx, scope, vmID, reach.Exec, wakeIf(wake))
	return err
}

// Metrics implements envd.Machines.
func (m agentMachines) Metrics(ctx context.Context, scope access.Scope, vmID string) (vm.Metrics, error) {
	return m.vms.Metrics(ctx, scope, vmID)
}

// targetKey is the key of a port of a sandbox in the context of a request for it.
type targetKey struct{}

// servePort leads a request to a port of a sandbox that runs. It wakes none: the door has
// done so if it may.
func (e *e2bDoor) servePort(w http.ResponseWriter, r *http.Request, s e2b.Sandbox, port int) {
	target := route.Target{VMID: s.VMID, OwnerID: s.Owner, Port: port, Auth: route.Auth{Mode: route.Public}, Upstream: route.HTTP1}
	e.ports.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), targetKey{}, target)))
}

// sandboxNames leads a proxy where its caller has decided.
type sandboxNames struct{}

var _ proxy.Names = sandboxNames{}

// Resolve implements proxy.Names.
func (sandboxNames) Resolve(ctx context.Context, _ string) (route.Target, error) {
	t, ok := ctx.Value(targetKey{}).(route.Target)
	if !ok {
		return route.Target{}, route.ErrUnknown
	}
	return t, nil
}

// Authorize implements proxy.Names. All targets are public here.
func (sandboxNames) Authorize(context.Context, route.Target, route.Credentials) (route.Grant, error) {
	return route.Grant{}, route.ErrUnknown
}

// Watch implements proxy.Names. No key is granted here.
func (sandboxNames) Watch(ctx context.Context, _ route.Grant) (context.Context, func()) {
	return ctx, func() {}
}

// watchers are told what happens to VMs.
type watchers struct {
	idle *idle.Service
	door *e2b.Door
}

// Changed implements lifecycle.Watcher.
func (w watchers) Changed(v vm.VM) { w.idle.Changed(v); w.door.Changed(v) }

// Gone implements lifecycle.Watcher.
func (w watchers) Gone(id string) { w.idle.Gone(id) }

// Quiet implements lifecycle.Watcher.
func (w watchers) Quiet(id string) { w.idle.Quiet(id) }
