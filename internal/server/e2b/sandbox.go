package e2b

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

const (
	// agentVersion is the version of E2B's agent that clients may take ours for. They
	// choose what they send by it. From 0.5.13 on there are network rules and volumes, from
	// 0.6.2 on metadata of files, which clients refuse by themselves so.
	agentVersion = "0.5.12"
	// clientID is in each answer, because clients require it.
	clientID = "hatch"
	// label marks the VMs of sandboxes.
	label = "e2b"
	// defaultUser is the user of processes and files, unless a request names another.
	defaultUser = "user"
)

// state is what clients know of: they refuse any other.
type state string

const (
	running state = "running"
	paused  state = "paused"
)

// stateOf returns the state of a sandbox; ok is false for a VM that is none, or that does
// not exist any more for clients. While it changes it is what it was before.
func stateOf(v vm.VM) (s state, ok bool) {
	switch {
	case v.Sandbox == nil || v.Intent == vm.IntentDeleted:
		return "", false
	case v.Asleep() || v.State == vm.Paused:
		return paused, true
	case v.State == vm.Running || v.State == vm.Starting:
		return running, true
	}
	return "", false
}

// sandbox is a sandbox in the answer to a request that makes or resumes it.
type sandbox struct {
	TemplateID   string  `json:"templateID"`
	SandboxID    string  `json:"sandboxID"`
	ClientID     string  `json:"clientID"`
	AgentVersion string  `json:"envdVersion"`
	Alias        string  `json:"alias,omitempty"`
	Token        string  `json:"envdAccessToken,omitempty"`
	TrafficToken *string `json:"trafficAccessToken"`
	Domain       string  `json:"domain,omitempty"`
}

// listed is a sandbox in a list.
type listed struct {
	TemplateID   string            `json:"templateID"`
	SandboxID    string            `json:"sandboxID"`
	ClientID     string            `json:"clientID"`
	AgentVersion string            `json:"envdVersion"`
	Alias        string            `json:"alias,omitempty"`
	StartedAt    time.Time         `json:"startedAt"`
	EndAt        time.Time         `json:"endAt"`
	CPUs         int               `json:"cpuCount"`
	MemoryMB     int               `json:"memoryMB"`
	DiskMB       int               `json:"diskSizeMB"`
	State        state             `json:"state"`
	Metadata     map[string]string `json:"metadata"`
	VolumeMounts []string          `json:"volumeMounts"`
}

// detail is a sandbox alone.
type detail struct {
	listed
	Token               string    `json:"envdAccessToken,omitempty"`
	Domain              string    `json:"domain,omitempty"`
	AllowInternetAccess bool      `json:"allowInternetAccess"`
	Network             *network  `json:"network,omitempty"`
	Lifecycle           lifecycle `json:"lifecycle"`
	PauseMode           string    `json:"pauseMode,omitempty"`
}

type network struct {
	AllowPublicTraffic bool `json:"allowPublicTraffic"`
}

type lifecycle struct {
	AutoResume bool   `json:"autoResume"`
	OnTimeout  string `json:"onTimeout"` // kill or pause
}

func (d *Door) shown(v vm.VM, p access.Principal) sandbox {
	s := sandbox{
		TemplateID: v.Sandbox.Template, SandboxID: sandboxID(v.ID), ClientID: clientID, AgentVersion: agentVersion,
		Alias: v.Sandbox.Alias, Domain: d.cfg.Domain,
	}
	if tokensFor(p) {
		s.Token = d.agentToken(v)
		if v.Sandbox.Guarded {
			s.TrafficToken = new(d.trafficToken(v.ID))
		}
	}
	return s
}

func (d *Door) shownInList(v vm.VM, s state) listed {
	metadata := v.Sandbox.Metadata
	if metadata == nil {
		metadata = map[string]string{}
	}
	return listed{
		TemplateID: v.Sandbox.Template, SandboxID: sandboxID(v.ID), ClientID: clientID, AgentVersion: agentVersion, Alias: v.Sandbox.Alias,
		StartedAt: v.CreatedAt.UTC(), EndAt: endOf(v), CPUs: v.VCPUs, MemoryMB: v.MemMiB, DiskMB: v.DiskMiB,
		State: s, Metadata: metadata, VolumeMounts: []string{},
	}
}

func (d *Door) shownAlone(v vm.VM, s state, p access.Principal) detail {
	out := detail{
		listed: d.shownInList(v, s), Domain: d.cfg.Domain, AllowInternetAccess: true,
		Lifecycle: lifecycle{AutoResume: v.Sandbox.AutoResume, OnTimeout: "kill"},
	}
	if tokensFor(p) {
		out.Token = d.agentToken(v)
	}
	if v.Sandbox.Guarded {
		out.Network = &network{AllowPublicTraffic: false}
	}
	if v.Expiry.Action == machine.ActionSleep {
		out.Lifecycle.OnTimeout = "pause"
	}
	if s == paused {
		out.PauseMode = "full"
	}
	return out
}

// endOf returns when the time of a sandbox is over. That of a paused one stands still, and
// of one that has just been woken it begins in a moment.
func endOf(v vm.VM) time.Time {
	switch {
	case !v.Expiry.At.IsZero():
		return v.Expiry.At.UTC()
	case v.Sleep != nil:
		return v.Sleep.At.UTC()
	}
	return vm.Now().Add(v.Expiry.TTL)
}

// agentToken is what the agent of a sandbox is to be shown, "" if nothing.
func (d *Door) agentToken(v vm.VM) string {
	if v.Sandbox.Open {
		return ""
	}
	return d.token("agent", v.ID)
}

// trafficToken is what the ports of a guarded sandbox are to be shown.
func (d *Door) trafficToken(vmID string) string { return d.token("traffic", vmID) }

// token derives a token from hatchd's secret, so that none is stored, and all are the same
// after a restart. The text before keeps them apart from all else that is derived from it.
func (d *Door) token(use, vmID string) string {
	m := hmac.New(sha256.New, d.cfg.Secret)
	_, _ = m.Write([]byte("hatch sandbox token\x00" + use + "\x00" + vmID)) // never fails
	return base64.RawURLEncoding.EncodeToString(m.Sum(nil))
}

// sandbox returns a sandbox in scope.
func (d *Door) sandbox(ctx context.Context, scope access.Scope, id string) (vm.VM, state, error) {
	vmID := vmIDOf(id)
	if vmID == "" {
		return vm.VM{}, "", errNoSandbox(id)
	}
	v, err := d.cfg.VMs.Get(ctx, scope, vmID)
	if errs.Is(err, errs.NotFound) {
		return vm.VM{}, "", errNoSandbox(id)
	}
	if err != nil {
		return vm.VM{}, "", err
	}
	s, ok := stateOf(v)
	if !ok {
		return vm.VM{}, "", errNoSandbox(id)
	}
	return v, s, nil
}

func errNoSandbox(id string) error {
	return errs.New(errs.NotFound, "sandbox_not_found", "sandbox %q not found", errs.Brief(id))
}
