package e2b

import (
	"context"
	"crypto/subtle"
	"net/http"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/server/admission"
	"github.com/hatchvm/hatch/internal/vm"
)

// trafficHeader has the token of a sandbox whose ports are guarded.
const trafficHeader = "E2b-Traffic-Access-Token"

// Texts of refusals. Clients look for them, word by word.
const (
	notFoundText = "The sandbox was not found"
	closedText   = "The sandbox is running but port is not open"
)

// resumeTimeout bounds how long a request waits until its sandbox runs again.
const resumeTimeout = time.Minute

// unreachable is the body of the answer for a sandbox that cannot be reached.
type unreachable struct {
	SandboxID string `json:"sandboxId"`
	Message   string `json:"message"`
	Port      int    `json:"port,omitempty"`
	Code      int    `json:"code"`
}

type placeKey struct{}

// serveSandbox leads a request to a sandbox. One that is paused and that traffic resumes
// is resumed for a port, and by its agent once that has checked the token.
func (d *Door) serveSandbox(w *answer, r *http.Request, p place) {
	v, s, err := d.sandbox(r.Context(), access.Everyone, p.id)
	if err == nil && s == paused && !v.Sandbox.AutoResume {
		err = errNoSandbox(p.id)
	}
	if err != nil {
		d.refuse(w, r, p, err)
		return
	}
	sb := Sandbox{
		ID: sandboxID(v.ID), Template: v.Sandbox.Template, VMID: v.ID, Owner: v.OwnerID, Token: d.agentToken(v), Env: v.Sandbox.Env,
		DefaultUser: defaultUser, AutoResume: v.Sandbox.AutoResume,
	}
	if p.kind == atAgent {
		began := time.Now()
		defer func() { d.recordAgent(r, v, began, w.status) }()
		d.cfg.Agent(w, r, sb)
		return
	}
	if v.Sandbox.Guarded && !d.mayPass(r, v.ID) {
		writeJSON(w, http.StatusForbidden, unreachable{p.id, "the traffic access token is missing or wrong", 0, http.StatusForbidden})
		return
	}
	if s == paused {
		if err := d.resumeFor(r.Context(), v); err != nil {
			d.refuse(w, r, p, err)
			return
		}
	}
	r = r.WithContext(context.WithValue(r.Context(), placeKey{}, p))
	r.Header.Del(trafficHeader) // it is not the guest's
	d.cfg.Ports(w, r, sb, p.port)
}

// mayPass reports whether a request shows the token of a guarded sandbox.
func (d *Door) mayPass(r *http.Request, vmID string) bool {
	return subtle.ConstantTimeCompare([]byte(r.Header.Get(trafficHeader)), []byte(d.trafficToken(vmID))) == 1
}

// resumeFor resumes a paused sandbox for a request. All requests wait for the same wake,
// which goes on if they leave.
func (d *Door) resumeFor(ctx context.Context, v vm.VM) error {
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	_, err := d.wake(ctx, access.Owner(v.OwnerID), v, v.Expiry.TTL)
	return err
}

// refuse answers a request whose sandbox cannot be reached.
func (d *Door) refuse(w http.ResponseWriter, r *http.Request, p place, err error) {
	if !errs.Is(err, errs.NotFound) && r.Context().Err() == nil {
		d.cfg.Lines.Refused("a request did not reach its sandbox: "+errs.Public(err), admission.ClientAt(admission.AddressOf(r.RemoteAddr)))
		d.cfg.Log.Debug("a request did not reach its sandbox", logkey.VM, vmIDOf(p.id), logkey.Error, err)
	}
	writeJSON(w, http.StatusBadGateway, unreachable{p.id, notFoundText, 0, http.StatusBadGateway})
}

// RefusePort answers a request that was led to a port, in place of the door of ports, which
// has a status and a code for what is wrong.
func (d *Door) RefusePort(w http.ResponseWriter, r *http.Request, status int, code string) {
	p, _ := r.Context().Value(placeKey{}).(place)
	body := unreachable{p.id, notFoundText, 0, http.StatusBadGateway}
	switch {
	case code == "port_closed":
		body.Message, body.Port = closedText, p.port
	case status == http.StatusTooManyRequests || status == http.StatusGatewayTimeout || status == http.StatusInternalServerError || code == "too_many_requests" || code == "bad_answer":
		body.Message, body.Code = "the request was refused: "+code, status
	}
	writeJSON(w, body.Code, body)
}
