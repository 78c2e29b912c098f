package e2b

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net/http"
	"strings"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/idempotency"
	"github.com/hatchvm/hatch/internal/logkey"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/vm"
)

// The time of a sandbox whose request says nothing, for each version of the route.
const (
	firstTimeout  = 15 * time.Second
	secondTimeout = 5 * time.Minute
)

// readyTimeout bounds the wait for the guest of a new sandbox.
const readyTimeout = 5 * time.Minute

// createBody is the request for a sandbox. Raw fields are refused unless they say what is
// so without them.
type createBody struct {
	TemplateID      string                     `json:"templateID"`
	Timeout         *int64                     `json:"timeout"` // in seconds
	AutoPause       bool                       `json:"autoPause"`
	AutoPauseMemory *bool                      `json:"autoPauseMemory"`
	AutoResume      *struct{ Enabled bool }    `json:"autoResume"`
	Secure          bool                       `json:"secure"`
	Internet        *bool                      `json:"allow_internet_access"`
	Network         map[string]json.RawMessage `json:"network"`
	Metadata        map[string]string          `json:"metadata"`
	Env             map[string]string          `json:"envVars"`
	VolumeMounts    json.RawMessage            `json:"volumeMounts"`
	MCP             json.RawMessage            `json:"mcp"`
	IAM             json.RawMessage            `json:"iam"`
}

// createFirst serves the route of clients before 2.51.
func (d *Door) createFirst(c *call) error {
	body := createBody{}
	if err := c.decode(&body); err != nil {
		return err
	}
	return d.create(c, body, firstTimeout)
}

// createSecond serves the newer route, whose sandboxes always need a token.
func (d *Door) createSecond(c *call) error {
	body := createBody{}
	if err := c.decode(&body); err != nil {
		return err
	}
	body.Secure = true
	return d.create(c, body, secondTimeout)
}

func (d *Door) create(c *call, body createBody, usual time.Duration) error {
	given, err := body.overrides(usual)
	if err != nil {
		return err
	}
	from, err := d.catalog.find(c, c.caller, body.TemplateID)
	if err != nil {
		return err
	}
	given.Sandbox.Template, given.Sandbox.Alias = from.id, from.alias
	v, err := d.makeOnce(c, body, func(ctx context.Context) (vm.VM, error) { return d.make(ctx, c.caller, from, given) })
	if err != nil {
		return err
	}
	c.made = v.ID
	return c.answer(http.StatusCreated, d.shown(v, c.caller))
}

// overrides checks a request, and returns what it says about the VM.
func (b createBody) overrides(usual time.Duration) (machine.Overrides, error) {
	ttl, err := timeout(b.Timeout, usual)
	if err != nil {
		return machine.Overrides{}, err
	}
	if err := b.refuse(); err != nil {
		return machine.Overrides{}, err
	}
	resumes := b.AutoResume != nil && b.AutoResume.Enabled
	if resumes && !b.AutoPause {
		return machine.Overrides{}, errs.InvalidField("autoResume", "needs autoPause")
	}
	guarded, err := guards(b.Network)
	if err != nil {
		return machine.Overrides{}, err
	}
	action := machine.ActionDelete
	if b.AutoPause {
		action = machine.ActionSleep
	}
	return machine.Overrides{
		Labels:  map[string]string{label: "true"},
		Idle:    &machine.IdlePolicy{Action: machine.ActionNone}, // a sandbox has its time
		Expiry:  &machine.Expiry{TTL: ttl, Action: action},
		Sandbox: &machine.Sandbox{Metadata: b.Metadata, Env: b.Env, AutoResume: resumes, Open: !b.Secure, Guarded: guarded},
	}, nil
}

// timeout decodes a time in seconds, of which nil means the usual one.
func timeout(seconds *int64, usual time.Duration) (time.Duration, error) {
	if seconds == nil {
		return usual, nil
	}
	if *seconds < 1 || *seconds > int64(machine.MaxIdle/time.Second) {
		return 0, errs.InvalidField("timeout", "%d is out of range; 1 to %d seconds can be given", *seconds, int64(machine.MaxIdle/time.Second))
	}
	return time.Duration(*seconds) * time.Second, nil
}

// refuse refuses what a client relies on and this server does not do.
func (b createBody) refuse() error {
	for _, field := range []struct {
		name string
		asks bool
	}{
		{"autoPauseMemory", b.AutoPauseMemory != nil && !*b.AutoPauseMemory},
		{"allow_internet_access", b.Internet != nil && !*b.Internet},
		{"volumeMounts", says(b.VolumeMounts)},
		{"mcp", says(b.MCP)},
		{"iam", says(b.IAM)},
	} {
		if field.asks {
			return errNoOption(field.name)
		}
	}
	return nil
}

func errNoOption(field string) error {
	return errs.InvalidField(field, "this server does not implement this option").WithHint("leave it out")
}

// says reports whether a field has a value that asks for something.
func says(value json.RawMessage) bool {
	switch strings.Join(strings.Fields(string(value)), "") {
	case "", "null", "{}", "[]", "false":
		return false
	}
	return true
}

// guards reports whether ports need a token, the one option of the network that there is.
func guards(options map[string]json.RawMessage) (bool, error) {
	guarded := false
	for name, value := range options {
		if name == "allowPublicTraffic" {
			guarded = string(value) == "false"
			continue
		}
		if says(value) {
			return false, errNoOption("network." + name)
		}
	}
	return guarded, nil
}

// make makes a sandbox, and returns it once its guest can be used. Of one that fails,
// nothing is left.
func (d *Door) make(ctx context.Context, caller access.Principal, from origin, given machine.Overrides) (vm.VM, error) {
	v, err := d.begin(ctx, caller, from, given)
	if err == nil {
		bounded, cancel := context.WithTimeout(ctx, readyTimeout)
		defer cancel()
		ready, waitErr := d.cfg.VMs.Wait(bounded, caller.Scope(), v.ID, vm.WaitFor{Ready: true})
		if waitErr == nil {
			return ready, nil
		}
		err = waitErr
	}
	if e, ok := errs.As(err); ok && v.ID == "" {
		v.ID = e.VMID
	}
	comesAgain := idempotency.Of(ctx).Key != "" && ctx.Err() != nil
	if v.ID != "" && !comesAgain {
		d.remove(context.WithoutCancel(ctx), caller.Scope(), v.ID)
	}
	return vm.VM{}, err
}

func (d *Door) begin(ctx context.Context, caller access.Principal, from origin, given machine.Overrides) (vm.VM, error) {
	if from.snapshotID != "" {
		made, err := d.cfg.VMs.CreateFrom(ctx, caller.OwnerID, from.snapshotID, vm.CloneRequest{Count: 1, Overrides: given})
		if err != nil {
			return vm.VM{}, err
		}
		return made.VMs[0], nil
	}
	given.ImageID = from.imageID
	return d.cfg.VMs.Create(ctx, caller.OwnerID, vm.CreateRequest{Overrides: given, TemplateID: from.templateID})
}

// makeOnce makes a sandbox unless an earlier request with the same Idempotency-Key has.
func (d *Door) makeOnce(c *call, body createBody, do func(context.Context) (vm.VM, error)) (vm.VM, error) {
	key := c.r.Header.Get(idempotency.Field)
	if key == "" {
		return do(c)
	}
	if len(key) > idempotency.MaxKey || strings.ContainsFunc(key, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return vm.VM{}, errs.New(errs.Invalid, "invalid_idempotency_key", "%s: want 1 to %d visible ASCII characters", idempotency.Field, idempotency.MaxKey)
	}
	text, err := json.Marshal(body) // of one form, also if that of the client differs
	if err != nil {
		return vm.VM{}, err
	}
	hash := sha256.Sum256([]byte("e2b sandbox\n" + string(text)))
	request := idempotency.Request{Owner: c.caller.OwnerID, Key: key, Hash: hex.EncodeToString(hash[:])}
	if v, made, err := d.madeBefore(c, request); made || err != nil {
		return v, err
	}
	v, err := do(idempotency.With(c, request))
	if errs.HasCode(err, idempotency.CodeUsed) {
		if v, made, err := d.madeBefore(c, request); made || err != nil {
			return v, err
		}
	}
	return v, err
}

// madeBefore returns the sandbox that an earlier request has made.
func (d *Door) madeBefore(c *call, request idempotency.Request) (v vm.VM, made bool, err error) {
	ids, err := d.cfg.Requests.Made(c, request)
	switch {
	case errs.HasCode(err, "idempotency_key_reused"):
		return vm.VM{}, true, errReused
	case err != nil || ids == nil:
		return vm.VM{}, false, err
	}
	if v, err = d.cfg.VMs.AwaitCreated(c, c.scope(), ids[0]); err == nil {
		v, err = d.cfg.VMs.Wait(c, c.scope(), ids[0], vm.WaitFor{Ready: true})
	}
	if err == nil && v.Sandbox == nil {
		err = errReused
	}
	if errs.Is(err, errs.NotFound) {
		err = idempotency.Gone(sandboxID(ids[0]))
	}
	return v, true, err
}

// errReused is answered with the status that it names: see fail.
var errReused = errs.New(errs.Invalid, codeReused, "%s: this key was already used with another request", idempotency.Field)

const codeReused = "idempotency_key_reused"

// removeTimeout bounds the removal of a sandbox that could not be made.
const removeTimeout = time.Minute

// remove deletes a sandbox that could not be made. What fails here, its time ends.
func (d *Door) remove(ctx context.Context, scope access.Scope, vmID string) {
	ctx, cancel := context.WithTimeout(ctx, removeTimeout)
	defer cancel()
	if err := d.cfg.VMs.DeleteIf(ctx, scope, vmID, isSandbox); err != nil && !errs.Is(err, errs.NotFound) {
		d.cfg.Log.Warn("cannot delete a sandbox that could not be made", logkey.VM, vmID, logkey.Error, err)
	}
}

// isSandbox returns an error for a VM that is none.
func isSandbox(v vm.VM) error {
	if v.Sandbox == nil {
		return errNoSandbox(sandboxID(v.ID))
	}
	return nil
}
